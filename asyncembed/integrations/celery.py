"""A base for tasks of Celery that embed.

```python
from celery import Celery
from asyncembed.sync import TextEmbedding

app = Celery("articles", broker="memory://", backend="cache+memory://")


@app.task(base=EmbeddingTask, bind=True, model=TextEmbedding("BAAI/bge-small-en-v1.5"))
def embed(self, texts):
    return self.model.embed_documents(texts)


print(len(embed(["the way", "a day"])[0]))  # 384
```

Needs `pip install "asyncembed[celery]"`. The model is made where the module is imported, and opened in each process of
the pool by its first task:

- In the **prefork** pool processes may have no children: each computes in threads of its own (`workers=0` by itself),
  with its own copy of the model. The cores are shared out among them.
- With **threads**, all tasks of a worker share one model, and what they ask for at a time is computed together, in
  worker processes. The same goes for **solo**, where there is one task at a time.
- **gevent** and **eventlet** replace the threads that the model needs. They are refused.

A process of the pool can be killed at any time, as by a hard time limit: nothing is left of it. The soft one withdraws
what its task waits for.
"""

from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakSet

import numpy as np

from asyncembed.engine.cores import share_cores
from asyncembed.errors import (
    OF_ONE_INPUT,
    EncodeError,
    InputError,
    OptionError,
    OverloadedError,
    UnreachableError,
    UsageError,
    WorkerCrashed,
    WorkerError,
    WorkersImpossible,
)
from asyncembed.results import SparseEmbedding
from asyncembed.sync import face_of_sync

try:
    import celery
    from celery.concurrency import get_implementation
    from celery.signals import worker_init, worker_process_shutdown, worker_shutdown
except ImportError as _error:
    raise ImportError('asyncembed.integrations.celery needs a package: pip install "asyncembed[celery]"') from _error

if TYPE_CHECKING:

    class _Task:
        """Celery's class has no types."""

        def __getattr__(self, name: str) -> Any: ...

else:
    _Task = celery.Task

__all__ = ["EmbeddingTask"]

_models: WeakSet[Any] = WeakSet()
"""Of all tasks of this process."""


class EmbeddingTask(_Task):
    """The base of a task that embeds: `@app.task(base=EmbeddingTask, bind=True, model=...)`.

    What the task returns may hold our results: arrays become lists on the way, and sparse vectors dicts of two lists,
    since results travel as JSON. An error in the place of a result, of `on_error="return"`, becomes a dict of its
    message, as `{"error": "input 3: ..."}`. Of one that the task raises, the sender gets class and message, which names
    the input, and no `index`. Give a task many texts; what it costs to bring them there is paid once.

    Attributes:
        model: A model of `asyncembed.sync`, that is not opened where it is made. It is closed when the worker ends.
        throws: Inputs that cannot be embedded are the sender's affair: logged without a traceback, and never retried.
        autoretry_for: What may pass: too much to do, a hub that does not answer, workers that cannot be started.

    Raises:
        OptionError: (when the app is finalized) `model` is none of `asyncembed.sync`.
    """

    abstract = True
    model: ClassVar[Any] = None
    throws: ClassVar[tuple[type[Exception], ...]] = OF_ONE_INPUT
    autoretry_for: ClassVar[tuple[type[Exception], ...]] = (OverloadedError, UnreachableError, WorkerError)
    dont_autoretry_for: ClassVar[tuple[type[Exception], ...]] = (*OF_ONE_INPUT, WorkersImpossible)
    retry_backoff: ClassVar[bool | int] = True

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if cls.model is not None:
            if face_of_sync(cls.model) is None:
                raise OptionError(f"model= of a task takes a model of asyncembed.sync; got {cls.model!r}")
            _models.add(cls.model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the task returns, without arrays."""
        if not _has_threads:
            raise UsageError(
                "gevent and eventlet replace the threads that a model needs: use --pool prefork or threads"
            )
        try:
            return _plain(self.run(*args, **kwargs))
        except OF_ONE_INPUT as error:
            if not self.request.called_directly:
                error.args, error.index = (str(error),), None  # attributes do not travel
            raise


def _plain(value: Any) -> Any:
    """The same of lists, dicts, numbers and texts only."""
    match value:
        case np.ndarray() | np.generic():
            return value.tolist()
        case SparseEmbedding():
            return _plain(value.as_object())
        case InputError() | EncodeError() | WorkerCrashed():
            return {"error": str(value)}
        case list() | tuple():
            return [_plain(one) for one in value]
        case dict():
            return {name: _plain(one) for name, one in value.items()}
    return value


# ---------------------------------------------------------------- the worker that this process is, or was forked from


_has_threads = True


def _begin(sender: Any, **_: Any) -> None:
    global _has_threads
    pool = get_implementation(sender.pool_cls).__module__.rpartition(".")[2]
    _has_threads = pool not in ("gevent", "eventlet")
    most = max(sender.options.get("autoscale") or (sender.concurrency,))
    share_cores(most if pool == "prefork" else 1)


def _end(**_: Any) -> None:
    for model in list(_models):
        model.unload()


worker_init.connect(_begin)
for _signal in (worker_process_shutdown, worker_shutdown):
    _signal.connect(_end)
