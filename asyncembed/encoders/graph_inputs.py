"""What a text model's graph asks for beside ids and mask: made up so that it computes the text, and nothing else.

Exports of decoders want the keys and values of the tokens before a text (there are none), those of models for several
kinds of input want what their other towers give (nothing). onnxruntime leaves out none of a graph's inputs.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from asyncembed.errors import ModelLoadError
from asyncembed.repo_files import read_object
from asyncembed.runtime.session import Array, Session

IntArray: TypeAlias = npt.NDArray[np.int64]

Filler: TypeAlias = Callable[[IntArray, IntArray], Array]
"""From the ids and the mask of a run, both (batch, tokens), to one further input."""

_PAST = re.compile(r"past_key_values\.\d+\.(key|value)")
_WIDTHS = ("hidden_size", "dim", "d_model", "n_embd")  # as BERT, DistilBERT, T5 and GPT call it
_FEATURES = ("image_features", "audio_features", "video_features")


def has_past(session: Session) -> bool:
    """Whether a graph takes the keys and values of earlier tokens."""
    return any(_PAST.fullmatch(name) for name in session.input_names)


def filler_of(name: str, session: Session, folder: Path) -> Filler | None:
    """What makes up the input `name` of a graph whose `config.json` lies in `folder`.

    None where nothing can: nobody knows what it is, or neither the graph nor the configuration tells its size.

    Raises:
        ModelLoadError: The configuration is needed and cannot be read.
    """
    shape = session.input_shape(name)
    if name in _BY_NAME:
        return _BY_NAME[name](shape)
    if name in _FEATURES:
        return _Zeros(0, (shape[0] or 0, shape[1])) if len(shape) == 2 and shape[1] else None
    if name == "pixel_values":
        return _no_images(shape, folder)
    if _PAST.fullmatch(name) and len(shape) == 4:
        return _no_past(shape, folder)
    return None


def width_of(folder: Path) -> int | None:
    """The width of a text model by the `config.json` in `folder`; None where that does not tell it."""
    try:
        config = _text_config(folder)
    except ModelLoadError:
        return None
    return next(filter(None, (_size(config, key) for key in _WIDTHS)), None)


@dataclass(frozen=True, slots=True)
class _Zeros:
    """Zeros, or an array without elements. `batch_axes` 1 puts the number of texts before `shape`."""

    batch_axes: int
    shape: tuple[int, ...]

    def __call__(self, ids: IntArray, mask: IntArray) -> Array:
        del mask
        return np.zeros((*ids.shape[: self.batch_axes], *self.shape), dtype=np.float32)


def _no_past(shape: tuple[int | None, ...], folder: Path) -> Filler | None:
    """Keys or values of no tokens: (batch, heads, 0, width)."""
    _, heads, length, width = shape
    if length is not None:  # it always wants that many, and each text would attend to them
        return None
    if heads is None or width is None:
        config = _text_config(folder)
        queries = _size(config, "num_attention_heads")
        hidden = _size(config, "hidden_size")
        heads = heads or _size(config, "num_key_value_heads") or queries
        width = width or _size(config, "head_dim") or (hidden // queries if hidden and queries else None)
    return _Zeros(1, (heads, 0, width)) if heads and width else None


def _no_images(shape: tuple[int | None, ...], folder: Path) -> Filler | None:
    """Images (0, channels, height, width)."""
    if len(shape) != 4:
        return None
    channels, height, width = shape[1:]
    if not height or not width:
        vision = read_object(folder / "config.json").get("vision_config")
        height = width = _size(vision, "image_size") if isinstance(vision, dict) else None
    return _Zeros(0, (0, channels or 3, height, width)) if height and width else None


def _positions(shape: tuple[int | None, ...]) -> Filler | None:
    """Places of the tokens, from the first one of the text on; three times over where time and space have their own."""
    if len(shape) == 3 and shape[0]:
        return lambda _, mask: np.repeat(_places(mask)[None], shape[0] or 1, axis=0)
    return (lambda _, mask: _places(mask)) if len(shape) == 2 else None


def _places(mask: IntArray) -> IntArray:
    places: IntArray = np.maximum(mask.cumsum(axis=1) - 1, 0)
    return places


def _number(value: Any) -> Callable[[tuple[int | None, ...]], Filler | None]:
    """As `as_declared` has it."""

    def of_shape(shape: tuple[int | None, ...]) -> Filler | None:
        return (lambda *_: as_declared(value, shape)) if len(shape) < 2 else None

    return of_shape


_BY_NAME: Mapping[str, Callable[[tuple[int | None, ...]], Filler | None]] = {
    "token_type_ids": lambda _: lambda ids, _: np.zeros_like(ids),
    "position_ids": _positions,
    "cache_position": lambda shape: (lambda ids, _: np.arange(ids.shape[1])) if len(shape) == 1 else None,
    "num_logits_to_keep": _number(1),
    "use_cache_branch": _number(False),
}


def as_declared(value: int, shape: tuple[int | None, ...]) -> Array:
    """One number for a whole run, of as many axes as the graph takes: onnxruntime refuses a scalar for a row of one."""
    return np.full((1,) * len(shape), value)


def _text_config(folder: Path) -> dict[str, Any]:
    """`config.json`, of a model of several kinds of input that of its language model."""
    config = read_object(folder / "config.json")
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def _size(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    return value if type(value) is int and 0 < value < 2**20 else None
