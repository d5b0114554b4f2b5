"""Opening, one-item calls, closing, and misuse: what all embedders share."""

import logging
import re
from collections import Counter
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal, cast

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from asyncembed import (
    ImageEmbedding,
    LateInteractionMultimodalEmbedding,
    LateInteractionTextEmbedding,
    SparseTextEmbedding,
    TextCrossEncoder,
)
from asyncembed.embedders.base import CALLS_PER_TURN
from asyncembed.embedders.text import TextEmbedding
from asyncembed.engine import pool as pool_module
from asyncembed.engine.pool import WorkerPool
from asyncembed.errors import InputError, OptionError, OverloadedError, StateError
from tests.support.encoders import ECHO, with_settings
from tests.support.every_encoder import WRITE
from tests.support.images import picture
from tests.support.models import TEXTS, write_model
from tests.support.waiting import nothing_left_behind, run_in_a_loop_of_its_own, until


@pytest.fixture(scope="module")
async def pool(anyio_backend: str) -> AsyncGenerator[WorkerPool]:
    async with WorkerPool(workers=2) as pool:
        yield pool


@pytest.fixture(scope="module")
async def model(pool: WorkerPool) -> AsyncGenerator[TextEmbedding]:
    async with TextEmbedding(ECHO, pool=pool) as model:
        yield model


# ---------------------------------------------------------------- calls


@pytest.mark.slow
async def test_a_query_gives_one_vector(model: TextEmbedding) -> None:
    vector = await model.embed_query("#5")
    assert vector.dtype == np.float32
    assert vector.shape == (3,)
    assert vector[2] == 5
    assert vector.flags.owndata


@pytest.mark.slow
async def test_documents_give_a_matrix(model: TextEmbedding) -> None:
    matrix = await model.embed_documents([f"#{i}" for i in range(40)])
    assert matrix[:, 2].tolist() == list(range(40))


@pytest.mark.slow
async def test_only_a_text_alone_is_counted_before_bulk_work(gate: Path, tmp_path: Path) -> None:
    """A corpus waits in the lane of the streams, as long as it may be.

    In one thread: of several workers one may go on while another, which has the text, does not get its turn.
    """
    log = tmp_path / "log"
    async with TextEmbedding(with_settings(log=str(log)), workers=0, max_batch_size=1) as model:
        async with anyio.create_task_group() as group:
            group.start_soon(model.token_count, [f"corpus #{i} wait:{gate}" for i in range(60)])
            await until(lambda: model.stats().queued_bulk >= 50)
            assert model.stats().queued_interactive == 0
            group.start_soon(model.token_count, "alone #1")
            await until(lambda: model.stats().queued + model.stats().in_flight == 61)
            gate.touch()
    order = [line.split()[1] for line in log.read_text("utf-8").splitlines()]
    assert order.index("alone") <= 10  # before it only what the workers had by then


@pytest.mark.slow
async def test_a_thousand_queries_at_once_leave_turns_to_others(model: TextEmbedding) -> None:
    """Some begin in each turn of the loop, and whoever else wants it has it in between."""
    turns = 0
    begun_at: dict[int, int] = {}

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async def ask(number: int) -> None:
        await model._turn()
        begun_at[number] = turns
        assert (await model.embed_query(f"#{number}"))[2] == number

    async with anyio.create_task_group() as counting:
        counting.start_soon(count_turns)
        async with anyio.create_task_group() as group:
            for number in range(1000):
                group.start_soon(ask, number)
        counting.cancel_scope.cancel()
    assert max(Counter(begun_at.values()).values()) <= 2 * CALLS_PER_TURN


@pytest.mark.slow
async def test_a_query_that_is_no_text_names_no_index(model: TextEmbedding) -> None:
    with pytest.raises(InputError, match="expected a str, got int") as caught:
        await model.embed_query(cast(Any, 5))
    assert caught.value.index is None
    with pytest.raises(InputError, match="refused") as caught:
        await model.embed_query("bad")
    assert caught.value.index is None


@pytest.mark.slow
async def test_a_subclass_of_str_is_the_text_that_it_holds(model: TextEmbedding) -> None:
    """Whatever else it holds, as parsers' strings hold their document, and even if it cannot be pickled."""

    class Part(str):
        __slots__ = ("document",)

        def __reduce_ex__(self, protocol: object) -> str:
            raise TypeError("not over the wire")

        def __str__(self) -> str:
            return "something else"

    assert (await model.embed_query(Part("#5")))[2] == 5
    assert (await model.embed_documents([Part("#1"), "#2"]))[:, 2].tolist() == [1, 2]


