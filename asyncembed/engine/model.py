"""A model in a pool: how to load it, what it has computed, and what is learnt of it while it computes."""

import sys
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anyio import Event

from asyncembed.encoders.encoder import Encoded, ModelInfo
from asyncembed.engine.scheduler import Batch, BatchKey, Item, Priority, Sink

if TYPE_CHECKING:
    from collections.abc import Hashable

    from asyncembed.encoders.encoder import EncoderConfig
    from asyncembed.errors import AsyncEmbedError

SPECIAL_TOKENS = 2
"""Put around every text by most tokenizers."""

ESTIMATE_MEMORY = 0.95
"""How much an earlier batch counts beside the next one when tokens per unit are learnt."""

SPEED_MEMORY = 0.8
"""How much what was measured before counts beside the latest batch."""


class Speed:
    """How long the batches of one model and mode take: workers of a pool that share it learn from each other.

    A plain object; whoever takes a batch's answer calls `measure`.
    """

    __slots__ = ("batch_seconds", "seconds_per_token")

    def __init__(self) -> None:
        self.batch_seconds: float = 0.0
        """Of the latest batches, as they came; 0 until one was measured."""
        self.seconds_per_token: float = 0.0
        """By the estimated tokens of a batch, padding included; 0 until one was measured."""

    @property
    def is_known(self) -> bool:
        """Whether any batch was measured."""
        return self.batch_seconds > 0

    def measure(self, seconds: float, size: int) -> None:
        """Learn from a batch of `size` estimated tokens."""
        weight = 1 - SPEED_MEMORY if self.is_known else 1.0
        self.batch_seconds += weight * (seconds - self.batch_seconds)
        self.seconds_per_token += weight * (seconds / max(1, size) - self.seconds_per_token)

    def seconds(self, size: int) -> float:
        """How long a batch of `size` estimated tokens will take."""
        return self.seconds_per_token * size


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What a pool, or one model in it, has done and is doing: a snapshot.

    Attributes:
        queued_interactive: Inputs that wait for a worker, of the interactive calls.
        queued_bulk: Inputs that wait for a worker, of the streams.
        in_flight: Batches that a worker has and has not answered.
        batches: Batches computed.
        items: Inputs computed.
        failed: Inputs that got an error instead of a result, those that never reached a worker included.
        tokens: Real tokens computed.
        padded_tokens: Tokens computed, padding included.
        batch_seconds: Median time of the latest batches, from sending to answer.
        workers: Workers the pool has.
        workers_ready: Workers that run now.
        workers_restarted: How often a worker was replaced.
    """

    queued_interactive: int
    queued_bulk: int
    in_flight: int
    batches: int
    items: int
    failed: int
    tokens: int
    padded_tokens: int
    batch_seconds: float
    workers: int
    workers_ready: int
    workers_restarted: int

    @property
    def queued(self) -> int:
        """Inputs that wait for a worker."""
        return self.queued_interactive + self.queued_bulk

    @property
    def padding_share(self) -> float:
        """The part of the computed tokens that was padding, 0 to 1."""
        return 1 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0


class PooledModel:
    """One model in a pool: how to load it, what came of that, and what it has computed."""

    def __init__(self, key: int, config: "EncoderConfig") -> None:
        self.key = key
        self.config = config
        self.info: ModelInfo = ModelInfo()
        self.is_wanted = False
        """Whether workers load it ahead of its first batch."""
        self.is_warming = False
        """Whether somebody waits until every worker has it."""
        self.load_error: AsyncEmbedError | None = None
        self.load_crashes = 0
        self.changed: Event = Event()
        self.batches: int = 0
        self.items: int = 0
        self.failed: int = 0
        self.tokens: int = 0
        self.padded_tokens: int = 0
        self.batch_seconds: deque[float] = deque(maxlen=64)
        self._speeds: defaultdict[Hashable, Speed] = defaultdict(Speed)
        # Tokens per character of English, with the weight of one short text.
        self._seen_units, self._seen_tokens = 100.0, 30.0

    def batch_key(self, call: "Hashable") -> BatchKey:
        """What inputs must have in common with those of `call` to share a batch with them."""
        # What came up in the workers decides: a model on the CPU does not get an accelerator's batches.
        max_tokens = self.info.max_batch_tokens or self.config.max_batch_tokens
        return BatchKey(self.key, call, max_tokens, self.config.max_batch_size or sys.maxsize)

    def item(self, value: object, units: int, batch_key: BatchKey, priority: Priority, sink: Sink, index: int) -> Item:
        """An input of `units`, with about as many tokens as they will turn out to be."""
        tokens = self.estimate_tokens(units)
        limit = self.config.max_length or self.info.max_length
        if limit is not None and tokens >= limit:
            tokens, units = limit, 0  # cut: says nothing of how many tokens a unit is
        return Item(value, tokens, batch_key, priority, sink, index, units)

    def count_failure(self) -> None:
        """Count an input that never reached a worker."""
        self.failed += 1

    def estimate_tokens(self, units: int) -> int:
        """Tokens of an input of `units` (characters of a text), by what was computed so far."""
        return int(units * self._seen_tokens / self._seen_units) + SPECIAL_TOKENS

    def speed(self, batch_key: BatchKey) -> Speed:
        """How fast it computes what is asked of it in `batch_key`'s mode: to count tokens takes less than to embed."""
        return self._speeds[getattr(batch_key.call, "mode", None)]

    def record(self, batch: Batch, answer: Encoded, seconds: float) -> None:
        """Count a computed batch, and learn from it."""
        self.batches += 1
        self.items += len(batch.items)
        self.failed += len(answer.failures)
        self.tokens += answer.tokens
        self.padded_tokens += answer.padded_tokens
        self.batch_seconds.append(seconds)
        # From units, not from the estimates: those were made at different times, from what was known then.
        units = [item.units for item in batch.items]
        tokens = answer.tokens - SPECIAL_TOKENS * len(units)
        if tokens > 0 and all(units) and not answer.failures:
            self._seen_units = ESTIMATE_MEMORY * self._seen_units + sum(units)
            self._seen_tokens = ESTIMATE_MEMORY * self._seen_tokens + tokens

    def notify(self) -> None:
        """Wake whoever waits for the model to be loaded."""
        self.changed.set()
        self.changed = Event()
