"""From a decoded image to the numbers that a vision model takes: what `preprocessor_config.json` asks for.

The operators are those of transformers' image processors CLIP, SigLIP, ConvNeXT and Idefics3, and of Jina CLIP's own.
Geometry is done on 8-bit RGB images by Pillow; the arithmetic after it maps 256 values per channel, so it is one table.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from asyncembed.errors import InputError, ModelLoadError, UnsupportedModelError

FloatArray = npt.NDArray[np.float32]
Grid: TypeAlias = tuple[int, int]
Size: TypeAlias = tuple[int, int]
"""Width and height in pixels, in Pillow's order."""

CONFIG_FILE = "preprocessor_config.json"

MAX_RESIZED_PIXELS = 178_956_970
"""Pillow's limit for the size of a file's image; here for what resizing makes of one."""

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
        self._steps = _read_steps(config)
        self._tiles = _read_tiles(config)
        self._table, self._padded_table = _read_tables(config)

    @classmethod
    def read(cls, directory: Path) -> "Preprocessor":
        """The preprocessor of the model in `directory`."""
        path = directory / CONFIG_FILE
        if not path.is_file():
            raise UnsupportedModelError(f"{directory} has no {CONFIG_FILE}", model=str(directory))
        try:
            config = json.loads(path.read_bytes())
        except ValueError as error:
            raise ModelLoadError(f"cannot read {path}: {error}", model=str(directory)) from error
        try:
            return cls(config)
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{path}: {error}", model=str(directory)) from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise UnsupportedModelError(f"cannot make sense of {path}: {reason}", model=str(directory)) from error

    def __call__(self, image: Image.Image) -> Prepared:
        """Prepare an RGB image.

        Raises:
            InputError: It is so long and thin that resizing its shorter edge would make it gigantic.
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
        image = image.resize(self._enlarged(image.size), self.resample)
        columns, rows = image.width // self.side, image.height // self.side
        if columns == rows == 1:
            return [image], (0, 0)
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
            f"an image of {size[0]}x{size[1]} pixels is too long and thin: the model would take it as "
            f"{target[0]}x{target[1]} before it cuts the middle out; crop it first"
        )


# ---------------------------------------------------------------- reading the config


def _read_steps(config: Mapping[str, Any]) -> tuple[Step, ...]:
    kind = config.get("image_processor_type", _CLIP)
    reader = _READERS.get(kind)
    if reader is None:
        raise UnsupportedModelError(f"the image processor {kind!r} is not supported; known are {', '.join(_READERS)}")
    return tuple(reader(config))


def _clip_steps(config: Mapping[str, Any]) -> list[Step]:
    steps: list[Step] = []
    if config.get("do_resize", False):
        size, resample = config["size"], _filter(config, Image.Resampling.BICUBIC)
        if isinstance(size, int):
            # transformers' own reading of a bare number, which older configs have.
            steps.append(ShortEdgeResize(size, resample))
        elif "shortest_edge" in size:
            steps.append(ShortEdgeResize(size["shortest_edge"], resample))
        elif "height" in size and "width" in size:
            steps.append(ExactResize((size["width"], size["height"]), resample))
        else:
            raise UnsupportedModelError("size has neither shortest_edge nor height and width")
    if config.get("do_center_crop", False):
        crop = config["crop_size"]
        steps.append(CenterCrop((crop, crop) if isinstance(crop, int) else (crop["width"], crop["height"])))
    return steps


def _convnext_steps(config: Mapping[str, Any]) -> list[Step]:
    if not config.get("do_resize", True):
        return []
    edge, resample = config["size"]["shortest_edge"], _filter(config, Image.Resampling.BICUBIC)
    if edge >= _WITHOUT_CROP_FROM:
        return [ExactResize((edge, edge), resample)]
    return [ShortEdgeResize(int(edge / config.get("crop_pct", 0.875)), resample), CenterCrop((edge, edge))]


def _jina_clip_steps(config: Mapping[str, Any]) -> list[Step]:
    size = config["size"]
    steps: list[Step] = []
    if config.get("resize_mode", "shortest") == "shortest":
        steps.append(ShortEdgeResize(size, _filter(config, Image.Resampling.BICUBIC, key="interpolation")))
    fill = config.get("fill_color", 0)
    steps.append(PadToSquare((size, size), tuple(fill) if isinstance(fill, list) else fill))
    return steps


def _idefics3_steps(config: Mapping[str, Any]) -> list[Step]:
    if not config.get("do_resize", False):
        return []
    return [LongestEdgeResize(config["size"]["longest_edge"], _filter(config, Image.Resampling.LANCZOS))]


_READERS: Mapping[str, Callable[[Mapping[str, Any]], list[Step]]] = {
    _CLIP: _clip_steps,
    "SiglipImageProcessor": _clip_steps,
    "ConvNextFeatureExtractor": _convnext_steps,
    "JinaCLIPImageProcessor": _jina_clip_steps,
    "Idefics3ImageProcessor": _idefics3_steps,
}


def _read_tiles(config: Mapping[str, Any]) -> Tiles | None:
    if config.get("image_processor_type") != "Idefics3ImageProcessor":
        return None
    side = config.get("max_image_size", {}).get("longest_edge", 512)
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
            table = (table - _per_channel(mean)) / _per_channel(std)
        tables.append(np.ascontiguousarray(table, dtype=np.float32))
    return tables[0], tables[1]


def _per_channel(value: object) -> FloatArray:
    numbers = np.array(value, dtype=np.float32)
    if numbers.shape not in ((), (3,)):
        raise UnsupportedModelError(f"mean and std are one number or one for each of 3 channels; got {value}")
    return np.broadcast_to(numbers, (3,)).reshape(3, 1)


def _filter(config: Mapping[str, Any], default: Image.Resampling, key: str = "resample") -> Image.Resampling:
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, str):
        if value.lower() not in _FILTERS:
            raise UnsupportedModelError(f"{key}={value!r} is none of {', '.join(_FILTERS)}")
        return _FILTERS[value.lower()]
    return Image.Resampling(value)
