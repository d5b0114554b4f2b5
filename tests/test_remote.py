"""Calls from one event loop to another, and from threads without one."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import product
from traceback import extract_tb
from types import FrameType
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint, current_token

from asyncembed.errors import StateError, UsageError
from asyncembed.remote import Remote, _acquire
from tests.support import posix


@contextmanager
def a_loop_elsewhere(backend: str) -> Iterator[Remote]:
    """A loop in a thread, and the way to it; whatever runs there is cancelled at the end."""
    ready = threading.Event()
    remotes: list[Remote] = []
    ends: list[Callable[[], object]] = []

    async def serve() -> None:
        end = anyio.Event()
        async with anyio.create_task_group() as group:
            remotes.append(Remote(group))
            ends.append(end.set)
            ready.set()
            await end.wait()
            remotes[0].close()
            group.cancel_scope.cancel()

    with ThreadPoolExecutor(1) as executor:
        ended = executor.submit(lambda: anyio.run(serve, backend=backend))
        assert ready.wait(10)
        try:
            yield remotes[0]
        finally:
            remotes[0].loop.post(ends[0])
            ended.result(10)


PAIRS = list(product(["asyncio", "trio"], repeat=2))


@pytest.mark.parametrize(("here", "there"), PAIRS)
def test_a_call_runs_on_the_other_loop_and_brings_what_it_returns(here: str, there: str) -> None:
    async def where(word: str) -> tuple[str, int, str]:
        await checkpoint()
        return word, threading.get_ident(), type(current_token().native_token).__module__

    async def main(remote: Remote) -> None:
        word, thread, kind = await remote.call(where, "hello")
        assert word == "hello"
        assert thread != threading.get_ident()
        assert ("trio" in kind) == (there == "trio")

    with a_loop_elsewhere(there) as remote:
        anyio.run(main, remote, backend=here)


@pytest.mark.slow
@pytest.mark.parametrize(("here", "there"), PAIRS)
def test_a_caller_that_is_cancelled_cancels_the_call_and_waits_for_its_end(here: str, there: str) -> None:
    ended: list[str] = []

    async def stay() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await checkpoint()
            ended.append("ended")

    async def main(remote: Remote) -> None:
        with anyio.move_on_after(0.05) as scope:
            await remote.call(stay)
        assert scope.cancelled_caught
        assert ended == ["ended"]
        # Cancelled before it could begin.
        with anyio.CancelScope() as scope:
            scope.cancel()
            await remote.call(stay)
        assert scope.cancelled_caught

    with a_loop_elsewhere(there) as remote:
        anyio.run(main, remote, backend=here)


async def fail() -> None:
    await checkpoint()
    raise LookupError("no such thing")


async def test_an_error_comes_with_its_own_traceback(anyio_backend: str) -> None:
    with a_loop_elsewhere(anyio_backend) as remote:
        with pytest.raises(LookupError, match="no such thing") as caught:
            await remote.call(fail)
        assert extract_tb(caught.tb)[-1].name == "fail"
        with pytest.raises(LookupError) as caught:
            await anyio.to_thread.run_sync(remote.call_blocking, fail)
        assert extract_tb(caught.tb)[-1].name == "fail"


async def test_what_ends_a_program_reaches_the_caller_and_no_other_call(anyio_backend: str) -> None:
    async def leave() -> None:
        raise SystemExit(3)

    async def one() -> int:
        await checkpoint()
        return 1

    with a_loop_elsewhere(anyio_backend) as remote:
        with pytest.raises(SystemExit):
            await remote.call(leave)
        assert await remote.call(one) == 1


def test_a_call_that_raises_a_cancellation_of_its_own_cancels_nobody_else() -> None:
    """As a source may that waits for a task of its program's."""

    async def cancelled() -> None:
        raise asyncio.CancelledError("its own")

    async def one() -> int:
        return 1

    with a_loop_elsewhere("asyncio") as remote:
        with pytest.raises(asyncio.CancelledError, match="its own"):
            remote.call_blocking(cancelled)
        assert remote.call_blocking(one) == 1


def test_a_call_whose_task_is_cancelled_by_its_loop_says_so() -> None:
    async def cancelled() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await anyio.sleep_forever()

    with a_loop_elsewhere("asyncio") as remote, pytest.raises(StateError, match="closed before it had ended"):
        remote.call_blocking(cancelled)


async def test_a_call_on_the_loop_itself_is_a_plain_await() -> None:
    async with anyio.create_task_group() as group:
        remote = Remote(group)
        task = anyio.get_current_task().id

        async def which() -> int:
            return anyio.get_current_task().id

        assert await remote.call(which) == task
        assert remote.is_current_thread
        with pytest.raises(UsageError, match="await the asynchronous call"):
            remote.call_blocking(which)


