"""Opening and closing in any task, in any order, and by force; and Ctrl-C at any moment of it."""

import asyncio
import gc
import random
import signal
import time
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from asyncembed.embedders.text import TextEmbedding
from asyncembed.engine.pool import WorkerPool
from asyncembed.errors import ModelLoadError, StateError
from tests.support import posix, programs
from tests.support.encoders import ECHO, with_settings
from tests.support.waiting import nothing_left_behind, run_in_a_loop_of_its_own, until, worker_processes


@pytest.fixture(params=["embedder", "pool"])
def closed(request: pytest.FixtureRequest) -> TextEmbedding | WorkerPool:
    return TextEmbedding(ECHO, workers=0) if request.param == "embedder" else WorkerPool(workers=0)


async def in_a_task(function: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Call it in a task of its own, which then ends."""
    async with anyio.create_task_group() as group:
        group.start_soon(function)


def number(vector: Any) -> int:
    return int(vector[2])


# ---------------------------------------------------------------- opening and closing


async def test_one_task_opens_others_use_and_another_closes() -> None:
    async def use() -> None:
        assert number(await model.embed_query("#1")) == 1
        assert [number(vector) async for vector in model.embed(["#2", "#3"])] == [2, 3]

    async with nothing_left_behind():
        model = TextEmbedding(ECHO, workers=0)
        await in_a_task(model.open)
        await in_a_task(use)
        await in_a_task(model.aclose)


async def test_opening_gives_the_model_itself() -> None:
    model = TextEmbedding(ECHO, workers=0)
    assert await model.open() is model
    await model.aclose()


async def test_what_is_open_cannot_be_opened_again_and_stays_open(closed: TextEmbedding | WorkerPool) -> None:
    """Who opens it closes it: the first of two would take it away from the other."""
    await closed.open()
    for again in (closed.open, closed.__aenter__):
        with pytest.raises(StateError, match="is open already"):
            await again()
    assert "open" in repr(closed)
    await closed.aclose()


@pytest.mark.slow
async def test_of_two_tasks_that_open_at_once_one_does(closed: TextEmbedding | WorkerPool) -> None:
    errors: list[str] = []

    async def open_it() -> None:
        try:
            await closed.open()
        except StateError as error:
            errors.append(str(error))

    async with nothing_left_behind():
        async with anyio.create_task_group() as group:
            group.start_soon(open_it)
            group.start_soon(open_it)
        assert len(errors) == 1
        assert "is being opened" in errors[0]
        await closed.aclose()


@pytest.mark.slow
async def test_what_was_closed_can_be_opened_again() -> None:
    async with nothing_left_behind():
        model = TextEmbedding(ECHO, workers=0)
        for n in range(3):
            await model.open()
            assert number(await model.embed_query(f"#{n}")) == n
            await model.aclose()
            async with model:
                assert number(await model.embed_query(f"#{n}")) == n


async def test_closing_what_is_not_open_does_nothing(closed: TextEmbedding | WorkerPool) -> None:
    """As where a start-up hook failed, and the hook for the end runs all the same."""
    await closed.aclose()
    await closed.open()
    await closed.aclose()
    await closed.aclose()


async def test_whoever_closes_waits_for_the_end(tmp_path: Path) -> None:
    model = await TextEmbedding(with_settings(log=str(tmp_path / "log")), workers=0).open()

    async def close() -> None:
        await model.aclose()
        assert not any(task.name == "asyncembed-TextEmbedding" for task in anyio.get_running_tasks())

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(close)


async def test_whoever_opens_waits_for_a_closing_that_runs() -> None:
    """As where a model is swapped for another one, and back."""
    async with nothing_left_behind():
        model = await TextEmbedding(ECHO, workers=0).open()
        async with anyio.create_task_group() as group:
            group.start_soon(model.aclose)
            for _ in range(2):  # trio shuffles the tasks of each turn
                await anyio.lowlevel.checkpoint()
            await model.open()
            assert number(await model.embed_query("#1")) == 1
        assert number(await model.embed_query("#2")) == 2
        await model.aclose()


@pytest.mark.slow
async def test_closing_gives_up_an_opening(tmp_path: Path) -> None:
    log = tmp_path / "log"
    model = TextEmbedding(with_settings(load_log=str(log), hang="yes"), workers=1)

    async def open_it() -> None:
        with pytest.raises(StateError, match="was closed while it was being opened"):
            await model.open()

    async with nothing_left_behind(), anyio.create_task_group() as group:
        group.start_soon(open_it)
        await until(log.exists)
        with pytest.raises(StateError, match="is being opened"):
            await model.embed_query("too early")
        await model.aclose()


async def test_what_cannot_be_opened_says_why_and_can_be_tried_again(tmp_path: Path) -> None:
    refuse = tmp_path / "refuse"
    refuse.touch()
    model = TextEmbedding(with_settings(refuse_if=str(refuse)), workers=0)
    async with nothing_left_behind():
        for _ in range(2):
            with pytest.raises(ModelLoadError, match="told to refuse"):
                await model.open()
            with pytest.raises(StateError):
                await model.embed_query("too early")
        refuse.unlink()
        await model.open()
        await model.aclose()


async def test_what_is_not_open_says_how_to_open_it() -> None:
    model = TextEmbedding(ECHO, workers=0)
    for words in ("is not open", "was closed"):
        with pytest.raises(StateError, match=rf"{words}: use it inside `async with`, or after `await model.open\(\)`"):
            await model.embed_query("a")
        with pytest.raises(StateError, match=words):
            model.embed(["a"])
        with pytest.raises(StateError, match=words):
            await model.token_count(["a"])
        await model.open()
        await model.aclose()
    with pytest.raises(StateError, match=r"or after `await pool.open\(\)`"):
        await TextEmbedding(ECHO, pool=WorkerPool(workers=0)).open()


# ---------------------------------------------------------------- tasks that end and are cancelled


async def test_a_model_outlives_the_scope_that_it_was_opened_in() -> None:
    async with nothing_left_behind():
        model = TextEmbedding(ECHO, workers=0)
        with anyio.CancelScope() as scope:
            await model.open()
            scope.cancel()
            await anyio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert number(await model.embed_query("#1")) == 1
        await model.aclose()


async def test_a_group_of_tasks_ends_although_one_of_them_opened_a_model() -> None:
    async with nothing_left_behind():
        model = TextEmbedding(ECHO, workers=0)
        with pytest.raises(ExceptionGroup):
            async with anyio.create_task_group() as group:
                group.start_soon(model.open)
                await until(lambda: "not open" not in repr(model))
                raise ZeroDivisionError
        assert number(await model.embed_query("#1")) == 1
        await model.aclose()


async def test_a_stack_may_be_left_in_another_task() -> None:
    """As hooks for the start and the end of an app do, and fixtures."""
    async with nothing_left_behind():
        stack, model = AsyncExitStack(), TextEmbedding(ECHO, workers=0)

        async def enter() -> None:
            await stack.enter_async_context(model)

        await in_a_task(enter)
        assert number(await model.embed_query("#1")) == 1
        await in_a_task(stack.aclose)


@pytest.mark.slow
async def test_a_cancelled_opening_leaves_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    model = TextEmbedding(with_settings(load_log=str(log), hang="yes"), workers=2)
    async with nothing_left_behind():
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(model.open)
                await until(log.exists)
                scope.cancel()
        assert not worker_processes()
        with pytest.raises(StateError, match="was closed"):
            await model.embed_query("a")


@pytest.mark.slow
async def test_a_cancelled_closing_closes_all_the_same() -> None:
    async with nothing_left_behind():
        model = await TextEmbedding(ECHO, workers=2).open()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await model.aclose()
        assert scope.cancelled_caught
        assert not worker_processes()
        await model.open()
        await model.aclose()


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncios_own_cancellation_of_opening_and_closing_leaves_nothing(tmp_path: Path) -> None:
    """It comes once, whatever is shielded, as from `asyncio.wait_for`."""
    log = tmp_path / "log"
    model = TextEmbedding(with_settings(load_log=str(log), load_when=str(tmp_path / "go")), workers=1)
    async with nothing_left_behind():
        opening = asyncio.create_task(model.open())
        await until(log.exists)
        opening.cancel()
        with suppress(asyncio.CancelledError):
            await opening
        assert opening.cancelled()
        assert not worker_processes()

        (tmp_path / "go").touch()
        await model.open()
        closing = asyncio.create_task(model.aclose())
        await asyncio.sleep(0)
        for _ in range(2):
            closing.cancel()
            await asyncio.sleep(0)
        with suppress(asyncio.CancelledError):
            await closing
        assert closing.cancelled()
        assert not worker_processes()


@pytest.mark.slow
async def test_the_exceptions_of_a_block_come_out_as_they_are(closed: TextEmbedding | WorkerPool) -> None:
    async with nothing_left_behind():
        with pytest.raises(ZeroDivisionError):
            async with closed:
                raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError), anyio.CancelScope() as scope:
            async with closed:
                scope.cancel()
                raise ZeroDivisionError
        with anyio.CancelScope() as scope:
            async with closed:
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught


# ---------------------------------------------------------------- what runs meanwhile


def endless() -> Iterator[str]:
    while True:
        yield "#1"


async def endless_awaiting() -> AsyncIterator[str]:
    while True:
        await anyio.lowlevel.checkpoint()
        yield "#1"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("shared", [False, True], ids=["its own workers", "a pool"])
async def test_what_runs_when_a_model_is_closed_gets_an_error(workers: int, shared: bool, gate: Path) -> None:
    ended: list[str] = []
    hanging = f"wait:{gate}"

    async def fails(name: str, call: Callable[[], Coroutine[Any, Any, object]]) -> None:
        with pytest.raises(StateError, match="closed"):
            await call()
        ended.append(name)

    async def consume(source: Any) -> None:
        async for _ in model.embed(source):
            pass

    async with nothing_left_behind(), AsyncExitStack() as stack:
        pool = await stack.enter_async_context(WorkerPool(workers=workers)) if shared else None
        model = TextEmbedding(ECHO, pool=pool) if pool is not None else TextEmbedding(ECHO, workers=workers)
        await model.open()
        kept = model.embed(["#1"] * 9)
        assert number(await anext(kept)) == 1
        with anyio.fail_after(15):
            async with anyio.create_task_group() as group:
                group.start_soon(fails, "list", lambda: consume(["#1", hanging]))
                group.start_soon(fails, "iterator", lambda: consume(endless()))
                group.start_soon(fails, "async iterator", lambda: consume(endless_awaiting()))
                group.start_soon(fails, "collect", lambda: model.embed([hanging]).collect())
                group.start_soon(fails, "documents", lambda: model.embed_documents([hanging] * 3))
                for _ in range(100):
                    group.start_soon(fails, "query", lambda: model.embed_query(hanging))
                await until(lambda: model.stats().queued > 50)
                await model.aclose()
            with pytest.raises(StateError, match="closed"):
                while True:
                    await anext(kept)
        assert len(ended) == 105
        gate.touch()


async def test_a_pool_may_be_closed_before_its_models() -> None:
    async with nothing_left_behind():
        pool = await WorkerPool(workers=0).open()
        model = await TextEmbedding(ECHO, pool=pool).open()
        await pool.aclose()
        with pytest.raises(StateError, match="pool"):
            await model.embed_query("a")
        with pytest.raises(StateError, match="pool"):
            await model.embed(endless()).collect()
        await model.aclose()
        await pool.open()
        await model.open()
        assert number(await model.embed_query("#1")) == 1
        await model.aclose()
        await pool.aclose()


async def test_a_source_may_close_the_model_that_it_feeds() -> None:
    async def source() -> AsyncIterator[str]:
        yield "#1"
        await model.aclose()
        yield "#2"

    async def nested() -> AsyncIterator[str]:
        yield "#1"
        await in_a_task(model.aclose)
        yield "#2"

    model = TextEmbedding(ECHO, workers=0)
    async with nothing_left_behind():
        for feed in (source, nested):
            await model.open()
            with anyio.fail_after(10), pytest.raises(StateError, match="closed"):
                await model.embed(feed()).collect()
            await model.aclose()


async def test_a_model_is_closed_on_its_own_loop_only(anyio_backend: str) -> None:
    model = await TextEmbedding(ECHO, workers=0).open()

    async def elsewhere() -> None:
        for call in (model.open, model.aclose):
            with pytest.raises(StateError, match="open already|another event loop"):
                await call()

    await anyio.to_thread.run_sync(run_in_a_loop_of_its_own, elsewhere, anyio_backend)
    assert number(await model.embed_query("#1")) == 1
    await model.aclose()


# ---------------------------------------------------------------- what is forgotten


def drop(holder: list[Any]) -> None:
    holder.clear()
    gc.collect()


@pytest.mark.slow
async def test_a_model_that_is_dropped_ends_and_warns_once() -> None:
    async with nothing_left_behind():
        model = await TextEmbedding(ECHO, workers=0).open()
        assert number(await model.embed_query("#1")) == 1
        assert number(await anext(model.embed(["#2", "#3"]))) == 2
        holder = [model]
        del model
        with pytest.warns(ResourceWarning, match="a TextEmbedding was dropped while it was open") as caught:
            drop(holder)
        assert len(caught) == 1


async def test_what_was_closed_is_dropped_without_a_word() -> None:
    for model in (TextEmbedding(ECHO, workers=0), WorkerPool(workers=0)):
        await model.open()
        await model.aclose()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del model
        gc.collect()


@pytest.mark.slow
async def test_a_stream_keeps_its_model_open() -> None:
    """Nobody else may hold it: `(await TextEmbedding(...).open()).embed(texts)`."""
    async with nothing_left_behind():
        stream = (await TextEmbedding(ECHO, workers=0).open()).embed([f"#{i}" for i in range(9)])
        paired = stream.with_inputs()
        del stream
        gc.collect()
        inputs, results = await paired.collect()
        assert [number(result) for result in results] == list(range(9)) == [int(text[1:]) for text in inputs]
        holder = [paired]
        del paired
        with pytest.warns(ResourceWarning, match="TextEmbedding was dropped"):
            drop(holder)


FORGETTING = """
import sys
import anyio
from asyncembed.embedders.text import TextEmbedding
from asyncembed.engine.pool import WorkerPool
from tests.support.encoders import ECHO
from tests.support.waiting import worker_processes

pool = WorkerPool(workers=1)
models = [TextEmbedding(ECHO, workers=2), TextEmbedding(ECHO, pool=pool)]

async def main():
    await pool.open()
    for model in models:
        await model.open()
        print((await model.embed_query("#1"))[2], end=" ")
    stream = models[0].embed(f"#{i}" for i in range(10**9))
    print((await anext(stream))[2], end=" ")
    main.stream = stream

for _ in range(2):
    anyio.run(main, backend=sys.argv[1])
    print(len(worker_processes()), flush=True)
"""


@pytest.mark.slow
def test_workers_end_with_the_loop_and_the_next_loop_may_open_again(tmp_path: Path, anyio_backend: str) -> None:
    done = programs.run(FORGETTING, tmp_path, anyio_backend)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1.0 1.0 0.0 0\n" * 2, "")


CLOSING_THE_LOOP = """
import asyncio
from asyncembed.embedders.text import TextEmbedding
from tests.support.encoders import ECHO
from tests.support.waiting import worker_processes
import psutil

model = TextEmbedding(ECHO, workers=2)
for _ in range(2):
    loop = asyncio.new_event_loop()
    loop.run_until_complete(model.open())
    workers = worker_processes()
    print(len(workers), loop.run_until_complete(model.embed_query("#1"))[2])
    loop.close()

asyncio.run(model.aclose())
print(len(psutil.wait_procs(workers, timeout=10)[1]))
"""


@pytest.mark.slow
def test_a_loop_that_was_closed_under_a_model_does_not_keep_it(tmp_path: Path) -> None:
    """As old programs do, which run a loop by hand and cancel nothing."""
    done = programs.run(CLOSING_THE_LOOP, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 1.0\n" * 2 + "0\n", "")


# ---------------------------------------------------------------- hooks and fixtures

FIXTURES = """
import pytest
import pytest_asyncio
from asyncembed.embedders.text import TextEmbedding
from asyncembed.engine.pool import WorkerPool
from tests.support.encoders import ECHO

@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def opened():
    model = TextEmbedding(ECHO, workers=0)
    await model.open()
    yield model
    await model.aclose()

@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def entered():
    async with WorkerPool(workers=1) as pool, TextEmbedding(ECHO, pool=pool) as model:
        yield model

@pytest_asyncio.fixture
async def own():
    async with TextEmbedding(ECHO, workers=0) as model:
        yield model

@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("number", range(2))
async def test_models_of_many_tests(opened, entered, number):
    for model in (opened, entered):
        assert (await model.embed_query(f"#{number}"))[2] == number
        assert [vector[2] async for vector in model.embed([f"#{number}"])] == [number]

@pytest.mark.asyncio
async def test_a_model_of_one_test(own):
    assert (await own.embed_query("#1"))[2] == 1
"""


@pytest.mark.slow
def test_fixtures_of_pytest_asyncio_open_in_one_task_and_close_in_another(tmp_path: Path) -> None:
    (tmp_path / "test_models.py").write_text(FIXTURES, encoding="utf-8")
    options = ["-q", "-p", "no:cacheprovider", "-W", "error", "-o", "asyncio_default_fixture_loop_scope=function"]
    done = programs.run(f"import sys, pytest; sys.exit(pytest.main({[*options, 'test_models.py']}))", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    assert "error" not in done.stdout


HOOKS = """
import asyncio
from asyncembed.embedders.text import TextEmbedding
from asyncembed.engine.pool import WorkerPool
from tests.support.encoders import ECHO
from tests.support.waiting import worker_processes

pool = WorkerPool(workers=1)
model = TextEmbedding(ECHO, pool=pool)

async def on_startup():
    await pool.open()
    await model.open()

async def on_shutdown():
    await model.aclose()
    await pool.aclose()

async def handle(number):
    return (await model.embed_query(f"#{number}"))[2]

async def serve():
    await asyncio.create_task(on_startup())
    print(sum(await asyncio.gather(*map(handle, range(10)))), len(worker_processes()))
    await asyncio.create_task(on_shutdown())
    print(len(worker_processes()))

asyncio.run(serve())
"""


@pytest.mark.slow
def test_a_pair_of_hooks_opens_and_closes(tmp_path: Path) -> None:
    done = programs.run(HOOKS, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "45.0 1\n0\n", "")


# ---------------------------------------------------------------- Ctrl-C

SWEEP = """
import dis, os, signal, sys, threading
import anyio
from asyncembed.embedders.text import TextEmbedding
from tests.support.encoders import ECHO

backend, first, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

class CtrlC:
    '''Comes at the n-th moment at which the interpreter looks for signals: after a call, at a jump back.'''
    def __init__(self, n):
        self.left, self.before = n, {}

    def __call__(self, frame, event, argument):
        frame.f_trace_opcodes = True
        if event == "opcode":
            code, at = frame.f_code.co_code, frame.f_lasti
            name, number = self.before.get(id(frame), ("", 0))
            self.before[id(frame)] = dis.opname[code[at]], code[at + 1]
            if name.startswith("CALL") or name == "JUMP_BACKWARD" or (name == "RESUME" and number < 2):
                self.left -= 1
                if self.left == 0:
                    sys.settrace(None)
                    signal.raise_signal(signal.SIGINT)
                    return None
        return self

async def main(ctrl_c):
    sys.settrace(ctrl_c)
    async with TextEmbedding(ECHO, workers=0) as model:
        sys.settrace(None)
        await model.embed_query("a")

def give_up(where):
    print("hangs", where, flush=True)
    os._exit(1)

n = first
while True:
    ctrl_c = CtrlC(n)
    watch = threading.Timer(20, give_up, [n])
    watch.start()
    try:
        anyio.run(main, ctrl_c, backend=backend)
    except KeyboardInterrupt:
        pass
    except BaseException as error:
        print(n, type(error).__name__, error)
    finally:
        sys.settrace(None)
        watch.cancel()
    if ctrl_c.left > 0:
        break
    n += step
print("done after", n > 1000)
"""


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 45, 89])
def test_ctrl_c_at_any_moment_of_opening_ends_the_program(first: int, tmp_path: Path, anyio_backend: str) -> None:
    """On trio it may come between any two instructions; tasks were left then that nobody ran, and nobody ended."""
    done = programs.run(SWEEP, tmp_path, anyio_backend, str(first), "131")
    assert done.stdout == "done after True\n"


OPENING = """
import sys
import anyio
from asyncembed.embedders.text import TextEmbedding
from tests.support.encoders import ECHO

async def main():
    print("opens", flush=True)
    async with TextEmbedding(ECHO, workers=2):
        await anyio.sleep_forever()

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.posix
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_ctrl_c_while_workers_start_ends_them_too(seed: int, tmp_path: Path, anyio_backend: str) -> None:
    program = programs.start(OPENING, tmp_path, anyio_backend, new_session=True)
    assert program.stdout is not None
    assert program.stdout.readline() == "opens\n"
    time.sleep(random.Random(seed).uniform(0, 0.6))  # whatever it is doing by then
    workers = worker_processes(program.pid)
    posix.press_ctrl_c(program.pid)
    _, errors = program.communicate(timeout=30)
    assert program.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
