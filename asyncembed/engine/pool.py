"""The public face of the engine: what users make, open and share; embedders go through `engine_of`."""

import os
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, fields, replace
from typing import NoReturn, TypedDict, Unpack, cast

from asyncembed.checks import check_count, check_device_ids, check_seconds, checks_keywords
from asyncembed.engine.cores import available_cores, available_memory, has_tight_quota
from asyncembed.engine.lifetime import Openable
from asyncembed.engine.model import Stats
from asyncembed.engine.supervisor import Supervisor, WorkerPlan
from asyncembed.errors import OptionError, UsageError
from asyncembed.faking import current_fakes

BATCH_TIMEOUT_SECONDS = 300.0

MAX_WORKERS_ON_WINDOWS = 60
"""Windows waits for 63 handles at once, and Python's own pools for 61 workers."""

MAX_WORKERS_BY_DEFAULT = 16
"""Their batches then take a fifth to a third of the one thread that feeds them all: 0.6 to 1 ms of it for each."""

WORKERS_WHATEVER_MEMORY = 4
GIGABYTE = 2**30
"""Of memory for each worker beyond those four: one whose model could not be prepared holds the weights once more."""


class PoolKeywords(TypedDict, total=False):
    """The keywords of `WorkerPool`, which documents them, for signatures."""

    workers: int | None
    threads: int | None
    interactive_workers: int | None
    device_ids: Sequence[int] | None
    batch_timeout: float | None
    max_queued: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """The same as values, checked."""

    workers: int | None = None
    threads: int | None = None
    interactive_workers: int | None = None
    device_ids: Sequence[int] | None = None
    batch_timeout: float | None = BATCH_TIMEOUT_SECONDS
    max_queued: int | None = None

    def __post_init__(self) -> None:
        check_count("workers", self.workers, minimum=0)
        check_count("threads", self.threads, minimum=1)
        check_count("interactive_workers", self.interactive_workers, minimum=0)
        check_device_ids(self.device_ids)
        check_seconds("batch_timeout", self.batch_timeout, may_be_none=True)
        check_count("max_queued", self.max_queued, minimum=1)
        self._check_processes()

    def _check_processes(self) -> None:
        asked = len(self.device_ids or (0,)) if self.workers is None else self.workers
        together = asked + (self.interactive_workers or 0)
        if os.name == "nt" and asked and together > MAX_WORKERS_ON_WINDOWS:
            raise OptionError(
                f"on Windows workers and interactive_workers may be {MAX_WORKERS_ON_WINDOWS} together; got {together}"
            )

    def pool_keywords(self) -> PoolKeywords:
        """What a pool of one's own is made with."""
        return cast(PoolKeywords, {one.name: getattr(self, one.name) for one in fields(PoolOptions)})

    def changed_for_pool(self) -> list[str]:
        """The names of those that are not the default, and that another pool therefore may not have."""
        return [one.name for one in fields(PoolOptions) if getattr(self, one.name) != one.default]


