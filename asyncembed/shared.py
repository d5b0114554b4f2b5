"""One engine for all who ask for the same model: opened at first use, counted, closed with its last user.

An *engine* is a model that is open on the background loop (`asyncembed.background`), with its workers. The same class,
name and options are one engine, wherever in the process they are asked for. Who may want to use one has a `Lease`:

```python
lease = Lease(TextEmbedding("BAAI/bge-small-en-v1.5"))            # in any thread; opens nothing
vector = background.run(lease.call, lambda model: model.embed_query("what is backpressure?"))  # the first call opens it
background.run(lease.aclose)                                      # or drop the lease: the last one closes the engine
```

What is `async` here, and `Use.end`, runs on the background loop: by `background.run`, `run_async` or `post`. The model
that a lease is made of is never opened: it says what is wanted. A forked child opens an engine of its own.
"""

import os
import threading
from collections.abc import Awaitable, Callable, Hashable, Mapping
from copy import copy
from dataclasses import fields, is_dataclass
from math import inf
from time import perf_counter
from typing import Any, Generic, TypeVar, cast
from weakref import finalize

from anyio import CancelScope, Event, move_on_after

from asyncembed import background
from asyncembed.engine.lifetime import Openable, again
from asyncembed.errors import StateError
from asyncembed.faking import Fakes, current_fakes
from asyncembed.wakeup import Signal

T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=Openable[Any])


class Lease(Generic[ModelT]):
    """The right of one user to one engine; given back by `close`, `aclose`, or by dropping it.

    Args:
        model: What is wanted: a model that is not open.
        keep_alive: Seconds after which the engine is closed when nobody uses it, to be opened again by the next call;
            None never does so. Of several leases the longest time counts.
    """

    def __init__(self, model: ModelT, *, keep_alive: float | None = None) -> None:
        self.keep_alive = keep_alive
        ticket = _Ticket(inf if keep_alive is None else keep_alive)
        self._share: _Share[ModelT] = _share_of(model, ticket)
        self._give_back = finalize(self, _give_back, self._share, ticket)
        self._give_back.atexit = False

    async def call(self, function: Callable[[ModelT], Awaitable[T]]) -> T:
        """What `await function(model)` gives with the open model, which counts as used meanwhile.

        Raises:
            AsyncEmbedError: It cannot be opened. The next call tries again.
            StateError: The lease was given back; or the engine was unloaded during the call.
        """
        use = await self.use()
        try:
            return await function(use.model)
        finally:
            use.end()

    async def use(self) -> "Use[ModelT]":
        """The open model, which counts as used until `Use.end`: for streams. Errors as with `call`."""
        if not self.is_held:
            raise StateError("this was closed: make another one")
        return (await self._share.life()).use()

    async def unload(self) -> None:
        """Close the engine at once, for all its users; the next call opens it again. What runs gets a `StateError`."""
        await self._share.unload()

    @property
    def is_held(self) -> bool:
        """Whether it was not given back."""
        return self._give_back.alive

    @property
    def model(self) -> ModelT | None:
        """The model while it is open: for its properties and `stats`, which may be read in any thread."""
        return self._share.open_model()

    def close(self) -> None:
        """Give it back, from any thread. The engine closes soon if this was the last lease."""
        self._give_back()

    async def aclose(self) -> None:
        """Give it back, and wait for the engine's end if this was the last lease."""
        self._give_back()
        await self._share.unload_if_unwanted()


class Use(Generic[ModelT]):
    """An open model that is being used."""

    def __init__(self, life: "_Life[ModelT]") -> None:
        self.model: ModelT = life.model
        self._life: _Life[ModelT] | None = life
        life.uses += 1

    def end(self) -> None:
        """It is no more; again, nothing happens."""
        if self._life is not None:
            self._life.uses -= 1
            self._life.last_used = perf_counter()
            self._life = None


# ---------------------------------------------------------------- who wants what


class _Ticket:
    """Stands for a lease, without referring to it."""

    def __init__(self, keep_alive: float) -> None:
        self.keep_alive = keep_alive


class _Share(Generic[ModelT]):
    """All leases of one engine, and the engine when it is open: its life, which only the background loop changes."""

    def __init__(self, model: ModelT, key: Hashable) -> None:
        self.key = key
        self.tickets: set[_Ticket] = set()
        self._model = model
        self._life: _Life[ModelT] | None = None

    def keep_alive(self) -> float:
        return max((ticket.keep_alive for ticket in list(self.tickets)), default=0.0)

    def open_model(self) -> ModelT | None:
        life = self._life
        return life.model if life is not None and life.is_open and life.process == os.getpid() else None

    async def life(self) -> "_Life[ModelT]":
        """The open one, opened if need be."""
        while True:
            life = self._current()
            if life is not None and life.fakes is not current_fakes():
                await life.end()  # a test has switched fakes on or off
                continue
            if life is None:
                life = self._life = _Life(unopened(self._model), self.keep_alive)
                background.start_task(life.run)
            if life.is_open:
                return life
            if await life.wait_open():
                return life

    def _current(self) -> "_Life[ModelT] | None":
        life = self._life
        if life is not None and life.process != os.getpid():
            _of_parents.append(life)
            self._life = life = None
        return None if life is None or life.is_over else life

    async def unload(self) -> None:
        life = self._current()
        if life is not None:
            await life.end()

    async def unload_if_unwanted(self) -> None:
        if not self.tickets:
            await self.unload()

    def look(self) -> None:
        """The leases have changed; on the loop."""
        life = self._current()
        if life is not None and not self.tickets:
            life.stop()
        elif life is not None:
            life.changed.notify()


