"""From a decoded image to the numbers that a vision model takes: what `preprocessor_config.json` asks for.

The operators are those of transformers' image processors CLIP (BiT, DINOv2), SigLIP, ViT, DeiT, ConvNeXT and Idefics3,
whatever their names there (`...FeatureExtractor`, `...Fast`, `...Pil`), and of Jina CLIP's own.
Geometry is done on 8-bit RGB images by Pillow; the arithmetic after it maps 256 values per channel, so it is one table.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from asyncembed.errors import InputError, UnsupportedModelError
from asyncembed.repo_files import quoted, read_json, read_object

FloatArray = npt.NDArray[np.float32]
Grid: TypeAlias = tuple[int, int]
Size: TypeAlias = tuple[int, int]
"""Width and height in pixels, in Pillow's order."""

CONFIG_FILE = "preprocessor_config.json"

MAX_RESIZED_PIXELS = 32 * 1024 * 1024
"""What a model may make of one image: 128 MiB as pixels, and 384 MiB as the numbers that its graph takes."""

MAX_TILES = 1024
"""Into which one image may be cut."""

MAX_EDGE = 4096
"""Of what a config asks for."""

_CLIP = "CLIPImageProcessor"
_WITHOUT_CROP_FROM = 384
"""From this edge on, a ConvNeXT processor resizes without cropping."""
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image as the model takes it.

    Attributes:
        pixels: float32 (tiles, 3, height, width); one tile unless the image was split.
        grid: Rows and columns of tiles, to which the view of the whole image comes as a last tile; (0, 0) for an image
            that was not split.
    """

    pixels: FloatArray
    grid: Grid = (0, 0)


class Preprocessor:
    """What one model does to an image before its graph sees it."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Read a `preprocessor_config.json`.

        Raises:
            UnsupportedModelError: It names a processor that we do not know, or lacks what that one needs.
        """
        kind, config = _with_defaults(config)
        self._steps = tuple(_READERS[kind](config))
        self._tiles = _read_tiles(config) if kind == _IDEFICS3 else None
        self._table, self._padded_table = _read_tables(config)

    @classmethod
    def read(cls, directory: Path) -> "Preprocessor":
        """The preprocessor of the model in `directory`."""
        path = directory / CONFIG_FILE
        config = read_json(path)
        if config is None:
            # Written by transformers 5, with the rest of what a processor is.
            path = directory / "processor_config.json"
            config = read_object(path).get("image_processor")
        if config is None:
            raise UnsupportedModelError(f"{directory} has no {CONFIG_FILE}", model=str(directory))
        try:
            # What overflows is not finite, and told as such.
            with np.errstate(all="ignore"):
                return cls(config)
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{path}: {error}", model=str(directory)) from None
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)[:500]
            raise UnsupportedModelError(f"cannot make sense of {path}: {reason}", model=str(directory)) from error

    def __call__(self, image: Image.Image) -> Prepared:
        """Prepare an RGB image.

        Raises:
            InputError: What the model makes of it would be gigantic: it is long and thin, or taken as large as it is.
        """
        is_padded = False
        for step in self._steps:
            if isinstance(step, CenterCrop) and not step.is_inside(image.size):
                is_padded = True
            if isinstance(step, RESIZES):
                _check_target(image.size, step.target(image.size))
            image = step(image)
        if self._tiles is None:
            tiles, grid = [image], (0, 0)
        else:
            tiles, grid = self._tiles(image)
        _check_target(image.size, (tiles[0].width, tiles[0].height * len(tiles)))
        # Where a crop reached outside, the arithmetic of the original is in float32 throughout.
        table = self._padded_table if is_padded else self._table
        pixels = np.empty((len(tiles), 3, tiles[0].height, tiles[0].width), dtype=np.float32)
        for position, tile in enumerate(tiles):
            values = np.asarray(tile)
            for channel in range(3):
                np.take(table[channel], values[:, :, channel], out=pixels[position, channel], mode="clip")
        return Prepared(pixels, grid)

    @property
    def output_size(self) -> Size | None:
        """Width and height of what the graph gets, where they do not depend on the image."""
        if self._tiles is not None:
            return (self._tiles.side, self._tiles.side)
        for step in reversed(self._steps):
            if step.fixed_size is not None:
                return step.fixed_size
        return None

    def least_source_size(self, size: Size) -> Size | None:
        """To what size an image of `size` may be reduced so that the first step still has more than it needs.

        None if there is no step that makes images smaller.
        """
        for step in self._steps:
            if isinstance(step, RESIZES):
                return step.target(size)
        return None


# ---------------------------------------------------------------- the operators


@dataclass(frozen=True, slots=True)
class ShortEdgeResize:
    """Resize so that the shorter edge is `edge`, the other in proportion, rounded down."""

    edge: int
    resample: Image.Resampling
    fixed_size: Size | None = None

    def target(self, size: Size) -> Size:
        width, height = size
        if width <= height:
            return self.edge, int(self.edge * height / width)
        return int(self.edge * width / height), self.edge

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.resize(self.target(image.size), self.resample)


@dataclass(frozen=True, slots=True)
class ExactResize:
    """Resize to `fixed_size`, whatever the proportions."""

    fixed_size: Size
    resample: Image.Resampling

    def target(self, size: Size) -> Size:  # noqa: ARG002 (it does not matter)
        return self.fixed_size

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.resize(self.fixed_size, self.resample)


@dataclass(frozen=True, slots=True)
class LongestEdgeResize:
    """Resize so that the longer edge is `edge`; both edges become even, and at least 1."""

    edge: int
    resample: Image.Resampling
    fixed_size: Size | None = None

    def target(self, size: Size) -> Size:
        ratio = size[0] / size[1]
        width, height = (self.edge, int(self.edge / ratio)) if ratio >= 1 else (int(self.edge * ratio), self.edge)
        return max(1, width + width % 2), max(1, height + height % 2)

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.resize(self.target(image.size), self.resample)


@dataclass(frozen=True, slots=True)
class PadToSquare:
    """Put the image into the top left corner of a square; what is over the edge is cut off on both sides."""

    fixed_size: Size
    fill: str | int | tuple[int, ...]

    def __call__(self, image: Image.Image) -> Image.Image:
        # Half a pixel rounds to even, as in torchvision's CenterCrop.
        left, top = (round(max(0, edge - side) / 2) for edge, side in zip(image.size, self.fixed_size, strict=True))
        width, height = (min(edge, side) for edge, side in zip(image.size, self.fixed_size, strict=True))
        square = Image.new("RGB", self.fixed_size, self.fill)
        square.paste(image.crop((left, top, left + width, top + height)))
        return square


@dataclass(frozen=True, slots=True)
class CenterCrop:
    """Cut `fixed_size` out of the middle, black where the image does not reach."""

    fixed_size: Size

    def is_inside(self, size: Size) -> bool:
        return size[0] >= self.fixed_size[0] and size[1] >= self.fixed_size[1]

    def __call__(self, image: Image.Image) -> Image.Image:
        left, top = ((edge - side) // 2 for edge, side in zip(image.size, self.fixed_size, strict=True))
        return image.crop((left, top, left + self.fixed_size[0], top + self.fixed_size[1]))


RESIZES = (ShortEdgeResize, ExactResize, LongestEdgeResize)
Step: TypeAlias = ShortEdgeResize | ExactResize | LongestEdgeResize | PadToSquare | CenterCrop


@dataclass(frozen=True, slots=True)
class Tiles:
    """Cut an image into squares of `side`, and add a view of the whole; or only resize it to one such square."""

    side: int
    splits: bool
    resample: Image.Resampling

    def __call__(self, image: Image.Image) -> tuple[list[Image.Image], Grid]:
        if not self.splits:
            return [self._square(image)], (0, 0)
        enlarged = self._enlarged(image.size)
        _check_target(image.size, enlarged)
        image = image.resize(enlarged, self.resample)
        columns, rows = image.width // self.side, image.height // self.side
        if columns == rows == 1:
            return [image], (0, 0)
        if columns * rows > MAX_TILES:
            raise InputError(
                f"an image of {image.width}x{image.height} pixels would be cut into {columns * rows} tiles"
            )
        tiles = [
            image.crop((column * self.side, row * self.side, (column + 1) * self.side, (row + 1) * self.side))
            for row in range(rows)
            for column in range(columns)
        ]
        return [*tiles, self._square(image)], (rows, columns)

    def _square(self, image: Image.Image) -> Image.Image:
        return image.resize((self.side, self.side), self.resample)

    def _enlarged(self, size: Size) -> Size:
        """Both edges brought to multiples of `side`, the shorter one after it has followed the longer."""
        width, height = size
        ratio = width / height
        if width >= height:
            width = self._multiple(width)
            return width, self._multiple(int(width / ratio))
        height = self._multiple(height)
        return self._multiple(int(height * ratio)), height

    def _multiple(self, edge: int) -> int:
        return math.ceil(edge / self.side) * self.side


def _check_target(size: Size, target: Size) -> None:
    if target[0] * target[1] > MAX_RESIZED_PIXELS:
        raise InputError(
            f"an image of {size[0]}x{size[1]} pixels is too large or too long and thin: the model would take it as "
            f"{target[0]}x{target[1]}, at least before it cuts the middle out; crop it first"
        )


# ---------------------------------------------------------------- reading the config


def _with_defaults(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The kind of processor, and the config with what that kind does where it says nothing.

    A kind is a processor's name in transformers, as far as that does not say which of several implementations it is.
    Configs of fastembed's models are taken as fastembed takes them: what they do not ask for is not done.
    """
    name = config.get("image_processor_type") or config.get("feature_extractor_type") or _CLIP
    if name in _AS_WRITTEN:
        return _AS_WRITTEN[name], config
    kind = str(name).replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if kind not in _DEFAULTS:
        known = ", ".join(dict.fromkeys([*_AS_WRITTEN, *_DEFAULTS]))
        raise UnsupportedModelError(f"the image processor {quoted(name)} is not supported; known are {known}")
    said = {key: value for key, value in config.items() if value is not None}
    size = said.get("size")
    if isinstance(size, int) and kind in _SQUARE:
        said["size"] = {"height": size, "width": size}
    return kind, _DEFAULTS[kind] | said


