"""Rotary positions (Su et al. 2021): the frequencies that a config.json asks for, and the rotation in the graph.

Keys as in the `transformers` library; scaling by Meta's Llama 3, by YaRN (Peng et al. 2023), linear, and "ntk" as in
Alibaba's GTE. Positions are those in the padded row: the rotation depends on their differences only.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from asyncembed.export.construction import Construction
from asyncembed.export.onnx_builder import FLOAT
from asyncembed.repo_files import quoted

Frequencies = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rotation:
    """How the halves of a head are rotated by a token's position.

    Attributes:
        frequencies: Radians per position, (size / 2,).
        factor: What sines and cosines are multiplied by.
    """

    frequencies: Frequencies
    factor: float = 1.0


def parameters(config: Mapping[str, Any], kind: str | None = None) -> Mapping[str, Any]:
    """The object of `config` that says how positions rotate, for layers of `kind` where it tells them apart."""
    for key in ("rope_scaling", "rope_parameters"):
        said = config.get(key)
        if isinstance(said, dict):
            nested = said.get(kind) if kind is not None else None
            return nested if isinstance(nested, dict) else said
    return {}


def rotation_objections(said: Mapping[str, Any], longest: object) -> Iterator[str]:
    """Why `rotation` cannot be computed, of what a config.json says."""
    if any(isinstance(value, dict) or key in _LAYER_KINDS for key, value in said.items()):
        yield "tells the positions of several kinds of layers apart, but not all of theirs"
        return
    kind = _type_of(said)
    if not isinstance(kind, str) or kind not in _SCALED:
        yield f"scales its positions by {quoted(kind)}, and only {', '.join(_SCALED)} are computed"
        return
    for key in ("rope_theta", *_NUMBERS):
        value = said.get(key)
        is_missing = value is None and key in _NEEDED.get(kind, ())
        if is_missing or (value is not None and not is_scale(value)):
            yield f"scales its positions by {kind} with {key} = {quoted(value)}"
    base = said.get("rope_theta")
    if base is not None and base <= 1:
        yield f"has rope_theta = {quoted(base)}, and positions are told apart by a base above 1"
    if kind == "llama3" and said["low_freq_factor"] >= said["high_freq_factor"]:
        yield "scales its positions by llama3 with a low_freq_factor that is not below its high_freq_factor"
    if kind in _NEEDING_LENGTH and said.get(_LENGTH) is None and not is_scale(longest):
        yield f"scales its positions by {kind}, and has neither {_LENGTH} nor a usable max_position_embeddings"


def is_scale(value: object) -> bool:
    """Whether a value of a stranger's file can be a base or a factor: a number above 0 that no sum overflows with."""
    return type(value) in (int, float) and 1e-6 <= value <= 1e12  # type: ignore[operator]


def rotation(said: Mapping[str, Any], *, size: int, theta: float, longest: int | None) -> Rotation:
    """The rotation of heads of `size` numbers.

    `said` is what `parameters` gives, `theta` the base where that has none, `longest` is `max_position_embeddings`.
    """
    known = {key: value for key, value in said.items() if value is not None}
    return _SCALED[_type_of(said)](known, float(known.get("rope_theta", theta)), size, longest)


def _type_of(said: Mapping[str, Any]) -> Any:
    return said.get("rope_type") or said.get("type") or "default"


def _plain(base: float, size: int) -> Frequencies:
    return base ** (-np.arange(0, size, 2, dtype=np.float64) / size)


def _default(said: Mapping[str, Any], base: float, size: int, longest: int | None) -> Rotation:  # noqa: ARG001
    return Rotation(_plain(base, size))


def _linear(said: Mapping[str, Any], base: float, size: int, longest: int | None) -> Rotation:  # noqa: ARG001
    return Rotation(_plain(base, size) / float(said["factor"]))