@pytest.mark.slow
async def test_a_cancelled_query_is_withdrawn(pool: WorkerPool, tmp_path: Path, gate: Path) -> None:
    mark = tmp_path / "mark"
    async with TextEmbedding(ECHO, pool=pool, max_batch_size=1) as model:
        async with anyio.create_task_group() as running:
            # Older than the queries, and more than can be in flight: these wait.
            running.start_soon(model.embed_documents, [f"wait:{gate}"] * 20)
            await until(lambda: model.stats().in_flight + model.stats().queued == 20)
            async with anyio.create_task_group() as cancelled:
                for _ in range(5):
                    cancelled.start_soon(model.embed_query, f"mark:{mark}")
                await until(lambda: model.stats().in_flight + model.stats().queued == 25)
                cancelled.cancel_scope.cancel()
            assert model.stats().in_flight + model.stats().queued == 20
            gate.touch()
        assert not mark.exists()
        assert (await model.embed_query("#1"))[2] == 1


@pytest.mark.slow
async def test_a_cancelled_call_for_documents_is_withdrawn_whoever_remembers_it(pool: WorkerPool, gate: Path) -> None:
    """An exception that is kept, as tasks keep theirs, keeps the call's frames, and so its stream, alive."""
    kept: list[BaseException] = []

    async def ask(model: TextEmbedding) -> None:
        try:
            await model.embed_documents([f"wait:{gate}"] * 20)
        except BaseException as error:
            kept.append(error)
            raise

    async with TextEmbedding(ECHO, pool=pool, max_batch_size=1) as model:
        async with anyio.create_task_group() as group:
            group.start_soon(ask, model)
            await until(lambda: model.stats().in_flight + model.stats().queued == 20)
            assert model.stats().queued > 0
            group.cancel_scope.cancel()
        assert len(kept) == 1
        assert model.stats().queued == 0
        gate.touch()


@pytest.mark.slow
async def test_a_query_cancelled_while_it_is_computed_disturbs_nobody(pool: WorkerPool, gate: Path) -> None:
    async with TextEmbedding(ECHO, pool=pool) as model, anyio.create_task_group() as group:
        async with anyio.create_task_group() as cancelled:
            cancelled.start_soon(model.embed_query, f"wait:{gate}")
            await until(lambda: model.stats().in_flight == 1)
            cancelled.cancel_scope.cancel()
        group.start_soon(model.embed_documents, ["a", "b"])
        gate.touch()


# ---------------------------------------------------------------- tokens

LONG = "the " * 2000
EMBEDDERS: dict[str, type[Any]] = {
    "dense": TextEmbedding,
    "static": TextEmbedding,
    "bm25": SparseTextEmbedding,
    "bm42": SparseTextEmbedding,
    "minicoil": SparseTextEmbedding,
    "splade": SparseTextEmbedding,
    "inference_free_splade": SparseTextEmbedding,
    "colbert": LateInteractionTextEmbedding,
    "token_states": LateInteractionTextEmbedding,
}


def same(found: Any, wanted: Any) -> bool:
    return bool(np.allclose(found.values, wanted.values) if hasattr(wanted, "values") else np.allclose(found, wanted))


@pytest.mark.slow
@pytest.mark.parametrize("name", EMBEDDERS)
async def test_calls_for_texts_say_what_these_cost_where_asked(name: str, pool: WorkerPool, tmp_path: Path) -> None:
    documents = ["how many", LONG]
    extended = {"include_extension": True} if EMBEDDERS[name] is LateInteractionTextEmbedding else {}
    async with EMBEDDERS[name](WRITE[name](tmp_path), pool=pool) as model:
        results, tokens, is_cut = await model.embed_documents(documents, with_tokens=True)
        assert is_cut.tolist() == [False, model.max_length is not None]
        assert [await model.token_count(each, **extended) for each in documents] == tokens.tolist()
        assert tokens[1] == (model.max_length or 2000)
        assert await model.token_count(LONG, truncated=False) >= 2000
        plain = await model.embed_documents(documents)
        assert all(map(same, results, plain))
        query = await model.embed_query("how many", with_tokens=True)
        assert query.tokens >= 2
        assert query.is_cut is False
        assert same(query.result, await model.embed_query("how many"))
        assert (await model.query_embed(["how many"]).with_tokens().collect()).tokens.tolist() == [query.tokens]
        assert model.stats().truncated == 2 * (model.max_length is not None)