def test_a_finalizer_may_call_between_any_two_lines_of_a_call(anyio_backend: str) -> None:
    """The garbage collector may come at any time, with objects that close what they have."""

    async def one() -> int:
        return 1

    found: list[int] = []

    def finalize(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename != Remote.call_blocking.__code__.co_filename:
            return None
        if event == "line":
            found.append(remote.call_blocking(one))  # which is not traced
        return finalize

    def call() -> None:
        sys.settrace(finalize)
        try:
            remote.call_blocking(one)
        finally:
            sys.settrace(None)

    with a_loop_elsewhere(anyio_backend) as remote:
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive(), sys._current_frames()[thread.ident or 0]
    assert len(found) > 10


def test_ctrl_c_on_the_way_to_the_loop_waits_for_nothing_that_never_comes_there(
    anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def one() -> int:
        return 1

    def interrupted(line: int) -> bool:
        """Whether a call is, where Ctrl-C comes before that line."""

        def interrupt(frame: FrameType, event: str, _: object) -> Any:
            if event == "line" and frame.f_lineno == line:
                raise KeyboardInterrupt
            return interrupt if frame.f_code is Remote._submit.__code__ else None

        before = sys.gettrace()
        sys.settrace(interrupt)
        try:
            return remote.call_blocking(one) != 1
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)

    monkeypatch.setattr("asyncembed.remote.CANCEL_GRACE_SECONDS", threading.TIMEOUT_MAX)
    lines = {line for _, _, line in Remote._submit.__code__.co_lines() if line is not None}
    with a_loop_elsewhere(anyio_backend) as remote:
        assert [interrupted(line) for line in sorted(lines)].count(True) > 3


def test_ctrl_c_when_the_call_has_just_ended_waits_for_nothing(
    anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def one() -> int:
        return 1

    def interrupt(frame: FrameType, event: str, _: object) -> Any:
        if event == "return" and frame.f_code is _acquire.__code__:
            raise KeyboardInterrupt
        return interrupt if frame.f_code is _acquire.__code__ else None

    monkeypatch.setattr("asyncembed.remote.CANCEL_GRACE_SECONDS", threading.TIMEOUT_MAX)
    before = sys.gettrace()
    with a_loop_elsewhere(anyio_backend) as remote:
        sys.settrace(interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                remote.call_blocking(one)
        finally:
            sys.settrace(before)


def test_a_call_after_closing_is_refused(anyio_backend: str) -> None:
    async def one() -> int:
        return 1

    with a_loop_elsewhere(anyio_backend) as remote:
        assert remote.call_blocking(one) == 1
    with pytest.raises(StateError, match="closed"):
        remote.call_blocking(one)


def test_a_call_that_runs_when_its_loop_is_closed_says_so(anyio_backend: str) -> None:
    begun = threading.Event()

    async def stay() -> None:
        begun.set()
        await anyio.sleep_forever()

    with ThreadPoolExecutor(1) as executor:
        with a_loop_elsewhere(anyio_backend) as remote:
            call = executor.submit(remote.call_blocking, stay)
            assert begun.wait(10)
        with pytest.raises(StateError, match="closed before it had ended"):
            call.result(10)


def test_a_call_that_the_loop_has_not_heard_of_when_it_is_closed_says_so(anyio_backend: str) -> None:
    async def one() -> int:
        return 1

    with a_loop_elsewhere(anyio_backend) as remote, ThreadPoolExecutor(1) as executor:
        busy, go_on = threading.Event(), threading.Event()

        def keep_busy() -> None:
            busy.set()
            assert go_on.wait(10)
            remote.close()

        remote.loop.post(keep_busy)
        assert busy.wait(10)
        call = executor.submit(remote.call_blocking, one)
        while not remote._waiting:
            pass
        go_on.set()
        with pytest.raises(StateError, match="closed before it had ended"):
            call.result(10)


@pytest.mark.parametrize(("here", "there"), PAIRS)
def test_a_call_has_the_context_of_its_caller_but_for_the_kind_of_event_loop(here: str, there: str) -> None:
    """A trace goes on in it, say; what it changes stays with it."""
    variable = ContextVar("variable", default="theirs")

    async def read() -> tuple[str, str]:
        found = variable.get()
        variable.set("its own")
        return found, kind_of_loop()

    async def main(remote: Remote) -> None:
        variable.set("mine")
        for _ in range(2):
            assert await remote.call(read) == ("mine", there)
            assert variable.get() == "mine"
        assert kind_of_loop() == here

    def kind_of_loop() -> str:
        return "trio" if "trio" in type(current_token().native_token).__module__ else "asyncio"

    with a_loop_elsewhere(there) as remote:
        anyio.run(main, remote, backend=here)
        variable.set("a thread's")
        assert remote.call_blocking(read) == ("a thread's", there)


def test_a_thread_calls_a_loop_that_is_not_anyios_own() -> None:
    """Where sniffio is installed, as by many a framework, nothing outside of a task says which kind of loop it is."""

    async def one() -> int:
        await checkpoint()
        return 1

    async def main() -> int:
        async with anyio.create_task_group() as group:
            remote = Remote(group)
            result = await asyncio.to_thread(remote.call_blocking, one)
            remote.close()
        return result

    assert asyncio.run(main()) == 1


@pytest.mark.slow
@pytest.mark.posix
def test_a_forked_child_cannot_call_its_parents_loop(anyio_backend: str) -> None:
    async def one() -> int:
        return 1

    with a_loop_elsewhere(anyio_backend) as remote:
        child = posix.fork()
        if child == 0:
            try:
                remote.call_blocking(one)
            except StateError as error:
                os._exit(7 if "forked" in str(error) else 1)
            os._exit(2)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7
