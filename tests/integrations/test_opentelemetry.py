"""What OpenTelemetry's own SDK records of calls and batches."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from asyncembed import TextCrossEncoder, TextEmbedding, sync
from asyncembed.errors import InputError
from asyncembed.integrations.opentelemetry import Telemetry
from tests.support import programs
from tests.support.encoders import ECHO
from tests.support.sparse_models import write_reranker
from tests.support.waiting import until


class Recorded:
    """Providers of an SDK that keep what they are given in memory."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._reader = InMemoryMetricReader()
        self.meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.telemetry = Telemetry(self.tracers, self.meters)

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def points(self, name: str) -> list[HistogramDataPoint]:
        data = self._reader.get_metrics_data()
        assert data is not None
        metrics = [
            metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
        ]
        return [cast(HistogramDataPoint, point) for metric in metrics for point in metric.data.data_points]

    def close(self) -> None:
        self.tracers.shutdown()
        self.meters.shutdown()


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    recorded = Recorded()
    yield recorded
    recorded.close()


def attributes(span: ReadableSpan) -> Mapping[str, Any]:
    return dict(span.attributes or {})


COMMON = {
    "gen_ai.operation.name": "embeddings",
    "gen_ai.provider.name": "asyncembed",
    "gen_ai.request.model": "echo",
}


async def test_each_call_and_each_stream_is_one_span(recorded: Recorded) -> None:
    async with TextEmbedding(ECHO, workers=0, observers=[recorded.telemetry]) as model:
        await model.embed_query("#1 one")
        await model.embed(["#1", "bad"], on_error="skip").collect()
    query, stream = recorded.spans("embeddings echo")
    assert query.kind is SpanKind.INTERNAL
    assert attributes(query) == COMMON | {
        "gen_ai.usage.input_tokens": 6,
        "gen_ai.embeddings.dimension.count": 3,
        "asyncembed.inputs": 1,
        "asyncembed.failed_inputs": 0,
    }
    assert attributes(stream) == COMMON | {
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.embeddings.dimension.count": 3,
        "asyncembed.inputs": 2,
        "asyncembed.failed_inputs": 1,
    }
    assert query.status.status_code is stream.status.status_code is StatusCode.UNSET


async def test_a_span_is_the_child_of_its_callers(recorded: Recorded) -> None:
    tracer = recorded.tracers.get_tracer("app")
    async with TextEmbedding(ECHO, workers=0, observers=[recorded.telemetry]) as model:

        async def handle(number: int) -> None:
            with tracer.start_as_current_span(f"request {number}"):
                await model.embed_query(f"#{number}")
                async for _ in model.embed([f"#{number}"]):
                    pass

        async with anyio.create_task_group() as group:
            for number in range(2):
                group.start_soon(handle, number)
    calls = recorded.spans("embeddings echo")
    for number in range(2):
        (request,) = recorded.spans(f"request {number}")
        children = [call for call in calls if call.parent == request.get_span_context()]
        assert len(children) == 2


async def test_a_batch_is_a_span_without_a_parent_that_links_to_its_callers(recorded: Recorded, gate: Path) -> None:
    tracer = recorded.tracers.get_tracer("app")
    with tracer.start_as_current_span("startup"):
        async with TextEmbedding(ECHO, workers=0, observers=[recorded.telemetry]) as model:
            async with anyio.create_task_group() as group:
                group.start_soon(model.embed_query, f"wait:{gate}")
                await until(lambda: model.stats().in_flight == 1)
                for number in range(3):
                    group.start_soon(model.embed_query, f"#{number}")
                await until(lambda: model.stats().queued == 3)
                gate.touch()
    first, second = recorded.spans("batch echo")
    assert [len(first.links), len(second.links)] == [1, 3]
    calls = {call.get_span_context().span_id: call for call in recorded.spans("embeddings echo")}  # type: ignore[union-attr]
    assert {link.context.span_id for batch in (first, second) for link in batch.links} == set(calls)
    assert first.parent is second.parent is None
    assert attributes(second) == {
        "gen_ai.provider.name": "asyncembed",
        "gen_ai.request.model": "echo",
        "asyncembed.inputs": 3,
        "asyncembed.tokens": 6,
        "asyncembed.padded_tokens": 6,
    }
    assert second.start_time is not None
    assert second.end_time is not None
    assert second.start_time < second.end_time


async def test_an_error_is_told_by_its_class_and_nothing_of_what_it_says(recorded: Recorded) -> None:
    async with TextEmbedding(ECHO, workers=0, observers=[recorded.telemetry]) as model:
        with pytest.raises(InputError):
            await model.embed_query("bad secret")
        with pytest.raises(ZeroDivisionError):
            await model.embed(failing_source()).collect()
    refused, broken = recorded.spans("embeddings echo")
    for span, name in ((refused, "InputError"), (broken, "ZeroDivisionError")):
        assert attributes(span)["error.type"] == name
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description is None
        assert not span.events
        assert "secret" not in span.to_json()