@pytest.mark.slow
async def test_rankings_say_what_all_pairs_cost(pool: WorkerPool, tmp_path: Path) -> None:
    documents = ["how many", LONG, "the way"]
    async with TextCrossEncoder(WRITE["cross_encoder"](tmp_path), pool=pool) as model:
        best, tokens, is_cut = await model.rank("make it", documents, top_k=1, with_tokens=True)
        assert best == await model.rank("make it", documents, top_k=1)
        assert is_cut.tolist() == [False, True, False]
        assert tokens.tolist() == [await model.token_count([("make it", each)]) for each in documents]
        assert tokens[1] == model.max_length
        assert await model.token_count([("make it", LONG)], truncated=False) == 2000 + tokens[0] - 2


@pytest.mark.slow
async def test_images_say_how_many_patches_they_are(pool: WorkerPool, tmp_path: Path) -> None:
    pictures = [picture(40, 30), picture(300, 200)]
    async with ImageEmbedding(WRITE["image"](tmp_path), pool=pool) as images:
        assert images.max_length is None
        vectors, tokens, is_cut = await images.embed_images(pictures, with_tokens=True)
        one = await images.embed_image(pictures[0], with_tokens=True)
        assert same(one.result, vectors[0])
        assert tokens.tolist() == [one.tokens] * 2
        assert one.tokens > 0
        assert not is_cut.any()


@pytest.mark.slow
async def test_pages_and_the_queries_for_them_say_what_they_cost(pool: WorkerPool, tmp_path: Path) -> None:
    async with LateInteractionMultimodalEmbedding(WRITE["colmodernvbert"](tmp_path), pool=pool) as model:
        query = await model.embed_query(LONG, with_tokens=True)
        assert (query.tokens, query.is_cut) == (model.max_length, True)
        assert await model.token_count(LONG, truncated=False) >= 2000
        pages, tokens, _ = await model.embed_images([picture(40, 30), picture(300, 200)], with_tokens=True)
        assert len(pages) == len(tokens) == 2
        one = await model.embed_one_image(picture(40, 30), with_tokens=True)
        assert (one.tokens, one.result.shape) == (tokens[0], pages[0].shape)


