"""A model in a pool: how to load it, what it has computed, and what is learnt of it while it computes.

Plain objects; only the dispatcher and whoever makes items call what changes them.
"""

import sys
from collections import defaultdict, deque
from collections.abc import Hashable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from asyncembed.encoders.encoder import Encoded, ModelInfo
from asyncembed.engine.scheduler import Batch, BatchKey, Item, Priority, Sink

if TYPE_CHECKING:
    from asyncembed.encoders.encoder import EncoderConfig
    from asyncembed.errors import AsyncEmbedError
    from asyncembed.observing import Observers
    from asyncembed.reuse.deduplication import Reuse

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
        """By what a batch costs in tokens of short texts, as estimated; 0 until one was measured."""

    @property
    def is_known(self) -> bool:
        """Whether any batch was measured."""
        return self.batch_seconds > 0

    def measure(self, seconds: float, cost: int) -> None:
        """Learn from a batch that costs so much."""
        weight = 1 - SPEED_MEMORY if self.is_known else 1.0
        self.batch_seconds += weight * (seconds - self.batch_seconds)
        self.seconds_per_token += weight * (seconds / max(1, cost) - self.seconds_per_token)

    def seconds(self, cost: int) -> float:
        """How long a batch that costs so much will take."""
        return self.seconds_per_token * cost


class TokenRatio:
    """How many tokens a unit (a character of a text) is, besides the special ones: in one mode of one model.

    Queries that are padded to a fixed length, or get a prompt, teach another ratio than passages do.
    """

    __slots__ = ("_tokens", "_units", "tokens_per_unit")

    def __init__(self) -> None:
        # Of English, with the weight of one short text.
        self._units, self._tokens = 100.0, 30.0
        self.tokens_per_unit: float = self._tokens / self._units

    def learn(self, units: int, tokens: int) -> None:
        """Learn that inputs of so many units, together, had so many tokens."""
        self._units = ESTIMATE_MEMORY * self._units + units
        self._tokens = ESTIMATE_MEMORY * self._tokens + tokens
        self.tokens_per_unit = self._tokens / self._units


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
        workers: Workers the pool has. With `workers=0` it is 1: the thread of this process.
        workers_interactive: Those of them that are there for interactive calls alone: `interactive_workers`, or the one
            that has come by itself.
        workers_ready: Workers that run now.
        workers_restarted: How often a worker was replaced.
        refused: Inputs that were not taken, as too many waited (`max_queued`).
        truncated: Inputs computed that had been cut at the length limit.
        deduplicated: Inputs that got the result of an equal one, which was being computed.
        cache_hits: Inputs whose results were found in the cache (`cache=`).
        cache_misses: Inputs whose results were not, and that were computed therefore.
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
    refused: int = 0
    truncated: int = 0
    deduplicated: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    workers_interactive: int = 0

    @property
    def queued(self) -> int:
        """Inputs that wait for a worker."""
        return self.queued_interactive + self.queued_bulk

    @property
    def padding_share(self) -> float:
        """The part of the computed tokens that was padding, 0 to 1."""
        return 1 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0

    def in_words(self) -> str:
        """What was done, and what is waiting to be."""
        done = f"{self.items} inputs in {self.batches} batches" + (f", {self.failed} failed" if self.failed else "")
        return f"{done}; {self.queued} waiting, {self.in_flight} batches in flight"


