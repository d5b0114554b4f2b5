"""Classes for `map_batches` of Ray Data: a column of texts in, a column of vectors out, on any number of machines.

```python
import ray

articles = ray.data.from_items([{"text": text} for text in texts])
embedded = articles.map_batches(
    Embed,
    fn_constructor_args=("BAAI/bge-small-en-v1.5",),
    batch_format="pyarrow",
    batch_size=128,
    num_cpus=2,
    compute=ray.data.ActorPoolStrategy(size=1, max_concurrent_calls_per_actor=2),
)
print(embedded.schema().names)  # ['text', 'vector']
```

Needs `pip install "asyncembed[ray]"`. Ray makes one of them per actor, whose `num_cpus` and `num_gpus` decide about its
workers: processes of its own, each with the model, which open with the first batch. All batches that an actor has at a
time are computed together, beside the thread in which Ray fetches and stores. It has four of a block at a time; with
`max_concurrent_calls_per_actor=2` also those of the next block, so that no worker waits between two blocks. Reading and
writing are tasks of Ray's own: where actors hold all cores of a cluster, these would wait for ever.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeAlias, TypedDict, TypeVar, Unpack, cast

from asyncembed.checks import check_choice, check_text
from asyncembed.embedders.roles import TextRoles
from asyncembed.embedders.sparse import SparseKeywords, SparseTextEmbedding
from asyncembed.embedders.text import DEFAULT_MODEL, TextEmbedding, TextKeywords
from asyncembed.engine.pool import workers_by_default
from asyncembed.errors import OptionError
from asyncembed.integrations._models import Model
from asyncembed.readers import texts_of_arrow
from asyncembed.results import SparseEmbedding

try:
    import numpy as np
    import pyarrow as pa
    import ray
except ImportError as _error:
    raise ImportError('asyncembed.integrations.ray needs packages: pip install "asyncembed[ray]"') from _error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from asyncembed.embedders.base import ModelName

__all__ = ["ColumnKeywords", "Embed", "EmbedSparse", "OnBadRow", "Role"]

OnBadRow: TypeAlias = Literal["raise", "skip", "return"]
Role: TypeAlias = Literal["passage", "query"]

EmbedderT = TypeVar("EmbedderT", bound=TextRoles[Any, Any])


class ColumnKeywords(TypedDict, total=False):
    """What the classes take besides the model and its options.

    Keys:
        column: Where the texts are ("text", unless said otherwise).
        vector_column: Where the vectors go ("vector"); a column of that name is replaced.
        role: "passage", or "query" for texts that are queries: it decides about prompts and tasks.
        on_error: What becomes of a row whose text cannot be embedded, or is null: "raise" (unless said otherwise) fails
            with its error, "skip" leaves the row out, "return" keeps it, with null as its vector and the error's
            message in a further column.
        error_column: With "return": where messages go ("error"); null for rows without one.
    """

    column: str
    vector_column: str
    role: Role
    on_error: OnBadRow
    error_column: str


class _Embed(ABC, Generic[EmbedderT]):
    """What they share; a batch is a table of arrow's."""

    _kind: ClassVar[type[TextRoles[Any, Any]]]

    def __init__(
        self,
        model: "ModelName",
        *,
        column: str = "text",
        vector_column: str = "vector",
        role: Role = "passage",
        on_error: OnBadRow = "raise",
        error_column: str = "error",
        **options: Any,
    ) -> None:
        for name, value in (("column", column), ("vector_column", vector_column), ("error_column", error_column)):
            check_text(name, value, may_be_none=False)
        if on_error == "return" and error_column == vector_column:
            raise OptionError(f"error_column= and vector_column= must differ; both are {vector_column!r}")
        check_choice("role", role, ("passage", "query"))
        check_choice("on_error", on_error, ("raise", "skip", "return"))
        self._column, self._vector_column, self._error_column = column, vector_column, error_column
        self._role, self._on_error = role, on_error
        self._model: Model[EmbedderT] = Model(cast("type[EmbedderT]", self._kind), model, **_with_share(options))

    async def __call__(self, batch: Any) -> Any:
        """The batch, a `pyarrow.Table`, with one more column."""
        texts = self._texts(batch)
        if self._on_error == "raise":
            return _with_column(batch, self._vector_column, self._array(await self._stream(texts).collect()))
        results = await self._stream(texts, on_error="return").collect()
        are_bad = np.fromiter((isinstance(result, Exception) for result in results), np.bool_, len(results))
        good = [result for result in results if not isinstance(result, Exception)]
        vectors = self._array(await self._together(good))
        if self._on_error == "skip":
            return _with_column(batch.filter(pa.array(~are_bad)), self._vector_column, vectors)
        # A row of nulls where `take` is given null.
        places = pa.array(np.cumsum(~are_bad) - 1, mask=are_bad)
        errors = [_message(result) if isinstance(result, Exception) else None for result in results]
        batch = _with_column(batch, self._vector_column, vectors.take(places))
        return _with_column(batch, self._error_column, pa.array(errors, pa.string()))

    def _texts(self, batch: Any) -> list[Any]:
        if not isinstance(batch, pa.Table):
            raise OptionError('map_batches takes batch_format="pyarrow" with this class')
        if self._column not in batch.column_names:
            raise OptionError(f"there is no column {self._column!r}: column= must be one of {batch.column_names}")
        return texts_of_arrow(batch.column(self._column))

    def _stream(self, texts: Sequence[Any], **call: Any) -> Any:
        model = self._model.anywhere
        return (model.query_embed if self._role == "query" else model.passage_embed)(texts, **call)

    async def _together(self, results: list[Any]) -> Any:
        """What `collect` of a stream with these results gives."""
        return results

    @abstractmethod
    def _array(self, results: Any) -> Any:
        """An array of arrow's of what `collect` gives."""

    def __del__(self) -> None:
        # Ray drops it when the actor is to end, which would not wait for the workers.
        with suppress(Exception):
            if _is_in_actor():
                self._model.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._model!r}>"