@pytest.mark.slow
async def test_threads_and_processes_count_alike(pool: WorkerPool, tmp_path: Path) -> None:
    spec = WRITE["dense"](tmp_path)
    columns = []
    for options in ({"pool": pool}, {"workers": 0}):
        async with TextEmbedding(spec, **options) as model:
            columns.append(await model.embed([*TEXTS, LONG], ordered=True).with_tokens().collect())
    for ours, theirs in zip(*columns, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


async def test_the_length_limit_is_known_while_a_model_is_open(tmp_path: Path) -> None:
    """Of `max_length=` and what the model takes, the smaller one."""
    model = TextEmbedding(WRITE["dense"](tmp_path), workers=0, max_length=7)
    with pytest.raises(StateError, match="is not open"):
        _ = model.max_length
    async with model:
        assert model.max_length == 7
        assert (await model.embed_query("the " * 5, with_tokens=True)).is_cut is False
        assert (await model.embed_query("the " * 6, with_tokens=True))[1:] == (7, True)
        assert await model.token_count("the " * 6, truncated=False, prompt="they ") == 9
    with pytest.raises(StateError, match="was closed"):
        _ = model.max_length


@pytest.mark.slow
async def test_what_asks_for_tokens_is_checked(model: TextEmbedding) -> None:
    wrong = cast(Literal[True], "yes")
    for ask in (model.embed_query("x", with_tokens=wrong), model.embed_documents(["x"], with_tokens=wrong)):
        with pytest.raises(OptionError, match="with_tokens must be True or False"):
            await ask
    with pytest.raises(OptionError, match="truncated must be True or False"):
        await model.token_count("x", truncated=cast(bool, "no"))


# ---------------------------------------------------------------- opening and closing


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
async def test_nothing_is_left_of_an_embedder(workers: int) -> None:
    async with nothing_left_behind():
        model = TextEmbedding(ECHO, workers=workers)
        for _ in range(2):
            async with model:
                assert (await model.embed_documents(["#1", "#2"]))[:, 2].tolist() == [1, 2]


@pytest.mark.slow
async def test_an_exception_of_the_block_comes_out_as_itself() -> None:
    error = KeyError("mine")
    async with nothing_left_behind():
        with pytest.raises(KeyError) as caught:
            async with TextEmbedding(ECHO, workers=0) as model:
                async for _ in model.embed(f"#{i}" for i in range(1000)):
                    raise error
    assert caught.value is error
    with pytest.raises(ExceptionGroup) as group:
        async with TextEmbedding(ECHO, workers=0):
            raise ExceptionGroup("mine too", [error])
    assert group.value.message == "mine too"


@pytest.mark.slow
async def test_cancelling_the_block_closes_everything(tmp_path: Path) -> None:
    async with nothing_left_behind():
        with anyio.CancelScope() as scope:
            async with TextEmbedding(ECHO, workers=2) as model, anyio.create_task_group() as group:
                group.start_soon(model.embed_query, "hang")
                await until(lambda: model.stats().in_flight == 1)
                scope.cancel()
        assert scope.cancelled_caught


@pytest.mark.slow
async def test_closing_does_not_wait_for_a_worker_that_is_stuck(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    errors: list[Exception] = []

    async def ask(stuck: TextEmbedding) -> None:
        try:
            await stuck.embed_query(f"mark:{mark} hang")
        except StateError as error:
            errors.append(error)

    async with nothing_left_behind(), anyio.create_task_group() as group:
        async with TextEmbedding(ECHO, workers=1) as stuck:
            group.start_soon(ask, stuck)
            await until(mark.exists)
    assert len(errors) == 1


@pytest.mark.slow
async def test_closing_answers_queries_of_other_tasks(pool: WorkerPool, gate: Path) -> None:
    """With an error, those that run as well as those that wait, and before the worker is through; none hangs."""
    outcomes: list[object] = []

    async def ask(closing: TextEmbedding, text: str) -> None:
        try:
            outcomes.append(len(await closing.embed_query(text)))
        except StateError as error:
            outcomes.append(error)

    async with anyio.create_task_group() as group:
        async with TextEmbedding(ECHO, pool=pool, max_batch_size=1) as closing:
            for _ in range(20):
                group.start_soon(ask, closing, f"wait:{gate}")
            await until(lambda: closing.stats().in_flight + closing.stats().queued == 20)
        await until(lambda: len(outcomes) == 20)
        gate.touch()
    assert {type(outcome) for outcome in outcomes} == {StateError}


@pytest.mark.slow
async def test_a_request_handler_may_open_an_embedder_on_a_pool_of_another_task() -> None:
    results: list[int] = []

    async def handle(pool: WorkerPool, i: int) -> None:
        async with TextEmbedding(ECHO, pool=pool) as model:
            results.append(int((await model.embed_query(f"#{i}"))[2]))

    async def serve(*, task_status: anyio.abc.TaskStatus[WorkerPool]) -> None:
        async with WorkerPool(workers=1) as pool:
            task_status.started(pool)
            await anyio.sleep_forever()

    async with nothing_left_behind(), anyio.create_task_group() as group:
        pool = await group.start(serve)
        async with anyio.create_task_group() as requests:
            for i in range(5):
                requests.start_soon(handle, pool, i)
        group.cancel_scope.cancel()
    assert sorted(results) == list(range(5))


@pytest.mark.slow
async def test_two_embedders_live_side_by_side() -> None:
    async with nothing_left_behind(), AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(TextEmbedding(ECHO, workers=1)) for _ in range(2)]
        first, second = await one.embed_query("a"), await two.embed_query("a")
        assert first[1] != second[1], "each has a process of its own"


# ---------------------------------------------------------------- looking at it


async def test_a_model_says_how_it_is_doing_before_while_and_after_it_is_open() -> None:
    model = TextEmbedding(ECHO, workers=0)
    assert repr(model) == "<TextEmbedding 'echo' not open>"
    async with model:
        await model.embed_query("#1")
        await model.embed(["#1", "bad"], on_error="skip").collect()
        assert repr(model) == (
            "<TextEmbedding 'echo' open on the CPU, without a graph: "
            "3 inputs in 2 batches, 1 failed; 0 waiting, 0 batches in flight>"
        )
    assert repr(model) == "<TextEmbedding 'echo' closed after 3 inputs in 2 batches>"


def test_a_model_that_was_refused_can_be_looked_at() -> None:
    """As debuggers do, which show what `self` is where an error comes from."""
    assert repr(object.__new__(TextEmbedding)) == "<TextEmbedding refused not open>"


async def test_opening_says_in_one_line_what_computes_and_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pool_module, "available_cores", lambda: 3)
    file = "onnx/model_quantized.onnx"
    directory = write_model(tmp_path / "model", model_file=file)
    with caplog.at_level(logging.INFO, "asyncembed"):
        async with TextEmbedding(directory, workers=0, onnx_file=file, pooling="mean", normalize=True):
            pass
    (record,) = caplog.records
    assert re.fullmatch(
        r"TextEmbedding opened \S+model: \S+model_quantized.onnx \(int8\) on CPUExecutionProvider, "
        r"1 x 3 threads in this process on 3 cores in \d+\.\d s",
        record.message.replace("\\", "/"),
    ), record.message


