"""Dense text embeddings: one vector per text."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypedDict, Unpack, cast, get_args, overload

from asyncembed.catalogue.described import Overrides
from asyncembed.catalogue.lookup import register
from asyncembed.catalogue.spec import Family, ModelSpec, Pooling
from asyncembed.checks import check_bool, check_choice, check_count, check_long, check_text, checks_keywords
from asyncembed.embedders.base import (
    AnyStream,
    HasVectors,
    ModelName,
    Opened,
    ReturningCall,
    StreamCall,
    StreamKeywords,
    check_stream,
    length_of,
)
from asyncembed.embedders.chunks import (
    ChunkCall,
    ChunkReturningCall,
    ChunkState,
    ChunkStreamCall,
    ChunkStreamKeywords,
    Cutting,
    PieceIntake,
    check_chunks,
    check_pooling,
    chunk_plan,
)
from asyncembed.embedders.intake import InputT, as_source, check_source
from asyncembed.embedders.roles import TEXTS, TextRoles, role_prompt
from asyncembed.encoders.encoder import Call, Mode
from asyncembed.errors import OptionError
from asyncembed.feeding import Source
from asyncembed.options import OptionKeywords
from asyncembed.results import CHUNKS, Assembly, Chunk, Counted, CountedBatch, ScalarT

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from numpy.typing import NDArray

    from asyncembed.stream import EmbeddingStream, ReturningStream

DEFAULT_MODEL = "BAAI/bge-small-en-v1.5"


class TextCall(TypedDict, total=False):
    """What one call of `TextEmbedding` may ask for, instead of what the constructor said.

    Keys:
        prompt: Text put before each input, instead of any prompt by name; "" for none.
        prompt_name: Name of the prompt put before each input.
        task: Task of a multi-task model, by name or number.
        long: What becomes of a text over the length limit: "truncate" cuts it there, "error" makes it an `InputError`,
            "mean" computes it in windows of that length, whose vectors count by their tokens in the mean.
        truncate_dim: Keep only this many leading components, then normalise again (Matryoshka).
    """

    prompt: str | None
    prompt_name: str | None
    task: str | int | None
    long: Literal["truncate", "error", "mean"]
    truncate_dim: int | None


class TextStreamCall(TextCall, StreamCall, total=False):
    """What a call may say that gives a stream."""


class TextReturningCall(TextCall, ReturningCall, total=False):
    """What a call may say that gives a stream with errors in the place of results."""


class TextStreamKeywords(TextCall, StreamKeywords, total=False):
    """What a call may say that gives either."""


class TextKeywords(OptionKeywords, total=False):
    """The keywords that do not decide about the type of a vector, for signatures; `TextEmbedding` documents them."""

    pooling: Pooling | None
    normalize: bool | None
    prompts: bool | Mapping[str, str] | None
    task: str | int | None
    long: Literal["truncate", "error", "mean"]
    truncate_dim: int | None


class TextEmbedding(HasVectors, TextRoles["NDArray[ScalarT]", "NDArray[ScalarT]"], Generic[ScalarT]):
    """Dense text embeddings: one vector per text.

    ```python
    async with TextEmbedding("BAAI/bge-small-en-v1.5") as model:
        async for vector in model.embed(documents):
            ...
        query = await model.embed_query("what is backpressure?")
    ```

    A vector is float32 (dim,) unless `dtype` or `output` asks otherwise.

    Args:
        model_name: A name of the catalogue, a repo on the hub, a local directory, or a `ModelSpec`.
        pooling: From hidden states to one vector, instead of what the model's files say: "cls", "mean", "max",
            "weighted_mean", "mean_sqrt_len", "last_token", or "none" for a graph that pools by itself.
        normalize: Whether vectors are scaled to unit length, instead of what the model's files say.
        prompts: Texts put before inputs, by name: "query" for queries, "document" or "passage" for passages
            (`embed_documents` is for passages), other names for `prompt_name=`. An empty text is a prompt, too; a role
            without one gets none. `embed` puts none, except a repo's declared default.
            True takes the model's own, False none; a mapping takes their place. None is True for a repo that is
            configured for sentence-transformers, and False for a catalogued model, as fastembed does. Prompts that only
            the catalogue knows (e5's "query: " and "passage: " are in no file of its repos) are put with True alone.
        task: Task of a multi-task model, by name or number, for `embed` where a call names none. Queries and passages
            (`query_embed`, `passage_embed`, `embed_query`, `embed_documents`) have tasks of their own.
        long: What becomes of a text over the length limit: "truncate" cuts it there, "error" makes it an `InputError`,
            "mean" computes it in windows of that length, whose vectors count by their tokens in the mean.
        truncate_dim: Keep only this many leading components, then normalise again (Matryoshka); None: as many as the
            repo's `config_sentence_transformers.json` keeps, or all.
        dtype: "float32" or "float16".
        output: "float"; "int8", which needs `int8_ranges`; or "binary", eight components to a byte, as int8.
        int8_ranges: Smallest and largest value of each component, float32 (2, dim), from a sample of the corpus.
        options: The keywords that all classes share (`workers`, `device`, `pool`, ...): see `asyncembed.Options`.
    """

    family: ClassVar[Family] = "text"

    @overload
    def __init__(
        self: "TextEmbedding[np.float32]",
        model_name: ModelName = DEFAULT_MODEL,
        *,
        dtype: Literal["float32"] = "float32",
        output: Literal["float"] = "float",
        **keywords: Unpack[TextKeywords],
    ) -> None: ...
    @overload
    def __init__(
        self: "TextEmbedding[np.float16]",
        model_name: ModelName = DEFAULT_MODEL,
        *,
        dtype: Literal["float16"],
        output: Literal["float"] = "float",
        **keywords: Unpack[TextKeywords],
    ) -> None: ...
    @overload
    def __init__(
        self: "TextEmbedding[np.int8]",
        model_name: ModelName = DEFAULT_MODEL,
        *,
        output: Literal["binary"],
        **keywords: Unpack[TextKeywords],
    ) -> None: ...
    @overload
    def __init__(
        self: "TextEmbedding[np.int8]",
        model_name: ModelName = DEFAULT_MODEL,
        *,
        output: Literal["int8"],
        int8_ranges: "npt.ArrayLike",
        **keywords: Unpack[TextKeywords],
    ) -> None: ...
    @checks_keywords
    def __init__(
        self,
        model_name: ModelName = DEFAULT_MODEL,
        *,
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        prompts: bool | Mapping[str, str] | None = None,
        task: str | int | None = None,
        long: Literal["truncate", "error", "mean"] = "truncate",
        truncate_dim: int | None = None,
        dtype: Literal["float32", "float16"] = "float32",
        output: Literal["float", "int8", "binary"] = "float",
        int8_ranges: "npt.ArrayLike | None" = None,
        **options: Unpack[OptionKeywords],
    ) -> None:
        super().__init__(model_name, **options)
        check_choice("pooling", pooling, (None, *get_args(Pooling)))
        check_choice("dtype", dtype, ("float32", "float16"))
        check_choice("output", output, ("float", "int8", "binary"))
        check_count("truncate_dim", truncate_dim, minimum=1)
        check_long(long, has_mean=True)
        check_bool("normalize", normalize, may_be_none=True)
        _check_task(task)
        if not (prompts is None or isinstance(prompts, bool) or _is_prompts(prompts)):
            raise OptionError(f'prompts must be True, False, or texts by name, as in {{"query": ...}}; got {prompts!r}')
        if dtype != "float32" and output != "float":
            raise OptionError(f"dtype={dtype!r} and output={output!r} exclude each other")
        if (output == "int8") != (int8_ranges is not None):
            raise OptionError(
                'output="int8" and int8_ranges= go together: the smallest and largest value of each component, '
                "np.stack([sample.min(0), sample.max(0)]) of the float embeddings of some hundred documents"
            )
        self._truncate_dim = truncate_dim
        self._pooling = pooling
        self._normalize = normalize
        self._prompts = prompts
        self._base_call = Call(
            task=task,
            long=long,
            truncate_dim=truncate_dim,
            dtype=dtype,
            output=output,
            int8_ranges=None if int8_ranges is None else _as_float32_bytes(int8_ranges),
        )

    # ---------------------------------------------------------------- many inputs

    @overload
    def embed(
        self, documents: Source[str], *, key: None = None, **call: Unpack[TextStreamCall]
    ) -> "EmbeddingStream[str, NDArray[ScalarT], NDArray[ScalarT]]": ...
    @overload
    def embed(
        self, documents: Source[InputT], *, key: Callable[[InputT], str], **call: Unpack[TextStreamCall]
    ) -> "EmbeddingStream[InputT, NDArray[ScalarT], NDArray[ScalarT]]": ...
    @overload
    def embed(
        self, documents: Source[str], *, key: None = None, **call: Unpack[TextReturningCall]
    ) -> "ReturningStream[str, NDArray[ScalarT]]": ...
    @overload
    def embed(
        self, documents: Source[InputT], *, key: Callable[[InputT], str], **call: Unpack[TextReturningCall]
    ) -> "ReturningStream[InputT, NDArray[ScalarT]]": ...
    @checks_keywords
    def embed(
        self, documents: Source[Any], **call: Unpack[TextStreamKeywords]
    ) -> "AnyStream[Any, NDArray[ScalarT], NDArray[ScalarT]]":
        """Embed texts from any iterable or async iterable.

        Args:
            documents: The texts, or records from which `key` takes the text. One `str` is one document.
            call: `key`, `priority`, `ordered`, `on_error`: see `asyncembed.StreamKeywords`, also for the errors; and
                `prompt`, `prompt_name`, `task`, `long`, `truncate_dim`, for this call instead of what the
                constructor said: see `asyncembed.TextCall`.

        Returns:
            A stream of arrays (dim,).
        """
        return self._texts("embed", documents, call)

    @overload
    def query_embed(
        self, queries: Source[str], *, key: None = None, **call: Unpack[TextStreamCall]
    ) -> "EmbeddingStream[str, NDArray[ScalarT], NDArray[ScalarT]]": ...
    @overload
    def query_embed(
        self, queries: Source[InputT], *, key: Callable[[InputT], str], **call: Unpack[TextStreamCall]
    ) -> "EmbeddingStream[InputT, NDArray[ScalarT], NDArray[ScalarT]]": ...
    @overload
    def query_embed(
        self, queries: Source[str], *, key: None = None, **call: Unpack[TextReturningCall]
    ) -> "ReturningStream[str, NDArray[ScalarT]]": ...
    @overload
    def query_embed(
        self, queries: Source[InputT], *, key: Callable[[InputT], str], **call: Unpack[TextReturningCall]
    ) -> "ReturningStream[InputT, NDArray[ScalarT]]": ...
    @checks_keywords
    def query_embed(
        self, queries: Source[Any], **call: Unpack[TextStreamKeywords]
    ) -> "AnyStream[Any, NDArray[ScalarT], NDArray[ScalarT]]":
        """`embed` for queries: with the query prompt or task, where the model has one and it is switched on."""
        return self._texts("query", queries, call)

    @overload
    def passage_embed(
        self, passages: Source[str], *, key: None = None, **call: Unpack[TextStreamCall]
    ) -> "EmbeddingStream[str, NDArray[ScalarT], NDArray[ScalarT]]": ...
    @overload
    def passage_embed(
        self, passages: Source[InputT], *, key: Callable[[InputT], str], **call: Unpack[TextStreamCall]
    ) -> "EmbeddingStream[InputT, NDArray[ScalarT], NDArray[ScalarT]]": ...
    @overload
    def passage_embed(
        self, passages: Source[str], *, key: None = None, **call: Unpack[TextReturningCall]
    ) -> "ReturningStream[str, NDArray[ScalarT]]": ...
    @overload
    def passage_embed(
        self, passages: Source[InputT], *, key: Callable[[InputT], str], **call: Unpack[TextReturningCall]
    ) -> "ReturningStream[InputT, NDArray[ScalarT]]": ...
    @checks_keywords
    def passage_embed(
        self, passages: Source[Any], **call: Unpack[TextStreamKeywords]
    ) -> "AnyStream[Any, NDArray[ScalarT], NDArray[ScalarT]]":
        """`embed` for passages: with the passage prompt or task, where the model has one and it is switched on."""
        return self._texts("passage", passages, call)

    # ---------------------------------------------------------------- long documents

    @overload
    def embed_chunks(
        self, documents: Source[str], *, key: None = None, **call: Unpack[ChunkStreamCall]
    ) -> "EmbeddingStream[str, Chunk[str, ScalarT], list[Chunk[str, ScalarT]]]": ...
    @overload
    def embed_chunks(
        self, documents: Source[InputT], *, key: Callable[[InputT], str], **call: Unpack[ChunkStreamCall]
    ) -> "EmbeddingStream[InputT, Chunk[InputT, ScalarT], list[Chunk[InputT, ScalarT]]]": ...
    @overload
    def embed_chunks(
        self, documents: Source[str], *, key: None = None, **call: Unpack[ChunkReturningCall]
    ) -> "ReturningStream[str, Chunk[str, ScalarT]]": ...
    @overload
    def embed_chunks(
        self, documents: Source[InputT], *, key: Callable[[InputT], str], **call: Unpack[ChunkReturningCall]
    ) -> "ReturningStream[InputT, Chunk[InputT, ScalarT]]": ...
    @checks_keywords
    def embed_chunks(
        self, documents: Source[Any], **call: Unpack[ChunkStreamKeywords]
    ) -> "AnyStream[Any, Chunk[Any, ScalarT], list[Chunk[Any, ScalarT]]]":
        """Cut long documents into chunks, and embed these: a stream of `Chunk`, document by document.

        ```python
        async with TextEmbedding("jinaai/jina-embeddings-v2-small-en") as model:
            async for chunk in model.embed_chunks(documents, boundaries="sentences"):
                print(chunk.document[chunk.start : chunk.end], chunk.vector.shape)
        ```

        Every character of a document is in a chunk, white space aside, and what the model drops at its ends. A document
        of white space has none. Documents may be of any length: their chunks come while the rest is still being cut,
        and the window bounds these, and not the documents.

        Args:
            documents: The texts, or records from which `key` takes the text. One `str` is one document.
            call: `mode`, `chunk_tokens`, `overlap`, `boundaries`, ...: see `asyncembed.ChunkCall`; `key`, `priority`,
                `ordered`, `on_error`: see `asyncembed.StreamKeywords`, also for the errors. `index` of an error is its
                document's. What fails is a chunk or, late, a window of several; the others of its document come all the
                same. `progress` counts documents.

        Returns:
            A stream of chunks; with `batches` and `collect`, of lists of them.
        """
        check_chunks(call)
        source = as_source(documents)
        check_source(source)
        check_stream(call)
        if call.get("total") is None:
            call["total"] = length_of(source, is_wanted=call.get("progress", False))
        opened = self._require_open()
        cutting = Cutting(opened, call.pop("key", None))

        def plan(opened: Opened) -> tuple[Call, Assembly[Any, Any]]:
            check_pooling(call, opened.spec)
            asked = self._call(opened, "embed", call)
            cutting.plan = chunk_plan(call, asked.prompt or "")
            return replace(asked, mode="chunks" if cutting.plan.is_late else "embed"), CHUNKS

        pieces = cast("Source[Any]", cutting.pieces(source))
        return self._stream(opened, pieces, PieceIntake, plan, call, partial(ChunkState, cutting))

    # ---------------------------------------------------------------- a few inputs, at once

    @overload
    async def embed_query(
        self, query: str, *, with_tokens: Literal[False] = False, **call: Unpack[TextCall]
    ) -> "NDArray[ScalarT]": ...
    @overload
    async def embed_query(
        self, query: str, *, with_tokens: Literal[True], **call: Unpack[TextCall]
    ) -> "Counted[NDArray[ScalarT]]": ...
    @checks_keywords
    async def embed_query(
        self, query: str, *, with_tokens: bool = False, **call: Unpack[TextCall]
    ) -> "NDArray[ScalarT] | Counted[NDArray[ScalarT]]":
        """The vector of one query: float32 (dim,) unless `dtype` or `output` asks otherwise. Goes before bulk work.

        With the query prompt or task, where the model has one and it is switched on. The keywords, and the errors, are
        those of `embed`; an `InputError` has no `index`. `with_tokens` gives it as a `Counted`.
        """
        return await self._query(query, cast(TextStreamKeywords, call), with_tokens=with_tokens)

    @overload
    async def embed_documents(
        self, documents: Iterable[str], *, with_tokens: Literal[False] = False, **call: Unpack[TextCall]
    ) -> "NDArray[ScalarT]": ...
    @overload
    async def embed_documents(
        self, documents: Iterable[str], *, with_tokens: Literal[True], **call: Unpack[TextCall]
    ) -> "CountedBatch[NDArray[ScalarT]]": ...
    @checks_keywords
    async def embed_documents(
        self, documents: Iterable[str], *, with_tokens: bool = False, **call: Unpack[TextCall]
    ) -> "NDArray[ScalarT] | CountedBatch[NDArray[ScalarT]]":
        """The vectors of some passages: (n, dim), rows in input order. Goes before bulk work.

        With the passage prompt or task, where the model has one and it is switched on. The keywords, and the errors,
        are those of `embed`; `with_tokens` gives them as a `CountedBatch`, for usage that is to be billed. For more
        than some hundred passages `passage_embed` is the better way.
        """
        await self._turn()
        stream = self.passage_embed(documents, priority="interactive", **call)
        return await self._several(stream, with_tokens=with_tokens)

    @checks_keywords
    async def token_count(self, texts: Source[str], *, truncated: bool = True, **call: Unpack[TextCall]) -> int:
        """How many tokens the texts have together, special tokens and prompt included.

        As `embed` computes them, each cut at `max_length`; with `truncated=False` all that the whole texts have.
        """
        opened = await self._turn()
        asked = replace(self._call(opened, "embed", call), truncated=truncated)
        return await self._count(opened, as_source(texts), TEXTS, asked)

    # ---------------------------------------------------------------- about models

    @classmethod
    def add_custom_model(
        cls,
        model: str,
        pooling: Pooling | str,
        normalization: bool,
        sources: object,
        dim: int,
        model_file: str = "onnx/model.onnx",
        description: str = "",
        license: str = "",  # noqa: A002 (the name that fastembed's users know)
        size_in_gb: float = 0.0,
        additional_files: Sequence[str] | None = None,
        output_name: str | None = None,
    ) -> None:
        """Make a model known by name, for this process and the workers it starts.

        Args:
            model: Its name; must not be taken.
            pooling: As in the constructor; fastembed's "CLS", "MEAN", "LAST_TOKEN" and "DISABLED" are understood.
            normalization: Whether vectors are scaled to unit length.
            sources: Where its files come from: a hub repo ("organisation/name"), the URL of a `.tar.gz`, a directory
                as a `Path`, an `asyncembed.Origin`, any object with the attributes `hf` and `url`, or several of these.
            dim: Length of its vectors.
            model_file: Path of the ONNX graph in the repo.
            description: For people.
            license: For people.
            size_in_gb: For people.
            additional_files: Further files that must be there, as paths in the repo.
            output_name: Graph output to take; None: the first.

        Raises:
            OptionError: The name is taken, there is no source, or the pooling is not known.
        """
        check_count("dim", dim, minimum=1, may_be_none=False)
        check_bool("normalization", normalization)
        check_text("output_name", output_name)
        wanted = str(getattr(pooling, "value", pooling)).lower()
        wanted = {"disabled": "none"}.get(wanted, wanted)
        check_choice("pooling", wanted, get_args(Pooling))
        spec = cls._custom_spec(model, "dense", sources, model_file, additional_files, description, license, size_in_gb)
        output = output_name if output_name is not None else 0
        register(replace(spec, dim=dim, pooling=cast(Pooling, wanted), normalize=normalization, graph_output=output))

    # ---------------------------------------------------------------- parts

    def _overrides(self) -> Overrides:
        return replace(super()._overrides(), pooling=self._pooling, normalize=self._normalize)

    def _assembly(self, call: Call) -> "Assembly[NDArray[ScalarT], NDArray[ScalarT]]":
        return self._dense_assembly(call)

    def _call(self, opened: Opened, mode: Mode, asked: StreamKeywords | TextCall | ChunkCall) -> Call:
        call = cast(TextCall, asked)
        check_count("truncate_dim", call.get("truncate_dim"), minimum=1)
        check_text("prompt", call.get("prompt"), may_be_empty=True)
        check_text("prompt_name", call.get("prompt_name"))
        base = self._base_call
        task = call.get("task")
        _check_task(task)
        if base.task is not None and "tasks" not in opened.spec.settings:
            _check_is_foreign(opened.spec)
        if task is None and mode == "embed":
            task = base.task
        dim = call.get("truncate_dim")
        return replace(
            base,
            mode=mode,
            prompt=self._prompt(opened.spec, mode, call),
            task=task,
            long=call.get("long", base.long),
            truncate_dim=dim or base.truncate_dim or opened.spec.truncate_dim,
        )

    def _prompt(self, spec: ModelSpec, mode: Mode, call: TextCall) -> str | None:
        prompt, name = call.get("prompt"), call.get("prompt_name")
        if prompt is not None:
            return prompt or None
        known = self._prompts if isinstance(self._prompts, Mapping) else spec.prompts
        if name is not None:
            if name not in known:
                raise OptionError(f"no prompt is called {name!r}; known are: {', '.join(known) or 'none'}")
            return known[name] or None
        # Catalogued models are computed as the reference computes them unless the caller asks for prompts.
        by_default = not spec.is_catalogued if spec.prompts_by_default is None else spec.prompts_by_default
        is_on = by_default if self._prompts is None else self._prompts is not False
        if not is_on:
            return None
        if mode in ("query", "passage"):
            return role_prompt(known, mode)
        return known.get(spec.default_prompt or "", "") or None


def _check_is_foreign(spec: ModelSpec) -> None:
    """Raise `OptionError` for a task, of which no model of ours knows but those that say so."""
    from asyncembed.encoders.registry import row_of  # whose settings take long to import

    if not row_of(spec).is_foreign:
        raise OptionError(f"{spec.name} has no tasks; leave out task=")


def _check_task(task: object) -> None:
    if task is not None and (isinstance(task, bool) or not isinstance(task, str | int)):
        raise OptionError(f"task must be a name or a number; got {task!r}")


def _is_prompts(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(text, str) for pair in value.items() for text in pair)


def _as_float32_bytes(values: "npt.ArrayLike") -> bytes:
    import numpy as np

    try:
        ranges = np.ascontiguousarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise OptionError(f"int8_ranges must be an array of the shape (2, dim): {error}") from error
    if ranges.ndim != 2 or len(ranges) != 2 or not (ranges[0] <= ranges[1]).all():
        raise OptionError(
            f"int8_ranges must be an array of the shape (2, dim), smallest values first; got the shape {ranges.shape}"
        )
    return ranges.tobytes()
