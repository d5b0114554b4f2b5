"""The one place that imports httpx: another client with its interface is a change of one line."""

from importlib.metadata import PackageNotFoundError, version

import httpx

__all__ = ["httpx", "own_version"]


def own_version() -> str:
    """This package's version, which a server is told; "unknown" where it runs without being installed."""
    try:
        return version("asyncembed")
    except PackageNotFoundError:  # from a directory on the path, or out of a zip
        return "unknown"