def _ntk(said: Mapping[str, Any], base: float, size: int, longest: int | None) -> Rotation:  # noqa: ARG001
    factor, strength = float(said["factor"]), said.get("mixed_b")
    if strength is None:
        return Rotation(_plain(base * factor, size) / factor ** (2 / size))
    each = np.arange(1, size // 2 + 1, dtype=np.float64)
    scale = math.log(factor) / (size / 2) ** float(strength)
    return Rotation(_plain(base, size) / np.exp(scale * each ** float(strength)))


def _llama3(said: Mapping[str, Any], base: float, size: int, longest: int | None) -> Rotation:
    plain, factor = _plain(base, size), float(said["factor"])
    low, high = float(said["low_freq_factor"]), float(said["high_freq_factor"])
    turns = float(said.get("original_max_position_embeddings", longest)) * plain / (2 * math.pi)
    mix = np.clip((turns - low) / (high - low), 0, 1)
    return Rotation((1 - mix) * plain / factor + mix * plain)


def _yarn(said: Mapping[str, Any], base: float, size: int, longest: int | None) -> Rotation:
    plain, factor = _plain(base, size), float(said["factor"])
    trained = float(said.get("original_max_position_embeddings", longest))

    def dimension(turns: float) -> float:
        return size * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(float(said.get("beta_fast", 32))), dimension(float(said.get("beta_slow", 1)))
    if said.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = np.clip((np.arange(size // 2) - low) / max(high - low, 0.001), 0, 1)
    return Rotation(plain / factor * ramp + plain * (1 - ramp), _yarn_factor(said, factor))


def _yarn_factor(said: Mapping[str, Any], factor: float) -> float:
    def grown(by: float) -> float:
        return 0.1 * by * math.log(factor) + 1 if factor > 1 else 1.0

    if said.get("attention_factor") is not None:
        return float(said["attention_factor"])
    if said.get("mscale") and said.get("mscale_all_dim"):
        return grown(float(said["mscale"])) / grown(float(said["mscale_all_dim"]))
    return grown(1.0)


# What must be said, and what may be, as numbers above 0.
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "ntk": ("factor",),
    "yarn": ("factor",),
}
_LENGTH = "original_max_position_embeddings"
_NEEDING_LENGTH = ("llama3", "yarn")
_LAYER_KINDS = ("full_attention", "sliding_attention")

_NUMBERS = (
    *("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "mixed_b"),
    *("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"),
)

_SCALED: Mapping[str, Callable[[Mapping[str, Any], float, int, int | None], Rotation]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "ntk": _ntk,
    "yarn": _yarn,
}


@dataclass(frozen=True, slots=True)
class Turn:
    """The cosines and sines of all positions, as values of the graph: float32 (tokens, size / 2)."""

    cosine: str
    sine: str


def turn(c: Construction, rotation: Rotation) -> Turn:
    """What rotates heads, once for all layers with the same rotation."""
    graph = c.graph
    end = graph.node("Squeeze", c.tokens, graph.constant([0]))
    positions = graph.node("Cast", graph.node("Range", graph.constant(0), end, graph.constant(1)), to=FLOAT)
    frequencies = graph.constant([float(each) for each in rotation.frequencies])
    angles = graph.node("Mul", graph.node("Unsqueeze", positions, graph.constant([1])), frequencies)
    factor = graph.constant(float(rotation.factor))
    values = (graph.node("Cos", angles), graph.node("Sin", angles))
    return Turn(*(graph.node("Mul", value, factor) if rotation.factor != 1 else value for value in values))


def rotated(c: Construction, heads: str, turn: Turn, size: int) -> str:
    """(batch, heads, tokens, size), its first half taken as cosines and its second as sines, turned further."""
    graph = c.graph
    half = graph.constant([size // 2, size // 2])
    first, second = graph.split(heads, half, 2, axis=3)
    left = graph.node("Sub", graph.node("Mul", first, turn.cosine), graph.node("Mul", second, turn.sine))
    right = graph.node("Add", graph.node("Mul", second, turn.cosine), graph.node("Mul", first, turn.sine))
    return graph.node("Concat", left, right, axis=3)
