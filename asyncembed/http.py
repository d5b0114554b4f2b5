"""The one place that imports httpx and what it is built on: another client with their interface is a small change."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import httpcore
import httpx
from anyio import CancelScope

__all__ = ["httpcore", "httpx", "reading"]


@asynccontextmanager
async def reading(chunks: AsyncIterator[bytes]) -> AsyncGenerator[AsyncIterator[bytes]]:
    """The bytes of an answer as they come; at the end of the block, also an early one, nothing of them stays open."""
    try:
        yield chunks
    finally:
        # These are generators within generators, and closing the outer one leaves the inner ones open, to be
        # collected somewhere, sometime (trio warns of it). Their end, or an exception that passes through all of
        # them, ends them; where the body was not read to its end, a cancellation is that exception.
        with CancelScope() as scope:
            scope.cancel()
            async for _ in chunks:
                pass
