"""Spans and metrics for OpenTelemetry, by its conventions for generative AI.

```python
telemetry = Telemetry()  # the providers that the program has set, or those given
async with TextEmbedding("BAAI/bge-small-en-v1.5", observers=[telemetry]) as model:
    ...
```

Needs `pip install "asyncembed[opentelemetry]"`; without an SDK, which the program chooses, nothing is recorded.

Source of the names: open-telemetry/semantic-conventions-genai, "embeddings". It has no package of constants, and those
of `opentelemetry.semconv` are deprecated, so the names are written out.
"""

from collections.abc import Mapping
from time import time_ns
from typing import assert_never

from asyncembed import __version__
from asyncembed.observing import BatchEnded, CallBegan, CallEnded, Event, ModelClosed, ModelOpened, ObservedCall

try:
    from opentelemetry.context import Context
    from opentelemetry.metrics import MeterProvider, get_meter
    from opentelemetry.trace import Link, Span, SpanKind, StatusCode, TracerProvider, get_tracer
except ImportError as _error:
    raise ImportError(
        'asyncembed.integrations.opentelemetry needs a package: pip install "asyncembed[opentelemetry]"'
    ) from _error

__all__ = ["Telemetry"]

SCOPE = "asyncembed"

DURATION_BUCKETS = tuple(0.01 * 2**step for step in range(14))
"""Seconds; as the conventions have them."""

TOKEN_BUCKETS = tuple(4**step for step in range(14))
"""Tokens; as the conventions have them."""


class Telemetry:
    """An observer that makes a span of each call, and one of each batch, and measures the calls.

    A call's span is the child of the caller's span, is called "embeddings MODEL", and has the tokens of its inputs and
    the class of its error. Reranking has no convention: its operation is "retrieval", the nearest; counting tokens is
    "count_tokens". A stream's span lasts from its first result to its last one.

    A batch serves many callers: its span, "batch MODEL", has no parent, and links to the span of each call that has
    inputs in it and is recorded; there is none if no call is.

    Texts, vectors, and messages of errors are never recorded.

    Args:
        tracer_provider: Who makes the spans; None: the program's own.
        meter_provider: Who keeps the metrics (`gen_ai.client.operation.duration`, `gen_ai.client.token.usage`); None:
            the program's own.
        batch_spans: Whether batches have spans, too.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        *,
        batch_spans: bool = True,
    ) -> None:
        self._tracer = get_tracer(SCOPE, __version__, tracer_provider)
        meter = get_meter(SCOPE, __version__, meter_provider)
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            "s",
            "How long calls take.",
            explicit_bucket_boundaries_advisory=DURATION_BUCKETS,
        )
        self._usage = meter.create_histogram(
            "gen_ai.client.token.usage",
            "{token}",
            "Tokens of the inputs of a call.",
            explicit_bucket_boundaries_advisory=TOKEN_BUCKETS,
        )
        self._batch_spans = batch_spans
        # Of the calls under way.
        self._spans: dict[ObservedCall, Span] = {}

    def __call__(self, event: Event) -> None:
        match event:
            case CallBegan(call):
                self._spans[call] = self._tracer.start_span(
                    f"{_operation(call)} {call.model.name}", kind=SpanKind.INTERNAL, attributes=_common(call)
                )
            case CallEnded(call):
                self._end_call(call)
            case BatchEnded():
                if self._batch_spans:
                    self._batch(event)
            case ModelOpened() | ModelClosed():
                pass
            case _:
                assert_never(event)

    def _end_call(self, call: ObservedCall) -> None:
        common = _common(call)
        failure = {} if call.error_name is None else {"error.type": call.error_name}
        span = self._spans.pop(call)
        if span.is_recording():
            span.set_attributes({"asyncembed.inputs": call.inputs, "asyncembed.failed_inputs": call.failed, **failure})
            if call.mode != "count":
                span.set_attribute("gen_ai.usage.input_tokens", call.tokens)
            if call.model.dim is not None and _operation(call) == "embeddings":
                span.set_attribute("gen_ai.embeddings.dimension.count", call.model.dim)
            if failure:
                span.set_status(StatusCode.ERROR)
        span.end()
        self._duration.record(call.seconds, {**common, **failure})
        if call.tokens and call.mode != "count":
            self._usage.record(call.tokens, {**common, "gen_ai.token.type": "input"})

    def _batch(self, batch: BatchEnded) -> None:
        spans = [self._spans[call] for call in batch.calls if call in self._spans]
        links = [Link(span.get_span_context()) for span in spans if span.is_recording()]
        if not links:
            return
        now = time_ns()
        # Without a parent: the task that hears of it is whoever opened the pool.
        span = self._tracer.start_span(
            f"batch {batch.model.name}",
            context=Context(),
            kind=SpanKind.INTERNAL,
            attributes={
                "gen_ai.provider.name": SCOPE,
                "gen_ai.request.model": batch.model.name,
                "asyncembed.inputs": batch.inputs,
                "asyncembed.tokens": batch.tokens,
                "asyncembed.padded_tokens": batch.padded_tokens,
            },
            links=links,
            start_time=now - int(batch.seconds * 1e9),
        )
        if batch.error is not None:
            span.set_attribute("error.type", type(batch.error).__name__)
            span.set_status(StatusCode.ERROR)
        span.end(now)


def _operation(call: ObservedCall) -> str:
    return {"pair": "retrieval", "count": "count_tokens"}.get(call.mode, "embeddings")


def _common(call: ObservedCall) -> Mapping[str, str]:
    return {
        "gen_ai.operation.name": _operation(call),
        "gen_ai.provider.name": SCOPE,
        "gen_ai.request.model": call.model.name,
    }
