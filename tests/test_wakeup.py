"""Waking the loop from other threads."""

import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import anyio
import anyio.lowlevel
import pytest
from anyio import to_thread

from asyncembed.errors import StateError
from asyncembed.wakeup import Loop, Turnstile, completion
from tests.support.waiting import run_in_a_loop_of_its_own


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


# ---------------------------------------------------------------- who begins in which turn


async def test_a_thousand_callers_begin_some_at_a_time_and_in_their_order() -> None:
    turnstile = Turnstile(Loop(), per_turn=10)
    turn = 0
    began: list[tuple[int, int]] = []

    async def count_turns() -> None:
        nonlocal turn
        while True:
            await anyio.lowlevel.checkpoint()
            turn += 1

    async def call(number: int) -> None:
        await turnstile.enter()
        began.append((number, turn))

    async with anyio.create_task_group() as counting:
        counting.start_soon(count_turns)
        async with anyio.create_task_group() as group:
            for number in range(1000):
                group.start_soon(call, number)
        counting.cancel_scope.cancel()
    assert sorted(number for number, _ in began) == list(range(1000))
    # A turn of the counter may take a group more, as tasks run in any order within a turn.
    counts = Counter(turn for _, turn in began)
    assert max(counts.values()) <= 20
    assert len(counts) >= 50


async def test_callers_who_come_one_after_another_need_not_wait() -> None:
    turnstile = Turnstile(Loop(), per_turn=2)
    for _ in range(50):
        await turnstile.enter()


async def test_a_caller_who_gives_up_waiting_holds_up_nobody() -> None:
    turnstile = Turnstile(Loop(), per_turn=1)
    passed: list[int] = []

    async def call(number: int) -> None:
        await turnstile.enter()
        passed.append(number)

    async with anyio.create_task_group() as group:
        await turnstile.enter()
        with anyio.CancelScope() as scope:
            scope.cancel()
            with suppress(anyio.get_cancelled_exc_class()):
                await turnstile.enter()
        for number in range(5):
            group.start_soon(call, number)
    assert sorted(passed) == list(range(5))


async def test_nobody_waits_on_another_loop_for_a_turn(anyio_backend: str) -> None:
    """It would never come there."""
    turnstile = Turnstile(Loop(), per_turn=1)

    async def elsewhere() -> None:
        with anyio.fail_after(20), pytest.raises(StateError, match="another event loop"):
            while True:
                await turnstile.enter()

    await to_thread.run_sync(run_in_a_loop_of_its_own, elsewhere, anyio_backend)
