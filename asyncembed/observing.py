"""Watching models from outside: what an observer hears of openings, calls and batches.

An observer is a function; `observers=` of any embedder takes some of them, and each hears every event:

```python
def slow_calls(event: Event) -> None:
    if isinstance(event, CallEnded) and event.call.seconds > 1:
        print(event.call.mode, event.call.inputs, event.call.seconds)


async with TextEmbedding("BAAI/bge-small-en-v1.5", observers=[slow_calls]) as model:
    ...
```

Observers are called on the model's event loop, in between everything else, so they must be quick and may not wait.
`CallBegan` comes in the context of the caller (its context variables are the caller's). An exception of an observer,
`SystemExit` included, is logged and goes no further. No event holds an input or a result. Where nobody observes,
nothing is done for it.

`asyncembed.integrations.opentelemetry` and `asyncembed.integrations.prometheus` are observers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from logging import Logger, getLogger
from time import perf_counter
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from asyncembed.encoders.encoder import Encoded, Mode
    from asyncembed.engine.model import Stats
    from asyncembed.engine.scheduler import Item

__all__ = [
    "BatchEnded",
    "CallBegan",
    "CallEnded",
    "Event",
    "ModelClosed",
    "ModelOpened",
    "ObservedCall",
    "ObservedModel",
    "Observer",
]

logger: Logger = getLogger("asyncembed")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObservedModel:
    """One opening of a model.

    Attributes:
        name: As its spec calls it.
        dim: Length of its vectors; None where they have none, or it is not known.
        stats: Gives its numbers, from any thread, also once it is closed.
    """

    name: str
    dim: int | None
    stats: "Callable[[], Stats]"


@dataclass(slots=True, kw_only=True, eq=False)
class ObservedCall:
    """One call or stream: it changes until `CallEnded`.

    A stream begins when its first result is asked for, and ends with its last one, or when it is closed.

    Attributes:
        model: What computes it.
        mode: What its inputs are, or "count" where only their tokens are counted.
        priority: Which lane its inputs wait in.
        inputs: Computed so far.
        tokens: Of those, without padding. With an encoder of somebody's own that does not count them by input, those of
            a batch are shared out by size.
        failed: Inputs with an error instead of a result.
        error: What the whole call ended with; None: nothing, or the caller left.
        seconds: From beginning to end; 0 before.
    """

    model: ObservedModel
    mode: "Mode"
    priority: Literal["interactive", "bulk"]
    inputs: int = 0
    tokens: int = 0
    failed: int = 0
    error: BaseException | None = None
    seconds: float = 0.0
    _began: float = field(default_factory=perf_counter)
    _tell: "Callable[[Event], None]"

    @property
    def error_name(self) -> str | None:
        """The class of its error, "cancelled" where it was cancelled; never a message, which may hold anything."""
        kind = type(self.error)
        if self.error is None:
            return None
        return "cancelled" if kind.__name__ in ("CancelledError", "Cancelled") else kind.__name__

    def end(self, error: BaseException | None = None) -> None:
        """For the package: tell that it ended."""
        self.error = error
        self.seconds = perf_counter() - self._began
        self._tell(CallEnded(self))


@dataclass(frozen=True, slots=True)
class ModelOpened:
    """A model is ready."""

    model: ObservedModel


@dataclass(frozen=True, slots=True)
class ModelClosed:
    """Nothing more comes of a model; calls that were under way may end a little later."""

    model: ObservedModel


@dataclass(frozen=True, slots=True)
class CallBegan:
    """A call begins; this comes in the context of its caller."""

    call: ObservedCall


@dataclass(frozen=True, slots=True)
class CallEnded:
    """A call or stream ended, whatever its end; in any context."""

    call: ObservedCall


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEnded:
    """A worker has answered a batch.

    Attributes:
        model: What computed it.
        calls: Whose inputs were in it, each once; those that nobody waits for any more are left out.
        inputs: How many inputs it had.
        tokens: Computed, without padding.
        padded_tokens: Computed, padding included.
        seconds: From sending to answer, less the time that an earlier batch of the same worker took.
        error: Why the whole batch failed; its inputs may be tried again. None: it has not.
    """

    model: ObservedModel
    calls: Sequence[ObservedCall]
    inputs: int
    tokens: int
    padded_tokens: int
    seconds: float
    error: Exception | None


Event: TypeAlias = ModelOpened | ModelClosed | CallBegan | CallEnded | BatchEnded

Observer: TypeAlias = Callable[[Event], object]
"""Called with each event; what it returns is not looked at."""


class Observers:
    """Those of one opening of a model: for the package, which has None where there are none."""

    def __init__(self, observers: Sequence[Observer], model: ObservedModel) -> None:
        self._observers = observers
        self._model = model

    def tell(self, event: Event) -> None:
        """Let all of them hear it."""
        for observer in self._observers:
            try:
                observer(event)
            except KeyboardInterrupt:
                raise
            except BaseException:
                # An exit, too: what is told of a batch runs in a task of the pool, which is everybody's.
                logger.exception("%s: an observer failed at %s", self._model.name, type(event).__name__)

    def opened(self) -> None:
        """Tell that the model is ready."""
        self.tell(ModelOpened(self._model))

    def closed(self) -> None:
        """Tell that it is no more."""
        self.tell(ModelClosed(self._model))

    def begin(self, mode: "Mode", priority: Literal["interactive", "bulk"]) -> ObservedCall:
        """Tell that a call begins, which is to be ended by its `end`."""
        call = ObservedCall(model=self._model, mode=mode, priority=priority, _tell=self.tell)
        self.tell(CallBegan(call))
        return call

    def batch_ended(self, items: "Sequence[Item]", answer: "Encoded | Exception", seconds: float) -> None:
        """Count a batch for its calls, and tell that it was answered."""
        error = answer if isinstance(answer, Exception) else None
        shares = [0] * len(items) if isinstance(answer, Exception) else _shares(items, answer)
        calls: dict[ObservedCall, None] = {}  # in order, each once
        for item, tokens in zip(items, shares, strict=True):
            # Sinks that belong to a call say so.
            call = getattr(item.sink, "observed", None)
            if isinstance(call, ObservedCall):
                calls[call] = None
                if error is None:
                    call.inputs += 1
                    call.tokens += tokens
        self.tell(
            BatchEnded(
                model=self._model,
                calls=tuple(calls),
                inputs=len(items),
                tokens=getattr(answer, "tokens", 0),
                padded_tokens=getattr(answer, "padded_tokens", 0),
                seconds=seconds,
                error=error,
            )
        )


def _shares(items: "Sequence[Item]", answer: "Encoded") -> list[int]:
    """The tokens of each input."""
    if answer.counts is not None:
        return [abs(count) for count in answer.counts]
    # By where each ends, so that the parts add up.
    ends = list(accumulate((item.size for item in items), initial=0))
    return [end - start for start, end in pairwise(answer.tokens * end // ends[-1] for end in ends)]
