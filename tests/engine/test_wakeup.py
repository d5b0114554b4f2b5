"""Waking the loop from other threads."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import anyio
import pytest
from anyio import to_thread

from asyncembed.engine.wakeup import Loop, completion


async def test_a_post_from_another_thread_runs_on_the_loop() -> None:
    loop = Loop()
    ran_in: list[int] = []
    done = anyio.Event()

    def on_loop(word: str) -> None:
        assert word == "hello"
        ran_in.append(threading.get_ident())
        done.set()

    await to_thread.run_sync(loop.post, on_loop, "hello")
    await done.wait()
    assert ran_in == [threading.get_ident()]


async def test_a_post_from_the_loop_itself_does_not_wait_for_it() -> None:
    done = anyio.Event()
    Loop().post(done.set)
    assert not done.is_set()
    await done.wait()


async def test_a_post_returns_while_the_loop_is_busy() -> None:
    """The posting thread may be an executor's, which all its futures need."""
    loop = Loop()
    done = anyio.Event()
    poster = threading.Thread(target=loop.post, args=(done.set,))
    poster.start()
    poster.join()  # the loop can run nothing meanwhile
    assert not done.is_set()
    await done.wait()


def test_a_post_to_a_loop_that_is_gone_is_dropped(anyio_backend: str) -> None:
    async def make() -> Loop:
        return Loop()

    loop = anyio.run(make, backend=anyio_backend)
    loop.post(lambda: None)


async def test_a_loop_knows_whether_it_runs_here() -> None:
    loop = Loop()
    assert loop.is_running_here()
    assert not await to_thread.run_sync(loop.is_running_here)


def test_another_run_is_another_loop(anyio_backend: str) -> None:
    async def make() -> Loop:
        return Loop()

    async def ask() -> bool:
        return loop.is_running_here()

    loop = anyio.run(make, backend=anyio_backend)
    assert not loop.is_running_here()
    assert not anyio.run(ask, backend=anyio_backend)


async def test_futures_of_threads_are_awaited_without_a_thread_each() -> None:
    with ThreadPoolExecutor(1) as executor:
        assert [await completion(executor.submit(int, text)) for text in ("1", "2")] == [1, 2]
        with pytest.raises(ValueError, match="invalid literal"):
            await completion(executor.submit(int, "x"))


async def test_cancelling_who_waits_for_a_future_leaves_the_future_alone() -> None:
    future: Future[int] = Future()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await completion(future)
    assert scope.cancelled_caught
    future.set_result(1)
    assert await completion(future) == 1
