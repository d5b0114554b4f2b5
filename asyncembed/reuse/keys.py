"""What an input is made of, how large that is, and the key that its result is kept under."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from asyncembed.encoders.encoder import TokenWindow

KEY_BYTES = 20

KINDS: Mapping[object, type] = {"image": bytes, "pair": tuple, "chunks": TokenWindow}
"""Types of what says all of an input, by modes, where it is not a text: a path may lead to another image later on."""


def size_of(value: Any) -> int:
    """Characters, or bytes."""
    return len(value) if type(value) is str else sum(map(len, parts_of(value)))


def parts_of(value: Any) -> Sequence[str | bytes]:
    """What an input is made of; of the same kind of input, equal ones have equal parts."""
    if type(value) is tuple:
        return value
    if type(value) is TokenWindow:
        return value.spans_bytes, value.ids_bytes, *value.texts
    return (value,)


def seed_of(words: str) -> Any:
    """A hash of all but the input, to be gone on with."""
    return blake2b(words.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES)


def digests_of(values: Sequence[Any], seeds: Sequence[Any]) -> list[bytes]:
    """The keys of inputs, each from the seed of its call."""
    return [_digest(value, seed.copy()) for value, seed in zip(values, seeds, strict=True)]


def _digest(value: Any, digest: Any) -> bytes:
    parts = parts_of(value)
    for part in parts[:-1]:
        # Its length as well: another pair may be the same text, cut elsewhere.
        digest.update(len(part).to_bytes(8, "little"))
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part)
    key: bytes = digest.digest()
    return key
