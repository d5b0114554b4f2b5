"""Images of all kinds, the preprocessing of real models, and small vision graphs."""

import json
from dataclasses import replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from asyncembed.catalogue.lookup import require_model
from asyncembed.catalogue.spec import LocalOrigin, ModelSpec
from tests.support.graphs import GraphBuilder

CLIP = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 224},
}
SIGLIP = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 224, "width": 224},
}
CONVNEXT = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "ConvNextFeatureExtractor",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 224},
}
JINA_CLIP = {
    "fill_color": 0,
    "image_processor_type": "JinaCLIPImageProcessor",
    "interpolation": "bicubic",
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "resize_mode": "shortest",
    "size": 224,
    "std": [0.26862954, 0.26130258, 0.27577711],
}
COLPALI = SIGLIP | {"resample": 3, "size": {"height": 448, "width": 448}}
IDEFICS3 = {
    "do_convert_rgb": True,
    "do_image_splitting": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Idefics3ImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "max_image_size": {"longest_edge": 512},
    "resample": 1,
    "rescale_factor": 0.00392156862745098,
    "size": {"longest_edge": 2048},
}
SMALL_IDEFICS3 = IDEFICS3 | {"max_image_size": {"longest_edge": 32}, "size": {"longest_edge": 96}}

CONFIGS: dict[str, dict[str, Any]] = {
    "clip": CLIP,
    "clip without a crop": CLIP | {"do_center_crop": False},
    "clip, crop larger than the image": CLIP | {"size": {"shortest_edge": 100}, "crop_size": 181},
    "clip without a resize": CLIP | {"do_resize": False, "crop_size": {"height": 60, "width": 31}},
    "clip without normalisation": CLIP | {"do_normalize": False},
    "clip without rescaling": CLIP | {"do_rescale": False},
    "a config without a type": {"do_resize": True, "size": {"width": 50, "height": 70}},
    "siglip": SIGLIP,
    "colpali": COLPALI,
    "convnext (resnet, nomic)": CONVNEXT,
    "convnext, large": CONVNEXT | {"size": {"shortest_edge": 384}, "resample": 2},
    "jina clip": JINA_CLIP,
    "jina clip, not resized, in teal": JINA_CLIP | {"resize_mode": "longest", "fill_color": "teal", "size": 75},
    "idefics3, small": SMALL_IDEFICS3,
    "idefics3, one tile": SMALL_IDEFICS3 | {"do_image_splitting": False},
    "idefics3, small images": SMALL_IDEFICS3 | {"do_resize": False},
}
"""What is known to be in the `preprocessor_config.json` of real models, and variations of it."""

SIZES = [(224, 224), (1, 1), (31, 17), (300, 227), (227, 300), (97, 448), (3, 60), (640, 427)]
MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16", "RGBX"]


