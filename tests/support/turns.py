"""Whether an event loop goes on during a call."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from asyncembed.testing import Fakes

TURNS = 20

T = TypeVar("T")


async def loop_goes_on_during(call: Callable[[], Awaitable[T]], fakes: Fakes) -> T:
    """What the call gives, whose batches take an hour unless the loop goes on: one that blocks it never comes back."""
    fakes.seconds = 3600.0
    turns, results = 0, list[T]()

    async def run() -> None:
        results.append(await call())

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        while not results:
            turns += 1
            if turns == TURNS:
                fakes.seconds = 0.0
            await anyio.sleep(0.001)
    assert turns >= TURNS
    return results[0]
