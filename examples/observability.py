"""Watch a model at work: one line on opening, spans by OpenTelemetry, metrics by Prometheus.

    uv run -m examples.observability                # prints the spans as they end, then the metrics
    uv run -m examples.observability --port 9464    # serves the metrics too: http://localhost:9464/metrics

The texts and the model are those of `examples/quickstart.py`. A program of yours needs
`pip install "asyncembed[cpu,opentelemetry,prometheus]" opentelemetry-sdk`, and an exporter.
"""

import argparse
import logging
from collections.abc import Sequence
from itertools import islice

import anyio
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry, generate_latest, start_http_server

from asyncembed import TextEmbedding
from asyncembed.integrations.opentelemetry import Telemetry
from asyncembed.integrations.prometheus import Metrics
from examples.quickstart import demo_model, stdlib_docstrings


class OneLineEach(SpanExporter):
    """Prints spans; a program would send them away instead, as by `OTLPSpanExporter`."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            milliseconds = ((span.end_time or 0) - (span.start_time or 0)) / 1e6
            attributes = span.attributes or {}
            tokens = attributes.get("gen_ai.usage.input_tokens", attributes.get("asyncembed.tokens", "-"))
            callers = f" for {len(span.links)} calls" if span.links else ""
            print(f"{milliseconds:8.1f} ms  {tokens:>5} tokens  {short(span.name)}{callers}")
        return SpanExportResult.SUCCESS


async def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OneLineEach()))
    trace.set_tracer_provider(provider)
    tracer = trace.get_tracer("example")
    registry = CollectorRegistry()
    if arguments.port is not None:
        start_http_server(arguments.port, registry=registry)

    async with TextEmbedding(demo_model(), observers=[Telemetry(), Metrics(registry)]) as model:

        async def request(number: int) -> None:
            with tracer.start_as_current_span(f"request {number}"):
                await model.embed_query(f"what is the answer to question {number}?")

        async with anyio.create_task_group() as group:
            documents = islice(stdlib_docstrings(), arguments.documents)
            group.start_soon(model.embed(documents, key=lambda document: document.text).collect)
            for number in range(8):
                group.start_soon(request, number)
        print(short(repr(model)))
    await anyio.to_thread.run_sync(provider.shutdown)  # sends what is left
    for line in generate_latest(registry).decode().splitlines():
        if not line.startswith("#") and "_bucket" not in line and "_created" not in line:
            print(short(line))


def short(text: str) -> str:
    """A local model is called by its path."""
    return text.replace(str(demo_model()), "all-MiniLM-L6-v2")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--documents", type=int, default=100, help="how many docstrings (default 100)")
    parser.add_argument("--port", type=int, help="serve the metrics at this port")
    return parser.parse_args()


if __name__ == "__main__":
    anyio.run(main)