@lru_cache(maxsize=64)
def _waves(width: int, height: int, seed: int) -> NDArray[np.float64]:
    y, x = np.mgrid[:height, :width].astype(np.float64)
    noise = np.random.default_rng(seed).normal(size=(height, width, 4)) * 12
    waves = [np.sin(x / 7 + seed) + np.cos(y / 11), np.sin((x + y) / 9), np.cos(x / 23 - y / 5), np.sin(y / 3)]
    return np.stack(waves, axis=-1) * 60 + 128 + noise


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Waves of colour with some noise: nothing is symmetric, and nothing is flat."""
    values = _waves(width, height, seed)
    rgba = np.clip(values, 0, 255).astype(np.uint8)
    match mode:
        case "RGBA" | "RGB":
            return Image.fromarray(np.ascontiguousarray(rgba[:, :, : len(mode)]))
        case "CMYK":
            return Image.frombytes("CMYK", (width, height), rgba.tobytes())
        case "I;16":
            return Image.fromarray((values[:, :, 0].clip(0) * 3).astype(np.uint16))
        case "I":
            return Image.fromarray((values[:, :, 0] * 3).astype(np.int32))
        case "LA" | "P" | "1" | "L" | "F" | "YCbCr" | "HSV":
            return Image.fromarray(rgba[:, :, :3].copy()).convert(mode)
        case other:
            return Image.frombytes(
                other, (width, height), rgba[:, :, : len(Image.new(other, (1, 1)).getbands())].tobytes()
            )


def encoded(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:  # noqa: A002 (Pillow's word)
    """The image as a file's bytes."""
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def write_image_graph(
    path: Path,
    dim: int,
    output: str = "flat",
    channels: int = 3,
    *,
    fixed: tuple[int | None, int | None] = (None, None),
    overflows: bool = False,
) -> Path:
    """A vision graph whose outputs look at every part of an image.

    `output`: "flat" (batch, dim); "spatial" (batch, dim, 1, 1); "tokens" (batch, 5, dim); "named", tokens first and
    then `pooler_output` (batch, dim). `fixed` is the one batch size and the one edge that it takes. `overflows`: an
    image without red has infinite components.
    """
    build = GraphBuilder(3)
    # Four strides of different phase, so that the order of rows, columns and channels all count.
    pooled = build.add("AveragePool", "pixel_values", kernel_shape=[7, 5], strides=[7, 5], ceil_mode=1)
    hidden = build.add(
        "Conv", pooled, build.random(dim, channels, 3, 3), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
    )
    hidden = build.add("Sin", hidden)
    mean = build.add("GlobalAveragePool", hidden)
    shape = build.constant(np.array([0, -1], np.int64))
    flat = build.add("Reshape", mean, shape)
    if overflows:
        red = build.add("Gather", build.add("GlobalAveragePool", "pixel_values"), build.constant(np.int64(0)), axis=1)
        is_black = build.add(
            "Less", build.add("Squeeze", red, build.constant(np.array([2], np.int64))), build.constant(np.float32(-1))
        )
        flat = build.add("Where", is_black, build.constant(np.float32(np.inf)), flat)
    batch = fixed[0] or "batch"
    shape_of_pixels = [batch, channels, fixed[1] or "h", fixed[1] or "w"]
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, shape_of_pixels)
    one = build.constant(np.array([1], np.int64))
    tokens = build.add("Mul", build.add("Unsqueeze", flat, one), build.random(1, 5, dim))
    infos = []
    if output in ("tokens", "named"):
        build.add("Identity", tokens, output="last_hidden_state")
        infos.append(helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [batch, 5, dim]))
    if output == "named":
        build.add("Identity", flat, output="pooler_output")
        infos.append(helper.make_tensor_value_info("pooler_output", TensorProto.FLOAT, [batch, dim]))
    if output == "flat":
        build.add("Identity", flat, output="image_embeds")
        infos.append(helper.make_tensor_value_info("image_embeds", TensorProto.FLOAT, [batch, dim]))
    if output == "spatial":
        build.add("Identity", mean, output="pool")
        infos.append(helper.make_tensor_value_info("pool", TensorProto.FLOAT, [batch, dim, 1, 1]))
    return build.save(path, [pixels], infos)


IMAGE_MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "Qdrant/clip-ViT-B-32-vision": (CLIP, "flat"),
    "Qdrant/resnet50-onnx": (CONVNEXT, "spatial"),
    "Qdrant/Unicom-ViT-B-16": (CLIP, "flat"),
    "Qdrant/Unicom-ViT-B-32": (CLIP, "flat"),
    "jinaai/jina-clip-v1": (JINA_CLIP, "flat"),
    "nomic-ai/nomic-embed-vision-v1.5": (CLIP, "tokens"),
    "nomic-ai/nomic-embed-vision-v1.5-Q": (CLIP, "tokens"),
    "google/siglip2-base-patch16-224": (SIGLIP, "named"),
}
"""Name → its preprocessing, and what its graph's output looks like."""


def write_image_model(directory: Path, name: str = "Qdrant/clip-ViT-B-32-vision", **graph: Any) -> ModelSpec:
    """A small model of the kind of `name`, with its real number of dimensions."""
    config, output = IMAGE_MODELS[name]
    spec = require_model(name, "image")
    assert spec.model_file is not None
    assert spec.dim is not None
    write_image_graph(directory / spec.model_file, spec.dim, output, **graph)
    (directory / "preprocessor_config.json").write_text(json.dumps(config), encoding="utf-8")
    return replace(spec, sources=(LocalOrigin(directory),))
