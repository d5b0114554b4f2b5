"""What Prometheus's own client shows of models."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from asyncembed import TextCrossEncoder, TextEmbedding, WorkerPool
from asyncembed.errors import InputError
from asyncembed.integrations.prometheus import Metrics
from tests.support import programs
from tests.support.encoders import ECHO, with_settings
from tests.support.sparse_models import write_reranker
from tests.support.waiting import until


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def exposed(registry: CollectorRegistry) -> Callable[..., float | None]:
    """The value of a sample in the text that Prometheus would read, by its name and labels."""
    samples = [
        sample
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    ]

    def value(name: str, **labels: str) -> float | None:
        wanted = (name, {"model": "echo"} | labels)
        found = [sample.value for sample in samples if (sample.name, sample.labels) == wanted]
        assert len(found) <= 1
        return found[0] if found else None

    return value


async def test_counts_are_those_of_the_model(registry: CollectorRegistry) -> None:
    async with TextEmbedding(ECHO, workers=0, observers=[Metrics(registry)]) as model:
        await model.embed(["#1", "#1 long", "bad"], on_error="skip").collect()
        value, stats = exposed(registry), model.stats()
    assert value("asyncembed_inputs_total") == stats.items == 3
    assert value("asyncembed_failed_inputs_total") == stats.failed == 1
    assert value("asyncembed_batches_total") == stats.batches
    assert value("asyncembed_tokens_total") == stats.tokens == 12
    assert value("asyncembed_padded_tokens_total") == stats.padded_tokens
    assert value("asyncembed_padding_share") == pytest.approx(stats.padding_share)
    assert value("asyncembed_workers") == value("asyncembed_workers_ready") == 1
    assert value("asyncembed_worker_restarts_total") == 0


async def test_inputs_that_were_cut_are_counted(registry: CollectorRegistry) -> None:
    async with TextEmbedding(ECHO, workers=0, observers=[Metrics(registry)]) as model:
        await model.embed(["#1 cut", "#2", "#3 cut"]).collect()
    assert exposed(registry)("asyncembed_truncated_inputs_total") == 2


async def test_the_queue_is_shown_as_it_is_when_somebody_asks(registry: CollectorRegistry, gate: Path) -> None:
    async with TextEmbedding(ECHO, workers=0, observers=[Metrics(registry)]) as model:
        async with anyio.create_task_group() as group:
            group.start_soon(model.embed_query, f"wait:{gate}")
            await until(lambda: model.stats().in_flight == 1)
            for number in range(3):
                group.start_soon(model.embed_query, f"#{number}")
            group.start_soon(model.embed(["#4", "#5"]).collect)
            await until(lambda: model.stats().queued == 5)
            value = exposed(registry)
            gate.touch()
    assert value("asyncembed_queued_interactive") == 3
    assert value("asyncembed_queued_bulk") == 2
    assert value("asyncembed_in_flight") == 1


async def test_calls_and_batches_are_timed(registry: CollectorRegistry) -> None:
    async with TextEmbedding(ECHO, workers=0, observers=[Metrics(registry)]) as model:
        for _ in range(3):
            await model.embed_query("#1")
        await model.embed(["#1"]).collect()
        await model.token_count("one")
    value = exposed(registry)
    count, total = "asyncembed_call_seconds_count", "asyncembed_call_seconds_sum"
    assert value(count, operation="embed", priority="interactive") == 3
    assert value(count, operation="embed", priority="bulk") == 1
    assert value(count, operation="count_tokens", priority="interactive") == 1
    assert cast(float, value(total, operation="embed", priority="interactive")) > 0
    assert value("asyncembed_call_seconds_bucket", operation="embed", priority="bulk", le="+Inf") == 1
    assert value("asyncembed_batch_seconds_count") == value("asyncembed_batches_total") == 5


async def test_calls_that_fail_are_counted_by_class_of_error(registry: CollectorRegistry, gate: Path) -> None:
    async with TextEmbedding(ECHO, workers=0, observers=[Metrics(registry)]) as model:
        for text in ("bad", cast(Any, 5)):
            with pytest.raises(InputError):
                await model.embed_query(text)
        async with anyio.create_task_group() as group:
            group.start_soon(model.embed_query, f"wait:{gate}")
            await until(lambda: model.stats().in_flight == 1)
            group.cancel_scope.cancel()
        gate.touch()
    value = exposed(registry)
    assert value("asyncembed_failed_calls_total", operation="embed", error="InputError") == 2
    assert value("asyncembed_failed_calls_total", operation="embed", error="cancelled") == 1


async def test_counters_go_on_when_a_model_is_opened_again(registry: CollectorRegistry) -> None:
    model = TextEmbedding(ECHO, workers=0, observers=[Metrics(registry)])
    for opening in range(3):
        async with model:
            await model.embed_query("#1")
        assert exposed(registry)("asyncembed_inputs_total") == opening + 1
        assert exposed(registry)("asyncembed_workers") is None


async def test_two_models_of_one_name_add_up_and_others_stay_apart(registry: CollectorRegistry, tmp_path: Path) -> None:
    metrics = Metrics(registry)
    directory = write_reranker(tmp_path)
    async with (
        TextEmbedding(ECHO, workers=0, observers=[metrics]) as one,
        TextEmbedding(ECHO, workers=0, observers=[metrics]) as two,
        TextCrossEncoder(directory, workers=0, observers=[metrics]) as reranker,
    ):
        await one.embed_query("#1")
        await two.embed_documents(["#1", "#2"])
        await reranker.rank("how", ["the way"])
        value = exposed(registry)
    assert value("asyncembed_inputs_total") == 3
    assert value("asyncembed_workers") == 2
    assert value("asyncembed_inputs_total", model=str(directory)) == 1
    labels = {"model": str(directory), "operation": "rerank", "priority": "interactive"}
    assert value("asyncembed_call_seconds_count", **labels) == 1


@pytest.mark.slow
async def test_restarts_are_counted_once_however_often_a_model_is_opened(
    registry: CollectorRegistry, tmp_path: Path
) -> None:
    metrics = Metrics(registry)
    async with WorkerPool(workers=1) as pool:
        for opening in range(2):
            async with TextEmbedding(with_settings(), pool=pool, observers=[metrics]) as model:
                await model.embed_query(f"crash-once:{tmp_path / str(opening)}")
            assert exposed(registry)("asyncembed_worker_restarts_total") == opening + 1


@pytest.mark.slow
async def test_numbers_can_be_read_in_another_thread_while_models_come_and_go(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    read: list[float] = []
    is_over = threading.Event()

    def scrape() -> None:
        while not is_over.is_set():
            read.append(exposed(registry)("asyncembed_inputs_total") or 0.0)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        for _ in range(5):
            async with TextEmbedding(ECHO, workers=0, observers=[metrics]) as model:
                await model.embed([f"#{number}" for number in range(50)]).collect()
        await until(lambda: len(read) > 0)
    finally:
        is_over.set()
        await anyio.to_thread.run_sync(thread.join)
    assert read == sorted(read)
    assert exposed(registry)("asyncembed_inputs_total") == 250


def test_a_registry_takes_it_once() -> None:
    registry = CollectorRegistry(auto_describe=True)
    Metrics(registry)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        Metrics(registry)
    Metrics(None)


@pytest.mark.slow
def test_importing_it_registers_nothing(tmp_path: Path) -> None:
    done = programs.run(
        "import asyncembed.integrations.prometheus, prometheus_client\n"
        "print(prometheus_client.generate_latest().decode())",
        tmp_path,
    )
    assert "python_info" in done.stdout
    assert "asyncembed" not in done.stdout


@pytest.mark.slow
def test_without_the_package_the_import_names_the_extra(tmp_path: Path) -> None:
    done = programs.run(
        "import sys\nsys.modules['prometheus_client'] = None\nimport asyncembed.integrations.prometheus", tmp_path
    )
    assert done.stderr.splitlines()[-1] == (
        'ImportError: asyncembed.integrations.prometheus needs a package: pip install "asyncembed[prometheus]"'
    )
