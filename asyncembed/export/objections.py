"""What is said against a config.json whatever its architecture: numbers that are none, names of what is not computed.

Each gives reasons as `Architecture.objections` does: what follows "its config.json". Whoever goes on after one must
not, as the file is a stranger's and what comes after takes the values for what they should be.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from asyncembed.export.blocks import ACTIVATIONS
from asyncembed.repo_files import quoted


def is_size(value: object, *, least: int = 1, below: int = 2**31) -> bool:
    """Whether a value can be a number of something: a whole one, and not true or false."""
    return type(value) is int and least <= value < below


def size_objections(config: Mapping[str, Any], *keys: str, least: int = 1, below: int = 2**31) -> Iterator[str]:
    """Why these cannot be numbers of something; each has to be there."""
    for key in keys:
        if not is_size(config.get(key), least=least, below=below):
            yield f"has no usable {key}"


def eps_objections(key: str, value: object) -> Iterator[str]:
    """Why a norm cannot add this to what it divides by."""
    if type(value) not in (int, float) or not 0 <= value <= 1:  # type: ignore[operator]
        yield f"has no usable {key}"


def activation_objections(key: str, named: object) -> Iterator[str]:
    """Why an activation of this name is not computed."""
    if not isinstance(named, str) or named not in ACTIVATIONS:
        yield f"has {key} = {quoted(named)}, and those computed are {', '.join(ACTIVATIONS)}"


def other_objections(config: Mapping[str, Any], computed: Mapping[str, Collection[object]]) -> Iterator[str]:
    """Which of these keys have other values than those that are computed; no such key means one of them."""
    for key, values in computed.items():
        if config.get(key) is not None and config[key] not in values:
            yield f"has {key} = {quoted(config[key])}, and only {' or '.join(map(repr, values)) or None} is computed"