class WorkerPool(Openable[Supervisor]):
    """Worker processes that several embedders can share.

    ```python
    async with WorkerPool(workers=4) as pool:
        async with (
            TextEmbedding("BAAI/bge-small-en-v1.5", pool=pool) as embedder,
            TextCrossEncoder("Xenova/ms-marco-MiniLM-L-6-v2", pool=pool) as reranker,
        ):
            ...
    ```

    Args:
        workers: Worker processes; None takes one per core that this process may use, 16 at most and beyond four no more
            than there are GB of memory, and a thread where it may have no children (a worker of Celery's, say). 0
            always takes one thread of this process instead (no isolation: a crash of the runtime is a crash of the
            program, and a batch that hangs cannot be ended).
        threads: Threads that each worker computes with; None shares the cores out.
        interactive_workers: Workers besides those, kept free for interactive calls: a query then need not wait for the
            batch of an ingest that each of the others has. None: one comes when a query meets an ingest (or a long
            ingest begins where queries came lately), and goes when there was no query for five minutes; not with
            `workers=0`, with `device_ids`, for a model on an accelerator, or where a container's quota is less than its
            cores, and than four. 0: none. A number: so many, as long as the
            pool is open, with `workers=0` as threads. Each takes some 40 MB, and the weights of what is not prepared.
            The other workers make way for it on a busy core by a lower priority (nice +10; not on Windows), which they
            keep where this process may not raise it again.
        device_ids: Devices, one per worker, dealt out in turn; without `workers` there is one worker for each, in the
            own pool of an embedder with `device="cuda"` two.
        batch_timeout: Seconds after which a worker that has not answered is killed and replaced; None waits for ever. A
            text that alone is over the token budget has four times what it should take, if that is more.
        max_queued: How many inputs of interactive calls may wait for a worker; None: any number. A call that would make
            them more raises `OverloadedError` at once. A list (of `embed_documents`, `embed_images`, `rank`) is taken
            whole or not at all; one that alone is longer, and so never could be, is an `InputError`. A source that
            does not tell its length is taken as it comes, until there is no room. Streams are bulk work, bounded by
            their windows, and not concerned unless they ask for `priority="interactive"`. Calls with images that have
            yet to be fetched or read count by themselves until these are there: as many again.

    Raises:
        OptionError: A value that cannot work.
        WorkerError: (on opening) no worker could be started.
    """

    @checks_keywords
    def __init__(self, **options: Unpack[PoolKeywords]) -> None:
        self._supervisor = Supervisor(plan_of(PoolOptions(**options)))
        self._plan_without_fakes: WorkerPlan | None = None

    def _lifetime(self) -> AbstractAsyncContextManager[Supervisor]:
        # Where there can be no processes, it was learnt by the one before.
        plan = self._plan_without_fakes or self._supervisor.plan
        are_faked = current_fakes() is not None
        self._plan_without_fakes = plan if are_faked else None
        in_threads = replace(plan, in_thread=True, may_call_express=False, batch_timeout=None)
        self._supervisor = Supervisor(in_threads if are_faked else plan)
        return self._supervisor.running()

    @property
    def size(self) -> int:
        """How many workers it has."""
        return self._supervisor.size

    def stats(self) -> Stats:
        """What all models in it have computed, and the state of its queue and workers: a snapshot, from any thread."""
        return self._supervisor.stats()

    def __repr__(self) -> str:
        supervisor: Supervisor | None = getattr(self, "_supervisor", None)  # none while its options are refused
        if supervisor is None:
            return f"<{type(self).__name__} not open>"
        state, stats = supervisor.state, supervisor.stats()
        if state != "open":
            return f"<{type(self).__name__} {state}>"
        return f"<{type(self).__name__} open: {stats.workers_ready} of {stats.workers} workers, {stats.in_words()}>"

    def __reduce__(self) -> NoReturn:
        raise UsageError("the workers of a WorkerPool are this process's: make another one where it shall go")

    def worker_pids(self) -> list[int]:
        """Process ids of the workers that run now; empty with `workers=0`."""
        return self._supervisor.worker_pids()


def engine_of(pool: WorkerPool) -> Supervisor:
    """The engine of the pool's present opening, or of its last one: for the package itself."""
    return pool._supervisor  # noqa: SLF001 (a pool offers its users no more than they need)


def workers_by_default(cores: int) -> int:
    """How many worker processes suit this machine, where so many cores may be used: one thread each is fastest."""
    return min(cores, MAX_WORKERS_BY_DEFAULT, max(WORKERS_WHATEVER_MEMORY, int(available_memory() // GIGABYTE)))


def _comes_by_itself(options: PoolOptions) -> bool:
    """Whether a worker for interactive calls comes when it is of use."""
    return options.interactive_workers is None and not options.device_ids and not has_tight_quota()


def plan_of(options: PoolOptions) -> WorkerPlan:
    """What is asked for, with what this machine decides."""
    cores, wanted, threads = available_cores(), options.workers, options.threads
    if wanted is None:
        wanted = len(options.device_ids) if options.device_ids else workers_by_default(cores)
    return WorkerPlan(
        workers=max(1, wanted),
        reserved=options.interactive_workers or 0,
        may_call_express=_comes_by_itself(options) and wanted > 0,
        threads=max(1, cores // max(1, wanted)) if threads is None else threads,
        cores=cores,
        in_thread=wanted == 0,
        threads_alone=(cores if threads is None else threads) if options.workers is None else None,
        device_ids=tuple(options.device_ids or ()),
        batch_timeout=None if wanted == 0 else options.batch_timeout,
        max_queued=options.max_queued,
    )