def _edge(value: object) -> int:
    """One edge of an image, as a config asks for it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise UnsupportedModelError(f"an edge of {quoted(value)} pixels is no whole number")
    if not 1 <= value <= MAX_EDGE:
        raise UnsupportedModelError(f"an edge of {value} pixels is not from 1 to {MAX_EDGE}")
    return int(value)


def _clip_steps(config: Mapping[str, Any]) -> list[Step]:
    steps: list[Step] = []
    if config.get("do_resize", False):
        size, resample = config["size"], _filter(config, Image.Resampling.BICUBIC)
        if isinstance(size, int):
            # transformers' own reading of a bare number, which older configs have.
            steps.append(ShortEdgeResize(_edge(size), resample))
        elif "shortest_edge" in size:
            steps.append(ShortEdgeResize(_edge(size["shortest_edge"]), resample))
        elif "height" in size and "width" in size:
            steps.append(ExactResize((_edge(size["width"]), _edge(size["height"])), resample))
        else:
            raise UnsupportedModelError("size has neither shortest_edge nor height and width")
    if config.get("do_center_crop", False):
        crop = config["crop_size"]
        width, height = (crop, crop) if isinstance(crop, int) else (crop["width"], crop["height"])
        steps.append(CenterCrop((_edge(width), _edge(height))))
    return steps


def _convnext_steps(config: Mapping[str, Any]) -> list[Step]:
    if not config.get("do_resize", True):
        return []
    size = config["size"]
    edge, resample = (
        _edge(size if isinstance(size, int) else size["shortest_edge"]),
        _filter(config, Image.Resampling.BICUBIC),
    )
    if edge >= _WITHOUT_CROP_FROM:
        return [ExactResize((edge, edge), resample)]
    return [ShortEdgeResize(_edge(int(edge / config.get("crop_pct", 0.875))), resample), CenterCrop((edge, edge))]


def _jina_clip_steps(config: Mapping[str, Any]) -> list[Step]:
    size = _edge(config["size"])
    steps: list[Step] = []
    if config.get("resize_mode", "shortest") == "shortest":
        steps.append(ShortEdgeResize(size, _filter(config, Image.Resampling.BICUBIC, key="interpolation")))
    fill = config.get("fill_color", 0)
    fill = tuple(fill) if isinstance(fill, list) else fill
    Image.new("RGB", (1, 1), fill)  # raises ValueError or TypeError where it is no colour
    steps.append(PadToSquare((size, size), fill))
    return steps


def _idefics3_steps(config: Mapping[str, Any]) -> list[Step]:
    if not config.get("do_resize", False):
        return []
    return [LongestEdgeResize(_edge(config["size"]["longest_edge"]), _filter(config, Image.Resampling.LANCZOS))]


_IDEFICS3 = "Idefics3ImageProcessor"

_AS_WRITTEN = {
    _CLIP: _CLIP,
    "SiglipImageProcessor": "SiglipImageProcessor",
    "ConvNextFeatureExtractor": "ConvNextImageProcessor",
    "JinaCLIPImageProcessor": "JinaCLIPImageProcessor",
    _IDEFICS3: _IDEFICS3,
}
"""The names that fastembed knows."""

_READERS: Mapping[str, Callable[[Mapping[str, Any]], list[Step]]] = {
    _CLIP: _clip_steps,
    "ChineseCLIPImageProcessor": _clip_steps,
    "BitImageProcessor": _clip_steps,
    "SiglipImageProcessor": _clip_steps,
    "ViTImageProcessor": _clip_steps,
    "DeiTImageProcessor": _clip_steps,
    "DINOv3ViTImageProcessor": _clip_steps,
    "ConvNextImageProcessor": _convnext_steps,
    "JinaCLIPImageProcessor": _jina_clip_steps,
    _IDEFICS3: _idefics3_steps,
}

_SQUARE = frozenset({"ViTImageProcessor", "DeiTImageProcessor", "DINOv3ViTImageProcessor"})
"""The kinds that take one number as both edges, not as the shorter one."""


def _defaults(
    size: object, mean: Sequence[float], std: Sequence[float], resample: int, **more: object
) -> dict[str, Any]:
    common: dict[str, Any] = {"do_resize": True, "do_rescale": True, "do_normalize": True}
    return common | {"size": size, "image_mean": mean, "image_std": std, "resample": resample} | more


_HALF = (0.5, 0.5, 0.5)
_OPENAI_MEAN, _OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SQUARE_OF_224 = {"height": 224, "width": 224}
_CLIP_DEFAULTS = _defaults({"shortest_edge": 224}, _OPENAI_MEAN, _OPENAI_STD, 3, do_center_crop=True, crop_size=224)

_DEFAULTS: Mapping[str, dict[str, Any]] = {
    _CLIP: _CLIP_DEFAULTS,
    "ChineseCLIPImageProcessor": _CLIP_DEFAULTS,
    "BitImageProcessor": _CLIP_DEFAULTS,
    "SiglipImageProcessor": _defaults(_SQUARE_OF_224, _HALF, _HALF, 3),
    "ViTImageProcessor": _defaults(_SQUARE_OF_224, _HALF, _HALF, 2),
    "DeiTImageProcessor": _defaults({"height": 256, "width": 256}, _HALF, _HALF, 3, do_center_crop=True, crop_size=224),
    "DINOv3ViTImageProcessor": _defaults(_SQUARE_OF_224, _IMAGENET_MEAN, _IMAGENET_STD, 2),
    "ConvNextImageProcessor": _defaults({"shortest_edge": 384}, _HALF, _HALF, 3),
    _IDEFICS3: _defaults(
        {"longest_edge": 1456}, _HALF, _HALF, 1, do_image_splitting=True, max_image_size={"longest_edge": 364}
    ),
}
"""Those of transformers 5.24, whose classes are the same steps for torch tensors and for Pillow's images."""


