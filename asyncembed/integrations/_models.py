"""What the adapters share: the model that they are handed, for coroutines and for threads.

```python
model = Model(TextEmbedding, "BAAI/bge-small-en-v1.5", keep_alive=300)  # or a model, open or not, also of `sync`

vector = await model.anywhere.embed_query("what is it?")  # on any event loop, in any thread


def blocking():  # for threads
    return model.run(lambda opened: opened.embed_query("what is it?"), instead="embed_query")
```
"""

import warnings
from collections.abc import Awaitable, Callable, Iterable
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

from anyio.lowlevel import checkpoint

from asyncembed import background
from asyncembed.any_loop import face_of, is_loop_of, run_blocking, unopened_of
from asyncembed.catalogue.spec import ModelSpec
from asyncembed.embedders.base import Embedder
from asyncembed.embedders.intake import as_source, check_source
from asyncembed.errors import OptionError, UsageError
from asyncembed.sync import face_of_sync, is_loop_here, may_block_loops

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EmbedderT = TypeVar("EmbedderT", bound=Embedder)
T = TypeVar("T")

LISTED_AT_ONCE = 8192
"""Numbers that become Python's in one turn of the event loop: half a millisecond at most."""


class Model(Generic[EmbedderT]):
    """The model of an adapter; any event loops and threads may use it at once.

    A model that is open, or that the program opens later, is used on its own event loop, and stays the program's to
    close. One that the program never opens, and a name, stand for the engine of all who ask for the same class, name
    and options: the first call opens it, and it closes with its last user, or with the interpreter. One of
    `asyncembed.sync` is used likewise, until it is closed.

    A pickle holds the class, name and options; what comes out of it opens an engine in its own process. A copy, also a
    deep one, is the very same object.

    Args:
        kind: The asynchronous class.
        model: A model of that class, or of the class of the same name in `asyncembed.sync`; or a name, directory or
            spec, as the class takes it.
        keep_alive: With a name: seconds after which the engine closes when nobody uses it, until the next call.
        options: With a name: keywords of the class.

    Raises:
        OptionError: Something else; or options beside a model, which has its own.
    """

    anywhere: EmbedderT
    """The model for coroutines: its methods may be called and awaited on any event loop."""

    def __init__(
        self, kind: type[EmbedderT], model: object, *, keep_alive: float | None = None, **options: Any
    ) -> None:
        self._kind = kind
        self._given = options if keep_alive is None else {**options, "keep_alive": keep_alive}
        self._name = model if isinstance(model, str | PathLike | ModelSpec) else None
        self._has_warned = may_block_loops(model)
        if self._name is not None:
            self.anywhere = kind(self._name, **options).on_any_loop(keep_alive=keep_alive)
            return
        face = face_of(model) if isinstance(model, Embedder) else face_of_sync(model)
        if not isinstance(face, kind):
            raise OptionError(
                f"model= takes a {kind.__name__}, of asyncembed or asyncembed.sync, or a model's name; got {model!r}"
            )
        if self._given:
            raise OptionError(f"{', '.join(self._given)}: give this to the model's constructor, or give its name here")
        self.anywhere = face

    @property
    def name(self) -> str:
        """The name or directory as it was given."""
        return self.anywhere.model_name

    def run(self, function: Callable[[EmbedderT], Awaitable[T]], *, instead: str) -> T:
        """What `await function(model)` gives with the open model, on its event loop; blocks the calling thread.

        Where another event loop runs in this thread, it is held up meanwhile, of which a `RuntimeWarning` tells once.

        Args:
            function: Is called on the model's event loop.
            instead: The adapter's asynchronous method, for messages.

        Raises:
            UsageError: The model is open on the event loop of this very thread, which would wait for itself.
            AsyncEmbedError: What opening raises.
        """
        if is_loop_of(self.anywhere):
            raise UsageError(
                f"the model is open on the event loop of this thread, and this call would block that for ever: "
                f"`await {instead}(...)`; or give a model's name as model=, which is opened on a loop in the background"
            )
        if is_loop_here() and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"this call blocks the event loop that runs in this thread; `await {instead}(...)` does not",
                RuntimeWarning,
                stacklevel=3,
            )
        return run_blocking(self.anywhere, function)

    # ---------------------------------------------------------------- closing

    async def aclose(self) -> None:
        """If it was given by name, give its engine back, and wait for its end where nobody else uses it.

        The next call opens it again.
        """
        if self._name is not None:
            await self.anywhere.aclose()

    def close(self) -> None:
        """The same; blocks the calling thread."""
        if self._name is not None:
            background.run_last(self.anywhere.aclose)

    # ---------------------------------------------------------------- as configuration

    @property
    def is_configuration(self) -> bool:
        """Whether it was given a name, and so can be written down."""
        return self._name is not None and not isinstance(self._name, ModelSpec)

    def configuration(self) -> dict[str, Any]:
        """Name and options by keyword, `model` among them, for files; what it was made of.

        Raises:
            UsageError: It was given a model or a spec, which no file can hold.
        """
        if self._name is None or isinstance(self._name, ModelSpec):
            raise UsageError("only a model's name and options can be written down: give these instead of a model")
        return {"model": fspath(self._name), **self._given}

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[Any, ...]]:
        model = unopened_of(self.anywhere) if self._name is None else self._name
        return cast("Callable[..., Self]", _again), (type(self), self._kind, model, self._given)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __repr__(self) -> str:
        return repr(self.anywhere)


def _again(
    own: type[Model[EmbedderT]], kind: type[EmbedderT], model: object, given: dict[str, Any]
) -> Model[EmbedderT]:
    return own(kind, model, **given)


def listed(inputs: Iterable[T]) -> list[T]:
    """The inputs of a call: one `str` is one of them, and not its characters, in a framework that would take it apart.

    Raises:
        InputError: It is none that holds inputs, or iterates as something other than these.
    """
    source = as_source(inputs)
    check_source(source)
    return list(cast("Iterable[T]", source))


async def as_lists(vectors: "NDArray[np.number[Any]]") -> list[Any]:
    """`vectors.tolist()`, in steps that let the event loop go on: (n, dim) gives n lists of dim numbers."""
    rows = max(1, LISTED_AT_ONCE // max(1, vectors[:1].size))
    lists: list[Any] = []
    for start in range(0, len(vectors), rows):
        if start:
            await checkpoint()
        lists += vectors[start : start + rows].tolist()
    return lists