async def test_opening_says_once_that_there_is_no_graph(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "asyncembed"):
        async with TextEmbedding(ECHO, workers=0):
            pass
    assert caplog.messages[0].startswith("TextEmbedding opened echo on the CPU, without a graph, 1 x ")


@pytest.mark.slow
async def test_a_snapshot_from_another_thread_is_never_half_done(gate: Path) -> None:
    """Each input is in one place in it: it waits, is in flight, or is computed."""
    count = 400
    async with TextEmbedding(ECHO, workers=0, max_batch_size=1) as model:

        def add_up() -> list[int]:
            sums = []
            while True:
                stats = model.stats()
                sums.append(stats.queued + stats.in_flight + stats.items)
                if stats.items == count:
                    return sums

        with ThreadPoolExecutor(1) as threads:
            async with anyio.create_task_group() as group:
                for number in range(count):
                    group.start_soon(model.embed_query, f"#{number} wait:{gate}")
                await until(lambda: model.stats().queued + model.stats().in_flight == count)
                sums = threads.submit(add_up)
                gate.touch()
        assert set(sums.result()) == {count}
        assert len(sums.result()) > 1


# ---------------------------------------------------------------- misuse


@pytest.mark.parametrize("what", [TextEmbedding(ECHO, workers=0), WorkerPool(workers=0)], ids=["embedder", "pool"])
async def test_what_one_task_opened_another_may_close(what: TextEmbedding | WorkerPool) -> None:
    async with nothing_left_behind(), what:
        async with anyio.create_task_group() as group:
            group.start_soon(what.__aexit__, None, None, None)
        async with what:
            pass  # it was closed: it can be opened again
    await what.__aexit__(None, None, None)  # as often as one likes


@pytest.mark.slow
async def test_an_embedder_is_used_while_it_is_open(pool: WorkerPool) -> None:
    model = TextEmbedding(ECHO, pool=pool)
    with pytest.raises(StateError, match="is not open: use it inside `async with`"):
        await model.embed_query("too early")
    with pytest.raises(StateError, match="is not open"):
        model.embed(["too early"])
    async with model:
        with pytest.raises(StateError, match="open already"):
            await model.__aenter__()
        assert (await model.embed_query("#1"))[2] == 1
    with pytest.raises(StateError, match="was closed"):
        await model.embed_query("too late")
    with pytest.raises(StateError, match="was closed"):
        model.stats()


@pytest.mark.slow
async def test_an_embedder_belongs_to_its_loop(model: TextEmbedding, anyio_backend: str) -> None:
    async def use() -> None:
        for call in (model.embed_query("a"), model.embed_documents(["a"])):
            with pytest.raises(StateError, match="another event loop"):
                await call
        with pytest.raises(StateError, match="another event loop"):
            model.embed(["a"])

    await anyio.to_thread.run_sync(run_in_a_loop_of_its_own, use, anyio_backend)


@pytest.mark.slow
async def test_an_embedder_is_not_used_from_a_thread_without_a_loop(model: TextEmbedding) -> None:
    def use() -> None:
        with pytest.raises(StateError, match="another event loop"):
            model.embed(["a"])

    with ThreadPoolExecutor(1) as executor:
        await anyio.to_thread.run_sync(executor.submit(use).result)