def failing_source() -> Iterator[str]:
    yield "#1"
    raise ZeroDivisionError("secret")


async def test_a_cancelled_call_is_told_alike_on_every_backend(recorded: Recorded, gate: Path) -> None:
    async with TextEmbedding(ECHO, workers=0, observers=[recorded.telemetry]) as model:
        async with anyio.create_task_group() as group:
            group.start_soon(model.embed_query, f"wait:{gate}")
            await until(lambda: model.stats().in_flight == 1)
            group.cancel_scope.cancel()
        gate.touch()
    (span,) = recorded.spans("embeddings echo")
    assert attributes(span)["error.type"] == "cancelled"


@pytest.mark.parametrize("kind", ["off", "no batches"])
async def test_batches_have_spans_only_where_a_call_is_recorded_and_they_are_wanted(
    kind: str, recorded: Recorded
) -> None:
    if kind == "off":
        telemetry = Telemetry(TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False), recorded.meters)
    else:
        telemetry = Telemetry(recorded.tracers, recorded.meters, batch_spans=False)
    async with TextEmbedding(ECHO, workers=0, observers=[telemetry]) as model:
        await model.embed_query("#1")
    assert not recorded.spans("batch echo")
    assert len(recorded.spans("embeddings echo")) == (kind != "off")
    (duration,) = recorded.points("gen_ai.client.operation.duration")
    assert duration.count == 1


async def test_calls_are_measured_by_the_names_of_the_conventions(recorded: Recorded) -> None:
    async with TextEmbedding(ECHO, workers=0, observers=[recorded.telemetry]) as model:
        for _ in range(3):
            await model.embed_query("#1 one")
        with pytest.raises(InputError):
            await model.embed_query(cast(Any, 5))
    done, failed = sorted(recorded.points("gen_ai.client.operation.duration"), key=lambda point: -point.count)
    assert (done.count, dict(done.attributes or {})) == (3, COMMON)
    assert (failed.count, dict(failed.attributes or {})) == (1, COMMON | {"error.type": "InputError"})
    assert _starts(done.explicit_bounds, (0.01, 0.02, 0.04))
    (usage,) = recorded.points("gen_ai.client.token.usage")
    assert (usage.sum, usage.count) == (18, 3)
    assert dict(usage.attributes or {}) == COMMON | {"gen_ai.token.type": "input"}
    assert _starts(usage.explicit_bounds, (1, 4, 16))


def _starts(bounds: Sequence[float], expected: Sequence[float]) -> bool:
    return tuple(bounds[: len(expected)]) == tuple(expected) and len(bounds) == 14


async def test_reranking_and_counting_have_operations_of_their_own(recorded: Recorded, tmp_path: Path) -> None:
    directory = write_reranker(tmp_path)
    async with TextCrossEncoder(directory, workers=0, observers=[recorded.telemetry]) as model:
        await model.rank("how", ["the way", "a day"])
        await model.token_count([("how", "the way")])
    (ranked,) = recorded.spans(f"retrieval {directory}")
    assert attributes(ranked)["gen_ai.usage.input_tokens"] > 6
    (counted,) = recorded.spans(f"count_tokens {directory}")
    assert "gen_ai.usage.input_tokens" not in attributes(counted)


def test_a_trace_goes_on_through_the_calls_that_block(recorded: Recorded) -> None:
    tracer = recorded.tracers.get_tracer("app")
    with (
        tracer.start_as_current_span("request") as request,
        sync.TextEmbedding(ECHO, workers=0, observers=[recorded.telemetry]) as model,
    ):
        model.embed_query("#1")
        assert len(list(model.embed(["#1", "#2"]))) == 2
    calls = recorded.spans("embeddings echo")
    assert [call.parent for call in calls] == [request.get_span_context()] * 2


async def test_without_an_sdk_nothing_is_recorded_and_nothing_fails() -> None:
    async with TextEmbedding(ECHO, workers=0, observers=[Telemetry()]) as model:
        assert (await model.embed_query("#5"))[2] == 5


@pytest.mark.slow
def test_without_the_package_the_import_names_the_extra(tmp_path: Path) -> None:
    done = programs.run(
        "import sys\nsys.modules['opentelemetry'] = None\nimport asyncembed.integrations.opentelemetry", tmp_path
    )
    assert done.stderr.splitlines()[-1] == (
        'ImportError: asyncembed.integrations.opentelemetry needs a package: pip install "asyncembed[opentelemetry]"'
    )
