"""The one place that imports httpx: another client with its interface is a change of one line."""

import httpx

__all__ = ["httpx"]