async def test_a_pool_is_opened_before_its_embedders() -> None:
    with pytest.raises(StateError, match="the worker pool is not open"):
        async with TextEmbedding(ECHO, pool=WorkerPool(workers=1)):
            pytest.fail("it cannot open")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thread": 4}, "did you mean 'threads'"),
        ({"nonsense": 4}, "unknown keyword 'nonsense'; known are: "),
        ({"workers": -1}, "workers must be a whole number, 0 or more"),
        ({"max_in_flight": 0}, "max_in_flight must be a whole number, 1 or more"),
        ({"pool": WorkerPool(workers=1), "workers": 2}, "give this to the WorkerPool instead"),
        ({"pool": WorkerPool(workers=1), "interactive_workers": 1}, "give this to the WorkerPool instead"),
        ({"pool": 3}, "pool must be a WorkerPool; got 3"),
        ({"long": "no"}, "long must be one of 'truncate', 'error'"),
    ],
)
def test_keywords_that_cannot_work_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        TextEmbedding(ECHO, **options)


# ---------------------------------------------------------------- tables and columns


def tables() -> dict[str, Any]:
    import pandas as pd
    import polars as pl
    import pyarrow as pa
    import xarray as xr

    columns = {"text": ["#1", "#2"], "id": ["a", "b"]}
    return {
        "pandas": pd.DataFrame(columns),
        "pandas, grouped": pd.DataFrame(columns).groupby("id"),
        "polars": pl.DataFrame(columns),
        "polars, lazy": pl.LazyFrame(columns),
        "pyarrow": pa.table(columns),
        "pyarrow, a batch": pa.record_batch(columns),
        "pyarrow, batches": pa.table(columns).to_reader(),
        "xarray": xr.Dataset({"text": ("row", ["#1", "#2"])}),
        "xarray, an array": xr.DataArray(["#1", "#2"]),
        "numpy, no dimension": np.array("#1"),
        "dict": columns,
        "bytes": b"#1",
    }


@pytest.mark.slow
async def test_a_table_is_refused_and_told_how_its_texts_are_given(model: TextEmbedding) -> None:
    """Iterating over it gives its columns, or their names, which would be embedded without a word."""
    for name, table in tables().items():
        with pytest.raises(InputError, match="give |decode it|into a list"):
            model.embed(table)
            pytest.fail(f"{name} was taken")


@pytest.mark.slow
async def test_columns_and_rows_of_tables_are_sources(model: TextEmbedding) -> None:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    texts = ["#1", "#2"]
    table = pa.table({"text": texts})
    columns = {
        "pandas": pd.DataFrame({"text": texts})["text"],
        "pandas, strings": pd.Series(texts, dtype="string"),
        "polars": pl.Series(texts),
        "pyarrow": table["text"],
        "pyarrow, an array": pa.array(texts),
        "pyarrow, large": pa.array(texts, pa.large_string()),
        "pyarrow, a dictionary": pa.array(texts).dictionary_encode(),
        "numpy": np.array(texts),
        "numpy, objects": np.array(texts, object),
    }
    for name, column in columns.items():
        found = [int(vector[2]) async for vector in model.embed(column)]
        assert found == [1, 2], name
    rows = table.to_pylist()
    assert (await model.embed(rows, key=lambda row: str(row["text"])).collect())[:, 2].tolist() == [1, 2]
    assert (await model.embed_query(table["text"][1]))[2] == 2
    with pytest.raises(InputError, match="expected a str, got StringScalar"):
        await model.embed(pa.array(["#1", None])).collect()


# ---------------------------------------------------------------- overload


@asynccontextmanager
async def busy(gate: Path, *, waiting: int, max_queued: int) -> AsyncGenerator[TextEmbedding]:
    """A model whose one thread computes for as long as there is no gate, and so many queries that wait."""
    async with TextEmbedding(ECHO, workers=0, max_batch_size=1, max_queued=max_queued) as model:
        async with anyio.create_task_group() as group:
            group.start_soon(model.embed_query, f"wait:{gate}")
            await until(lambda: model.stats().in_flight == 1)
            for number in range(waiting):
                group.start_soon(model.embed_query, f"#{number}")
            await until(lambda: model.stats().queued_interactive == waiting)
            yield model
            gate.touch()