def _message(error: Exception) -> str:
    if hasattr(error, "index"):
        error.index = None  # in its batch, of which nobody knows afterwards
    return str(error)


def _with_column(batch: Any, name: str, values: Any) -> Any:
    if name in batch.column_names:
        return batch.set_column(batch.column_names.index(name), name, values)
    return batch.append_column(name, values)


# ---------------------------------------------------------------- what an actor may use


def _is_in_actor() -> bool:
    return ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None


def _with_share(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a model, with the cores and devices of the actor where they leave these open."""
    if not _is_in_actor():
        return options
    context: Any = ray.get_runtime_context()
    cores = max(1, int(context.get_assigned_resources().get("CPU", 0)))
    devices = options.get("device_ids") or range(len(context.get_accelerator_ids().get("GPU", ())))
    workers = options.get("workers")
    if workers is None:
        workers = len(devices) or workers_by_default(cores)
    threads = options.get("threads") or max(1, cores // max(1, workers))
    return {**options, "workers": workers, "threads": threads, "device_ids": list(devices) or None}


# ---------------------------------------------------------------- the classes


class _TextKeywords(TextKeywords, ColumnKeywords, total=False):
    dtype: Literal["float32", "float16"]
    output: Literal["float", "int8", "binary"]
    int8_ranges: Any


class _SparseKeywords(SparseKeywords, ColumnKeywords, total=False): ...


class Embed(_Embed[TextEmbedding[Any]]):
    """Adds a dense vector to each row: a column of the type `fixed_size_list<float>[dim]`, without a copy.

    Args:
        model: A name, directory or spec, as `TextEmbedding` takes it.
        keywords: `ColumnKeywords`, and keywords of `TextEmbedding`; `dtype` or `output` give a list of halffloat or
            int8. Workers and threads that they leave open come from the actor's cores.

    Raises:
        OptionError: A model, or an option, that cannot work; (with a batch) another batch format, or no such column.
    """

    _kind = TextEmbedding

    def __init__(self, model: "ModelName" = DEFAULT_MODEL, **keywords: Unpack[_TextKeywords]) -> None:
        super().__init__(model, **keywords)

    async def _together(self, results: list[Any]) -> Any:
        # Nothing in it, but of the length and type that vectors have.
        nothing = await self._stream([]).collect()
        return np.concatenate([nothing, np.asarray(results, nothing.dtype).reshape(-1, nothing.shape[1])])

    def _array(self, results: "NDArray[Any]") -> Any:
        return pa.FixedSizeListArray.from_arrays(pa.array(results.reshape(-1)), results.shape[1])


class EmbedSparse(_Embed[SparseTextEmbedding]):
    """Adds a sparse vector to each row: a column of the type `struct<indices: list<int32>, values: list<float>>`.

    Args:
        model: A name, directory or spec, as `SparseTextEmbedding` takes it.
        keywords: `ColumnKeywords`, and keywords of `SparseTextEmbedding`. Workers and threads that they leave open come
            from the actor's cores.

    Raises:
        OptionError: As with `Embed`.
    """

    _kind = SparseTextEmbedding

    def __init__(self, model: "ModelName", **keywords: Unpack[_SparseKeywords]) -> None:
        super().__init__(model, **keywords)

    def _array(self, results: list[SparseEmbedding]) -> Any:
        bounds = pa.array(np.cumsum([0, *map(len, results)], dtype=np.int32))
        parts = {
            "indices": np.concatenate([np.empty(0, np.int32), *(one.indices for one in results)]),
            "values": np.concatenate([np.empty(0, np.float32), *(one.values for one in results)]),
        }
        lists = [pa.ListArray.from_arrays(bounds, pa.array(part)) for part in parts.values()]
        return pa.StructArray.from_arrays(lists, list(parts))
