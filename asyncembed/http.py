"""The one place that imports httpx and what it is built on: another client with their interface is a small change."""

import httpcore
import httpx

__all__ = ["httpcore", "httpx"]
