"""What those ask for who run a server: whether it is ready, and its numbers."""

from collections.abc import Iterable

from anyio import CapacityLimiter, to_thread
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from asyncembed.embedders.base import is_loaded
from asyncembed.integrations.prometheus import Metrics
from asyncembed.observing import ModelClosed, ModelOpened, ObservedModel
from asyncembed.server.endpoint import Reply, Route
from asyncembed.server.meter import Meter
from asyncembed.server.openai_dialect import OpenAIDialect
from asyncembed.server.refusals import Refusal
from asyncembed.server.served import ServedModels
from asyncembed.server.service import Service

BOUNDS = tuple(0.001 * 2**doubling for doubling in range(17))
"""Of the histogram of times: from a millisecond to a minute."""


class Monitor(Collector):
    """The numbers of one server for Prometheus: of its requests, and of its models while they are open.

    They are read when somebody asks: models tell nothing call by call, and so none becomes slower.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._registry = CollectorRegistry()
        self._models = Metrics(self._registry)
        self._open: list[ObservedModel] = []
        self._limiter = CapacityLimiter(1)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def watch(self, models: ServedModels) -> None:
        """Show the numbers of these from now on, by the names that they are served under."""
        self._open = [ObservedModel(name=one.name, dim=None, stats=one.embedder.stats) for one in models]
        for model in self._open:
            self._models(ModelOpened(model))

    def leave(self) -> None:
        """Keep what they have done: they are about to be closed."""
        for model in self._open:
            self._models(ModelClosed(model))
        self._open = []

    def describe(self) -> Iterable[Metric]:
        """What there will be, for the registry."""
        return self.collect()

    def collect(self) -> Iterable[Metric]:
        """The numbers of requests; from any thread."""
        requests = CounterMetricFamily("asyncembed_requests", "Requests answered.", labels=["route", "status"])
        for (route, status), count in sorted(self._meter.by_route.copy().items()):
            requests.add_metric([route, str(status)], count)
        yield requests
        waiting = GaugeMetricFamily("asyncembed_requests_in_progress", "Requests that are not answered yet.")
        waiting.add_metric([], self._meter.in_progress)
        yield waiting
        yield self._seconds()

    def _seconds(self) -> Metric:
        times = self._meter.times()
        buckets = [(str(bound), sum(count for seconds, count in times if seconds <= bound)) for bound in BOUNDS]
        buckets.append(("+Inf", sum(count for _, count in times)))
        family = HistogramMetricFamily("asyncembed_request_seconds", "How long requests took that were served.")
        family.add_metric([], buckets, sum(seconds * count for seconds, count in times))
        return family

    async def text(self) -> bytes:
        """All numbers, as Prometheus reads them."""
        return await to_thread.run_sync(generate_latest, self._registry, limiter=self._limiter)


class Operations(OpenAIDialect):
    """Health and numbers; refusals have OpenAI's form."""

    name = "operations"

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self.routes: tuple[Route, ...] = (
            Route(path="/health", handle=health, summary="Whether requests can be served now.", needs_key=False),
            Route(
                path="/metrics",
                handle=self._metrics,
                media_type="text/plain",
                answer=str,
                summary="Numbers for Prometheus.",
            ),
        )

    async def _metrics(self, _: Service, __: None) -> Reply:
        return Reply(await self._monitor.text(), CONTENT_TYPE_LATEST.encode())


async def health(service: Service, _: None) -> bytes:
    """Whether requests can be served now: the models are open, and there are workers to compute."""
    if not service.is_ready:
        raise Refusal("unavailable", "the models are not ready")
    if not all(model.embedder.stats().workers_ready for model in service.models if is_loaded(model.embedder)):
        raise Refusal("unavailable", "there is no worker at the moment")
    return b'{"status":"ready"}'
