"""The one place that imports httpx and what it is built on: another client with their interface is a small change."""

from importlib.metadata import PackageNotFoundError, version

import httpcore
import httpx

__all__ = ["httpcore", "httpx", "own_version"]


def own_version() -> str:
    """This package's version, which a server is told; "unknown" where it runs without being installed."""
    try:
        return version("asyncembed")
    except PackageNotFoundError:  # from a directory on the path, or out of a zip
        return "unknown"
