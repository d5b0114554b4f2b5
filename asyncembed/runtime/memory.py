"""Memory that nobody uses any more, given back to the system."""

import ctypes
import sys


def release_free_memory() -> None:
    """Have the C library return its free pages, where it is one that keeps them (glibc).

    Loading a graph leaves about the size of its weights behind: onnxruntime packs them anew and frees the originals,
    and glibc keeps what was freed. With a model of 350 MB a worker takes 440 MB afterwards instead of 660.
    """
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