async def test_a_query_too_many_is_refused_at_once_and_leaves_nothing(gate: Path) -> None:
    async with nothing_left_behind(), busy(gate, waiting=2, max_queued=2) as model:
        for _ in range(3):
            with pytest.raises(OverloadedError, match="max_queued=2"):
                await model.embed_query("too many")
        stats = model.stats()
        assert (stats.queued_interactive, stats.refused, stats.failed) == (2, 3, 0)


async def test_room_comes_back_as_queries_are_computed_or_given_up(gate: Path) -> None:
    async with busy(gate, waiting=1, max_queued=2) as model:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(model.embed_query, "given up")
                await until(lambda: model.stats().queued_interactive == 2)
                with pytest.raises(OverloadedError):
                    await model.embed_query("too many")
                scope.cancel()
        async with anyio.create_task_group() as group:
            group.start_soon(model.embed_query, "fits again")
            await until(lambda: model.stats().queued_interactive == 2)
            gate.touch()
        assert (await model.embed_query("#7"))[2] == 7


async def test_a_list_is_taken_whole_or_not_at_all(gate: Path) -> None:
    async with busy(gate, waiting=1, max_queued=4) as model:
        with pytest.raises(OverloadedError, match="1 of at most max_queued=4 inputs wait, and this call has 4"):
            await model.embed_documents(["a", "b", "c", "d"])
        assert model.stats().queued_interactive == 1
        async with anyio.create_task_group() as group:
            group.start_soon(model.embed_documents, ["a", "b", "c"])
            await until(lambda: model.stats().queued_interactive == 4)
            gate.touch()


async def test_a_list_that_alone_is_longer_is_no_input(gate: Path) -> None:
    async with TextEmbedding(ECHO, workers=0, max_queued=2) as model:
        with pytest.raises(InputError, match="3 inputs in one call") as caught:
            await model.embed_documents(["a", "b", "c"])
        assert caught.value.index is None
        assert (await model.embed_documents(["#1", "#2"]))[:, 2].tolist() == [1, 2]


async def test_a_generator_is_taken_as_it_comes_until_there_is_no_room(gate: Path) -> None:
    async with nothing_left_behind(), busy(gate, waiting=1, max_queued=3) as model:
        with pytest.raises(OverloadedError):
            await model.embed_documents(f"#{number}" for number in range(10))
        assert model.stats().queued_interactive == 1


@pytest.mark.slow
async def test_streams_are_not_concerned(gate: Path) -> None:
    async with busy(gate, waiting=1, max_queued=1) as model, model.embed(["#3"] * 500) as stream:
        async with anyio.create_task_group() as group:
            group.start_soon(stream.collect)
            await until(lambda: model.stats().queued_bulk > 20)
            gate.touch()


async def test_bad_inputs_keep_no_place() -> None:
    async with TextEmbedding(ECHO, workers=0, max_queued=2) as model:
        for _ in range(3):
            with pytest.raises(InputError, match="got int"):
                await model.embed_query(cast(Any, 1))
            with pytest.raises(InputError, match="input 1: "):
                await model.embed_documents(["fine", cast(Any, 2)])
        assert len(await model.embed_documents(["a", "b"])) == 2


async def test_embedders_of_one_pool_share_its_room(gate: Path) -> None:
    async with WorkerPool(workers=0, max_queued=1) as pool:
        async with TextEmbedding(ECHO, pool=pool) as one, TextEmbedding(ECHO, pool=pool) as other:
            async with anyio.create_task_group() as group:
                group.start_soon(one.embed_query, f"wait:{gate}")
                await until(lambda: pool.stats().in_flight == 1)
                group.start_soon(one.embed_query, "waits")
                await until(lambda: pool.stats().queued_interactive == 1)
                with pytest.raises(OverloadedError):
                    await other.embed_query("too many")
                gate.touch()
            assert (one.stats().refused, other.stats().refused) == (0, 1)


def test_the_bound_is_the_pools() -> None:
    with pytest.raises(OptionError, match=r"max_queued: with pool=, give this to the WorkerPool"):
        TextEmbedding(ECHO, pool=WorkerPool(), max_queued=3)
    with pytest.raises(OptionError, match="max_queued must be a whole number, 1 or more, or None; got 0"):
        WorkerPool(max_queued=0)