_lock = threading.RLock()
"""Held while tickets and the table below change. Again by the same thread, as a finalizer may come at any time."""

_shares: dict[Hashable, _Share[Any]] = {}
"""Those that somebody has a lease of."""

_of_parents: list[object] = []
"""What a forked child has of its parents' engines: never used, and never collected, since ending them is not its
part."""


def _share_of(model: ModelT, ticket: _Ticket) -> _Share[ModelT]:
    key = _identity(model)
    with _lock:
        while True:
            share = cast("_Share[ModelT]", _shares.get(key) or _Share(unopened(model), key))
            share.tickets.add(ticket)
            if _shares.setdefault(key, share) is share:
                break
            share.tickets.discard(ticket)
    background.post(share.look)
    return share


def _give_back(share: _Share[Any], ticket: _Ticket) -> None:
    with _lock:
        share.tickets.discard(ticket)
        if not share.tickets and _shares.get(share.key) is share:
            del _shares[share.key]
    background.post(share.look)


def _forget_parents() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parents)


# ---------------------------------------------------------------- one opening


class _Life(Generic[ModelT]):
    """An engine from its opening to its closing: a task of the background loop. All of it happens there."""

    def __init__(self, model: ModelT, keep_alive: Callable[[], float]) -> None:
        self.model = model
        self.process: int = os.getpid()
        self.fakes: Fakes | None = current_fakes()
        self.is_open: bool = False
        self.is_over: bool = False
        """Whether another one may begin."""
        self.uses = 0
        self.last_used: float = 0.0
        self.changed: Signal = Signal()
        """When somebody should look again at what this does."""
        self._keep_alive = keep_alive
        self._waiting = 0
        self._is_stopped = False
        self._failure: Exception | None = None
        self._scope = CancelScope()
        self._opened = Event()
        self._ended = Event()

    def use(self) -> Use[ModelT]:
        return Use(self)

    async def run(self) -> None:
        try:
            with self._scope:
                async with self.model:
                    self.last_used = perf_counter()
                    self.is_open = True
                    self._opened.set()
                    await self._wait_unused()
                    self.is_open = False
        except Exception as error:  # noqa: BLE001 (it is of those who wait)
            self._failure = error
        finally:
            self.is_open, self.is_over = False, True
            self._opened.set()
            self._ended.set()

    async def _wait_unused(self) -> None:
        while not self._is_stopped:
            limit = self._keep_alive()
            left = limit - (0.0 if self.uses else perf_counter() - self.last_used)
            if left <= 0:
                return
            with move_on_after(left):
                await self.changed.wait()

    async def wait_open(self) -> bool:
        """Wait until it is open; False if it ends before, and another one may begin.

        Raises:
            AsyncEmbedError: It cannot be opened.
        """
        if self._opened.is_set() or self._is_stopped:  # it is closing
            await self._ended.wait()
            return False
        self._waiting += 1
        try:
            await self._opened.wait()
        except BaseException:
            if self._waiting == 1 and not self._opened.is_set():
                # Nobody else wants it to open.
                self.stop()
                with CancelScope(shield=True):
                    await self._ended.wait()
            raise
        finally:
            self._waiting -= 1
        if self._failure is not None:
            raise again(self._failure)
        return self.is_open

    def stop(self) -> None:
        self._is_stopped = True
        if self.is_open:
            self.is_open = False
            self.changed.notify()
        elif not self._opened.is_set():
            self._scope.cancel()

    async def end(self) -> None:
        self.stop()
        await self._ended.wait()


# ---------------------------------------------------------------- what is the same


_STATE = frozenset({"_owner", "_lease"})
"""What of a model is about its being open, and not what it is."""

_WITHOUT_DIFFERENCE = frozenset({"progress", "keep_alive"})
"""Options that may differ among the users of one engine."""


def unopened(model: ModelT) -> ModelT:
    """Another one of the same, that nobody else can open."""
    return copy(model)


def as_unopened(model: object) -> dict[str, Any]:
    """The attributes of a model that a copy or another process gets: it opens its own."""
    return {name: getattr(type(model), name, None) if name in _STATE else one for name, one in vars(model).items()}


def _identity(model: Openable[Any]) -> Hashable:
    """Equal for models of the same class, name and options, whatever they hold these in."""
    described = {name: value for name, value in vars(model).items() if name not in _STATE}
    return type(model), _frozen(described)


def _frozen(value: object) -> Hashable:
    """A value that is equal where `value` is, and can be hashed; what cannot be compared is only equal to itself."""
    if is_dataclass(value) and not isinstance(value, type):
        parts = {one.name: getattr(value, one.name) for one in fields(value) if one.name not in _WITHOUT_DIFFERENCE}
        return type(value), _frozen(parts)
    if isinstance(value, Mapping):
        return "mapping", frozenset((_frozen(name), _frozen(one)) for name, one in value.items())
    if isinstance(value, list | tuple):
        return "sequence", tuple(map(_frozen, value))
    if isinstance(value, set | frozenset):
        return "set", frozenset(map(_frozen, value))
    try:
        hash(value)
    except TypeError:
        return _Itself(value)
    return type(value), value


class _Itself:
    """Equal to what holds the very same object."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)
