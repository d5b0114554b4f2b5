"""Metrics for Prometheus.

```python
metrics = Metrics()  # in the registry of the program, or the one given
async with TextEmbedding("BAAI/bge-small-en-v1.5", observers=[metrics]) as model:
    ...
```

Needs `pip install "asyncembed[prometheus]"`. All numbers are those of this process, whatever the workers are, so no
directory for several processes is needed. Importing this registers nothing.
"""

import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, assert_never

from asyncembed.observing import (
    BatchEnded,
    CallBegan,
    CallEnded,
    Event,
    ModelClosed,
    ModelOpened,
    ObservedCall,
    ObservedModel,
)

try:
    import prometheus_client as prometheus
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as _error:
    raise ImportError(
        'asyncembed.integrations.prometheus needs a package: pip install "asyncembed[prometheus]"'
    ) from _error

if TYPE_CHECKING:
    from asyncembed.engine.model import Stats

__all__ = ["Metrics"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

_GAUGES: Mapping[str, str] = {
    "asyncembed_queued_interactive": "Inputs of interactive calls that wait for a worker of the model's pool.",
    "asyncembed_queued_bulk": "Inputs of streams that wait for a worker of the model's pool.",
    "asyncembed_in_flight": "Batches that workers of the model's pool have and have not answered.",
    "asyncembed_workers": "Workers of the model's pool.",
    "asyncembed_workers_ready": "Workers of the model's pool that run.",
}
"""Each the field of `Stats` of that name; models that share a pool all show its queue and its workers."""

_COUNTERS: Mapping[str, tuple[str, str]] = {
    "asyncembed_batches": ("batches", "Batches computed."),
    "asyncembed_inputs": ("items", "Inputs computed."),
    "asyncembed_failed_inputs": ("failed", "Inputs that got an error instead of a result."),
    "asyncembed_refused_inputs": ("refused", "Inputs that were not taken, as too many waited (max_queued)."),
    "asyncembed_tokens": ("tokens", "Tokens computed, without padding."),
    "asyncembed_padded_tokens": ("padded_tokens", "Tokens computed, padding included."),
    "asyncembed_truncated_inputs": ("truncated", "Inputs that were cut at the length limit."),
    "asyncembed_deduplicated_inputs": ("deduplicated", "Inputs that got the result of an equal one."),
    "asyncembed_cache_hits": ("cache_hits", "Inputs whose results were found in the cache."),
    "asyncembed_cache_misses": ("cache_misses", "Inputs whose results were not found in the cache."),
    "asyncembed_worker_restarts": ("workers_restarted", "Workers of the model's pool that were replaced."),
}
"""Name of the metric → field of `Stats`, description."""


class Metrics(Collector):
    """An observer that is a collector: the numbers of all models that it observes, by the label `model`.

    Queue, batches in flight, workers, batches, inputs, failures, cut inputs, tokens, padding, restarts and what was
    not computed twice are read from the models when somebody asks, in any thread. Counters go on when a model is closed
    and opened again. Besides, there are histograms of how long calls (`asyncembed_call_seconds`, by operation and
    priority) and batches take, and a counter of the calls that failed, by class of error. The time of a stream is its
    consumer's, too.

    Args:
        registry: Where it is registered; None: nowhere, for a program that does so itself.

    Raises:
        ValueError: The registry has such metrics already.
    """

    def __init__(self, registry: prometheus.CollectorRegistry | None = prometheus.REGISTRY) -> None:
        self._lock = threading.Lock()
        # Those that are open, with the restarts of their pools before that.
        self._open: dict[ObservedModel, int] = {}
        # What those that were closed had done: model's name → field → number.
        self._past: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._calls = prometheus.Histogram(
            "asyncembed_call_seconds",
            "How long calls took.",
            ["model", "operation", "priority"],
            registry=None,
            buckets=SECONDS,
        )
        self._failed_calls = prometheus.Counter(
            "asyncembed_failed_calls", "Calls that ended with an error.", ["model", "operation", "error"], registry=None
        )
        self._batches = prometheus.Histogram(
            "asyncembed_batch_seconds", "How long batches took.", ["model"], registry=None, buckets=SECONDS
        )
        if registry is not None:
            registry.register(self)

    def __call__(self, event: Event) -> None:
        match event:
            case CallBegan():
                pass
            case CallEnded(call):
                self._end_call(call)
            case BatchEnded():
                self._batches.labels(event.model.name).observe(event.seconds)
            case ModelOpened(model):
                with self._lock:
                    self._open[model] = model.stats().workers_restarted
            case ModelClosed(model):
                with self._lock:
                    self._past[model.name].update(_counted(model.stats(), self._open.pop(model)))
            case _:
                assert_never(event)

    def describe(self) -> Iterable[Metric]:
        """What there will be, for the registry."""
        return self.collect()

    def collect(self) -> Iterable[Metric]:
        """The numbers of now; from any thread."""
        with self._lock:
            stats = [(model.name, model.stats(), restarts) for model, restarts in self._open.items()]
            counts = {name: Counter(past) for name, past in self._past.items()}
        for name, now, restarts in stats:
            counts.setdefault(name, Counter()).update(_counted(now, restarts))
        for metric, (field, text) in _COUNTERS.items():
            family = CounterMetricFamily(metric, text, labels=["model"])
            for name, fields in counts.items():
                family.add_metric([name], fields[field])
            yield family
        yield _padding(counts)
        yield from _gauges([(name, now) for name, now, _ in stats])
        for measured in (self._calls, self._failed_calls, self._batches):
            yield from measured.collect()

    def _end_call(self, call: ObservedCall) -> None:
        operation = {"pair": "rerank", "count": "count_tokens"}.get(call.mode, "embed")
        self._calls.labels(call.model.name, operation, call.priority).observe(call.seconds)
        if call.error_name is not None:
            self._failed_calls.labels(call.model.name, operation, call.error_name).inc()


def _counted(stats: "Stats", restarts_before: int) -> Counter[str]:
    counted = Counter({field: int(getattr(stats, field)) for field, _ in _COUNTERS.values()})
    counted["workers_restarted"] -= restarts_before
    return counted


def _padding(counts: Mapping[str, Counter[str]]) -> Metric:
    family = GaugeMetricFamily(
        "asyncembed_padding_share", "The part of the computed tokens that was padding, 0 to 1.", labels=["model"]
    )
    for name, fields in counts.items():
        padded = fields["padded_tokens"]
        family.add_metric([name], 1 - fields["tokens"] / padded if padded else 0.0)
    return family


def _gauges(stats: "Sequence[tuple[str, Stats]]") -> Iterable[Metric]:
    for metric, text in _GAUGES.items():
        family = GaugeMetricFamily(metric, text, labels=["model"])
        totals: Counter[str] = Counter()
        for name, now in stats:
            totals[name] += getattr(now, metric.removeprefix("asyncembed_"))
        for name, total in totals.items():
            family.add_metric([name], total)
        yield family