def _read_tiles(config: Mapping[str, Any]) -> Tiles:
    side = _edge(config.get("max_image_size", {}).get("longest_edge", 512))
    return Tiles(side, bool(config.get("do_image_splitting", False)), _filter(config, Image.Resampling.LANCZOS))


def _read_tables(config: Mapping[str, Any]) -> tuple[FloatArray, FloatArray]:
    """From a pixel's value to the model's, float32 (3, 256): for plain images, and for those padded by a crop."""
    plain: npt.NDArray[Any] = np.arange(256, dtype=np.uint8)
    padded = np.arange(256, dtype=np.float32)
    if config.get("do_rescale", True):
        # A Python float: the product is in float64 for integers, in float32 for floats.
        factor = float(config.get("rescale_factor", 1 / 255))
        plain, padded = (np.asarray(values * factor, dtype=np.float32) for values in (plain, padded))
    mean, std = None, None
    if config.get("do_normalize", False):
        mean, std = config["image_mean"], config["image_std"]
    elif "mean" in config and "std" in config:
        mean, std = config["mean"], config["std"]
    tables = []
    for values in (plain, padded):
        table = np.broadcast_to(values.astype(np.float32), (3, 256))
        if mean is not None:
            if not np.all(_per_channel(std)):
                raise UnsupportedModelError(f"std divides, so it cannot be 0; got {quoted(std)}")
            table = (table - _per_channel(mean)) / _per_channel(std)
        tables.append(np.ascontiguousarray(table, dtype=np.float32))
    if not np.isfinite(tables).all():
        raise UnsupportedModelError("rescale_factor, mean and std give pixels that are not finite")
    return tables[0], tables[1]


def _per_channel(value: object) -> FloatArray:
    numbers = np.array(value, dtype=np.float32)
    if numbers.shape not in ((), (3,)) or not np.isfinite(numbers).all():
        raise UnsupportedModelError(f"mean and std are one number or one for each of 3 channels; got {quoted(value)}")
    return np.broadcast_to(numbers, (3,)).reshape(3, 1)


def _filter(config: Mapping[str, Any], default: Image.Resampling, key: str = "resample") -> Image.Resampling:
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, str):
        if value.lower() not in _FILTERS:
            raise UnsupportedModelError(f"{key}={quoted(value)} is none of {', '.join(_FILTERS)}")
        return _FILTERS[value.lower()]
    return Image.Resampling(value)