class PooledModel:
    """One model in a pool: how to load it, what came of that, and what it has computed."""

    def __init__(self, key: int, config: "EncoderConfig") -> None:
        self.key = key
        self.config = config
        self.info: ModelInfo = ModelInfo()
        self.observers: Observers | None = None
        """Who hears of its batches; None: nobody."""
        self.reuse: Reuse | None = None
        """What goes between its inputs and the pool; None: nothing."""
        self.is_wanted = False
        """Whether workers load it ahead of its first batch."""
        self.is_warming = False
        """Whether somebody waits until every worker has it."""
        self.needs_express = False
        """Whether interactive work of it waits for bulk work, or will: an express worker loads it."""
        self.asked: float = -inf
        """When a worker was last sent interactive work of it."""
        self.asked_since: float = -inf
        """When it was first sent some, of that which came without a long pause."""
        self.load_error: AsyncEmbedError | None = None
        self.load_crashes = 0
        self.batches: int = 0
        self.items: int = 0
        self.failed: int = 0
        self.refused: int = 0
        self.tokens: int = 0
        self.padded_tokens: int = 0
        self.truncated: int = 0
        self.deduplicated: int = 0
        self.cache_hits: int = 0
        self.cache_misses: int = 0
        self.batch_seconds: deque[float] = deque(maxlen=64)
        # By mode: to count tokens takes less than to embed.
        self._speeds: defaultdict[Hashable, Speed] = defaultdict(Speed)
        self._ratios: defaultdict[Hashable, TokenRatio] = defaultdict(TokenRatio)

    @property
    def name(self) -> str:
        """As its spec calls it."""
        return self.config.spec.name

    def batch_key(self, call: Hashable) -> BatchKey:
        """What inputs must have in common with those of `call` to share a batch with them."""
        # What came up in the workers decides: a model on the CPU does not get an accelerator's batches.
        max_tokens = self.info.max_batch_tokens or self.config.max_batch_tokens
        max_size = self.config.max_batch_size or sys.maxsize
        # Images are equally long, and to count tokens nothing attends to anything.
        is_of_lengths = _mode_of(call) not in ("count", "image")
        attention_tokens = self.info.attention_tokens if is_of_lengths else None
        return BatchKey(self.key, call, max_tokens, max_size, attention_tokens)

    def speed(self, batch_key: BatchKey) -> Speed:
        """How fast it computes what is asked of it in this mode."""
        return self._speeds[_mode_of(batch_key.call)]

    def most_seconds(self, cost: int) -> float:
        """How long a batch that costs so much takes in the slowest mode that was measured."""
        return max((speed.seconds(cost) for speed in self._speeds.values()), default=0.0)

    def item_maker(self, batch_key: BatchKey, priority: Priority) -> "ItemMaker":
        """Makes the items of one stream or call."""
        return ItemMaker(self, batch_key, priority, self._ratios[_mode_of(batch_key.call)])

    def count_failure(self) -> None:
        """Count an input that never reached a worker."""
        self.failed += 1

    def record(self, batch: Batch, answer: Encoded, seconds: float) -> None:
        """Count a computed batch, and learn from it."""
        self.batches += 1
        self.items += len(batch.items)
        self.failed += len(answer.failures)
        self.tokens += answer.tokens
        self.padded_tokens += answer.padded_tokens
        if answer.counts and min(answer.counts) < 0:
            self.truncated += sum([count < 0 for count in answer.counts])
        self.batch_seconds.append(seconds)
        # From units, not from the estimates: those were made at different times, from what was known then.
        units = [item.units for item in batch.items]
        tokens = answer.tokens - self.info.special_tokens * len(units)
        if tokens > 0 and all(units) and not answer.failures:
            self._ratios[_mode_of(batch.batch_key.call)].learn(sum(units), tokens)


class ItemMaker:
    """From an input to an item: how large it will be, by what is known when it is made."""

    __slots__ = ("_batch_key", "_limit", "_priority", "_ratio", "_special_tokens")

    def __init__(self, model: PooledModel, batch_key: BatchKey, priority: Priority, ratio: TokenRatio) -> None:
        self._batch_key = batch_key
        self._priority = priority
        self._ratio = ratio
        self._special_tokens = model.info.special_tokens
        limit = model.config.max_length or model.info.max_length or sys.maxsize
        self._limit = sys.maxsize if getattr(batch_key.call, "long", None) == "mean" else limit

    def item(self, value: object, units: int, sink: Sink, index: int) -> Item:
        """One whose tokens are estimated from its units (characters of a text)."""
        tokens = int(units * self._ratio.tokens_per_unit) + self._special_tokens
        if tokens >= self._limit:
            tokens, units = self._limit, 0  # cut: says nothing of how many tokens a unit is
        return Item(value, tokens or 1, self._batch_key, self._priority, sink, index, units)

    def sized_item(self, value: object, tokens: int, sink: Sink, index: int) -> Item:
        """One whose tokens are known."""
        return Item(value, tokens or 1, self._batch_key, self._priority, sink, index)


def _mode_of(call: Hashable) -> Hashable:
    return getattr(call, "mode", None)
