"""Whether OpenVINO computes a model as onnxruntime does, tried once: where it does not, it says nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from math import inf, sqrt
from typing import Any

import numpy as np

from asyncembed.catalogue.spec import ModelSpec
from asyncembed.encoders.encoder import Call, Encoder, EncoderConfig, Mode, Results
from asyncembed.encoders.registry import build
from asyncembed.results import HybridEmbedding, SparseEmbedding

MOST_DIFFERENCE = 0.01
"""Of the numbers that one kind of input gives, relative to them. What agrees is below 0.00001 in float32, and 0.001 in
half precision."""

MOST_DIFFERENCE_BFLOAT16 = 0.05
"""The same in bfloat16. It is 0.014 where vectors have a cosine of 0.9999."""

_MODES: Mapping[str, tuple[Mode, ...]] = {
    "cross_encoder": ("pair",),
    "causal_reranker": ("pair",),
    "image": ("image",),
    "colpali": ("query", "image"),
    "colmodernvbert": ("query", "image"),
}

_TEXT = "how can you make it long and they said that there was a way to write about time if one can see the day"
_WORDS = _TEXT.split()

# Graphs may compute what has more than 511 tokens in another way.
_LONG = 700

_IMAGE_SHAPE = (64, 96, 3)


def objection_to_openvino(config: EncoderConfig) -> str | None:
    """Why the model of `config` is to be left to onnxruntime, although OpenVINO is asked for; None: for no reason.

    Loads it with the one and then with the other; blocks. What onnxruntime cannot compute, or nobody could as it is not
    installed, is not compared.

    Raises:
        RuntimeMissingError: OpenVINO is not installed.
        OptionError: OpenVINO cannot do here what is asked for.
    """
    usual = replace(config, session=replace(config.session, runtime="onnxruntime", bfloat16=False))
    try:
        wanted = _results(build(usual), config.spec)
    except Exception:  # noqa: BLE001 (loading it will raise what there is to say)
        wanted = {}
    encoder = build(config)
    if encoder.info.warning is not None:
        return encoder.info.warning
    try:
        found = _results(encoder, config.spec)
    except Exception as error:  # noqa: BLE001 (it is told)
        return f"onnxruntime runs it: OpenVINO fails: {error}"
    most = MOST_DIFFERENCE_BFLOAT16 if config.session.bfloat16 else MOST_DIFFERENCE
    for mode, results in wanted.items():
        difference = _difference(found[mode], results)
        if not difference <= most:  # which NaN is not, either
            return f"onnxruntime runs it: OpenVINO gives something else, which differs by {difference:.0%} ({mode})"
    return None


def _results(encoder: Encoder, spec: ModelSpec) -> dict[Mode, Results]:
    """What a model gives for a few inputs of each kind that it takes."""
    results: dict[Mode, Results] = {}
    for mode in _MODES.get(spec.encoder, ("embed",)):
        encoded = encoder.encode(_inputs(mode), Call(mode=mode))
        for error in encoded.failures.values():
            raise error
        results[mode] = encoded.results
    return results


def _difference(found: Results, wanted: Results) -> float:
    """How far results are from others, as a part of these."""
    squares = [_squares(*pair) for pair in zip(found, wanted, strict=True)]
    of_difference, of_wanted = (sum(parts) for parts in zip(*squares, strict=True))
    return sqrt(of_difference / of_wanted) if of_wanted else of_difference


def _squares(found: Any, wanted: Any) -> tuple[float, float]:
    """The sum of the squares of what two results differ by, and that of the second."""
    if isinstance(wanted, HybridEmbedding):
        pairs = [_squares(getattr(found, name), getattr(wanted, name)) for name in wanted.outputs]
        return sum(part for part, _ in pairs), sum(part for _, part in pairs)
    if isinstance(wanted, SparseEmbedding):
        entries, others = found.as_dict(), wanted.as_dict()
        either = entries | others
        found, wanted = ([some.get(index, 0.0) for index in either] for some in (entries, others))
    one, other = (np.asarray(numbers, np.float64) for numbers in (found, wanted))
    if one.shape != other.shape:
        return inf, 1.0
    return float(((one - other) ** 2).sum()), float((other**2).sum())


def _inputs(mode: Mode) -> Sequence[object]:
    if mode == "image":
        return [_image()]
    texts = [" ".join((_WORDS * _LONG)[:length]) for length in (3, len(_WORDS), _LONG)]
    return [(texts[0], text) for text in texts] if mode == "pair" else texts


def _image() -> bytes:
    """A file with the same noise each time."""
    from PIL import Image

    file = BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, _IMAGE_SHAPE, np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
