"""Where vectors that were computed once are kept: what a cache is."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from asyncembed.errors import OptionError

if TYPE_CHECKING:
    from asyncembed.reuse.cache_file import VectorCacheFile


@runtime_checkable
class VectorCache(Protocol):
    """Keeps bytes under keys, for `cache=`: any place will do that several models, or machines, can reach.

    What it gives back need not be right: each value has a checksum, and one that is damaged is computed again. What it
    raises is logged, and inputs are computed as if it were empty, for a minute.
    """

    async def get(self, keys: Sequence[bytes], /) -> Sequence[bytes | None]:
        """What is kept under each of these keys (of 20 bytes), or None, in their order."""
        ...

    async def put(self, entries: Sequence[tuple[bytes, bytes]], /) -> None:
        """Keep values, each under its key. It may forget any of them at any time."""
        ...


CacheChoice: TypeAlias = str | os.PathLike[str] | VectorCache
"""As `cache=` takes it."""


def as_cache(given: CacheChoice) -> "tuple[VectorCache, VectorCacheFile | None]":
    """The cache; and if it was given as a path, the file, for whoever asked to close it."""
    if not isinstance(given, str | os.PathLike):
        return given, None
    from asyncembed.reuse.cache_file import VectorCacheFile

    file = VectorCacheFile(given)
    return file, file


def check_cache(cache: object) -> None:
    """Raise `OptionError` for what cannot be a cache."""
    if cache is None or isinstance(cache, str | os.PathLike | VectorCache):
        return
    raise OptionError(
        f"cache must be a path, or have the methods `async get(keys)` and `async put(entries)`; got {cache!r}"
    )
