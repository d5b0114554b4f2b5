"""Several results for a text from one pass through a model: a dense vector, a sparse one, and a vector per token."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypedDict, Unpack, cast, overload

from asyncembed.catalogue.lookup import register
from asyncembed.catalogue.spec import Family
from asyncembed.checks import check_choice, check_count, check_long, check_some, check_text, checks_keywords
from asyncembed.embedders.base import (
    AnyStream,
    HasVectors,
    ModelName,
    Opened,
    ReturningCall,
    StreamCall,
    StreamKeywords,
)
from asyncembed.embedders.intake import InputT, as_source
from asyncembed.embedders.roles import TEXTS, TextRoles
from asyncembed.encoders.encoder import Call, Mode
from asyncembed.errors import OptionError
from asyncembed.feeding import Source
from asyncembed.options import OptionKeywords
from asyncembed.results import (
    HYBRID_OUTPUTS,
    Assembly,
    Counted,
    CountedBatch,
    HybridBatch,
    HybridEmbedding,
    HybridOutput,
    ScalarT,
    hybrid,
)

if TYPE_CHECKING:
    import numpy as np

    from asyncembed.stream import EmbeddingStream, ReturningStream

DEFAULT_MODEL = "BAAI/bge-m3"


class HybridCall(TypedDict, total=False):
    """What one call of `HybridTextEmbedding` may ask for, instead of what the constructor said.

    Keys:
        outputs: Which results: some of "dense", "sparse" and "late_interaction". What is not asked for is not computed
            beyond the hidden states that all come from, and does not travel.
    """

    outputs: Sequence[HybridOutput] | None


class HybridStreamCall(HybridCall, StreamCall, total=False):
    """What a call may say that gives a stream."""


class HybridReturningCall(HybridCall, ReturningCall, total=False):
    """What a call may say that gives a stream with errors in the place of results."""


class HybridStreamKeywords(HybridCall, StreamKeywords, total=False):
    """What a call may say that gives either."""


class HybridKeywords(OptionKeywords, total=False):
    """The keywords that do not decide about the type of a result, for signatures."""

    outputs: Sequence[HybridOutput] | None
    long: Literal["truncate", "error"]


class HybridTextEmbedding(HasVectors, TextRoles[HybridEmbedding[ScalarT], HybridBatch[ScalarT]], Generic[ScalarT]):
    """Several results for each text from one pass through a model, as bge-m3 has them.

    ```python
    async with HybridTextEmbedding("BAAI/bge-m3") as model:
        async for embedding in model.embed(documents):
            embedding.dense  # (dim,)
            index(embedding.sparse.indices, embedding.sparse.values)
            embedding.late_interaction  # (tokens, dim)
        query = await model.embed_query("what is backpressure?", outputs=["dense", "sparse"])
    ```

    Queries and documents are computed alike. `hybrid_scores` compares them by all that they have. Vectors are of unit
    length; the indices of a sparse vector are token ids, and a database weighs it as it is, without the IDF.

    Which results a model has, its files say: linear layers beside the transformer (`sparse_linear.pt` and
    `colbert_linear.pt`, which are read without running what they say), or a graph with outputs of these names:
    `dense_vecs`, `sparse_vecs`, `colbert_vecs` (or `dense`, `sparse`, `colbert`).

    Args:
        model_name: A name of the catalogue, a repo on the hub, a local directory, or a `ModelSpec`.
        outputs: Which results calls give that do not say so: some of "dense", "sparse" and "late_interaction"; None:
            all that the model has.
        long: What becomes of an input over the length limit: "truncate" cuts it there, "error" makes it an
            `InputError`.
        dtype: "float32" or "float16", of dense vectors and of those of tokens.
        options: The keywords that all classes share (`workers`, `device`, `pool`, ...): see `asyncembed.Options`.

    Raises:
        OptionError: An unknown keyword, or a value that cannot work.
    """

    family: ClassVar[Family] = "hybrid"

    @overload
    def __init__(
        self: "HybridTextEmbedding[np.float32]",
        model_name: ModelName = DEFAULT_MODEL,
        *,
        dtype: Literal["float32"] = "float32",
        **keywords: Unpack[HybridKeywords],
    ) -> None: ...
    @overload
    def __init__(
        self: "HybridTextEmbedding[np.float16]",
        model_name: ModelName = DEFAULT_MODEL,
        *,
        dtype: Literal["float16"],
        **keywords: Unpack[HybridKeywords],
    ) -> None: ...
    @checks_keywords
    def __init__(
        self,
        model_name: ModelName = DEFAULT_MODEL,
        *,
        outputs: Sequence[HybridOutput] | None = None,
        long: Literal["truncate", "error"] = "truncate",
        dtype: Literal["float32", "float16"] = "float32",
        **options: Unpack[OptionKeywords],
    ) -> None:
        super().__init__(model_name, **options)
        check_some("outputs", outputs, HYBRID_OUTPUTS)
        check_long(long)
        check_choice("dtype", dtype, ("float32", "float16"))
        self._outputs = outputs
        self._long = long
        self._dtype: Literal["float32", "float16"] = dtype

    # ---------------------------------------------------------------- many inputs

    @overload
    def embed(
        self, documents: Source[str], *, key: None = None, **call: Unpack[HybridStreamCall]
    ) -> "EmbeddingStream[str, HybridEmbedding[ScalarT], HybridBatch[ScalarT]]": ...
    @overload
    def embed(
        self, documents: Source[InputT], *, key: Callable[[InputT], str], **call: Unpack[HybridStreamCall]
    ) -> "EmbeddingStream[InputT, HybridEmbedding[ScalarT], HybridBatch[ScalarT]]": ...
    @overload
    def embed(
        self, documents: Source[str], *, key: None = None, **call: Unpack[HybridReturningCall]
    ) -> "ReturningStream[str, HybridEmbedding[ScalarT]]": ...
    @overload
    def embed(
        self, documents: Source[InputT], *, key: Callable[[InputT], str], **call: Unpack[HybridReturningCall]
    ) -> "ReturningStream[InputT, HybridEmbedding[ScalarT]]": ...
    @checks_keywords
    def embed(
        self, documents: Source[Any], **call: Unpack[HybridStreamKeywords]
    ) -> "AnyStream[Any, HybridEmbedding[ScalarT], HybridBatch[ScalarT]]":
        """Embed texts from any iterable or async iterable.

        Args:
            documents: The texts, or records from which `key` takes the text. One `str` is one document.
            call: `key`, `priority`, `ordered`, `on_error`: see `asyncembed.StreamKeywords`, also for the errors; and
                `outputs`, for this call instead of what the constructor said: see `asyncembed.HybridCall`.

        Returns:
            A stream of `HybridEmbedding`; `collect` and `batches` give a `HybridBatch`.
        """
        return self._texts("embed", documents, call)

    @overload
    def query_embed(
        self, queries: Source[str], *, key: None = None, **call: Unpack[HybridStreamCall]
    ) -> "EmbeddingStream[str, HybridEmbedding[ScalarT], HybridBatch[ScalarT]]": ...
    @overload
    def query_embed(
        self, queries: Source[InputT], *, key: Callable[[InputT], str], **call: Unpack[HybridStreamCall]
    ) -> "EmbeddingStream[InputT, HybridEmbedding[ScalarT], HybridBatch[ScalarT]]": ...
    @overload
    def query_embed(
        self, queries: Source[str], *, key: None = None, **call: Unpack[HybridReturningCall]
    ) -> "ReturningStream[str, HybridEmbedding[ScalarT]]": ...
    @overload
    def query_embed(
        self, queries: Source[InputT], *, key: Callable[[InputT], str], **call: Unpack[HybridReturningCall]
    ) -> "ReturningStream[InputT, HybridEmbedding[ScalarT]]": ...
    @checks_keywords
    def query_embed(
        self, queries: Source[Any], **call: Unpack[HybridStreamKeywords]
    ) -> "AnyStream[Any, HybridEmbedding[ScalarT], HybridBatch[ScalarT]]":
        """The same as `embed`: queries are computed as documents are."""
        return self._texts("query", queries, call)

    @overload
    def passage_embed(
        self, passages: Source[str], *, key: None = None, **call: Unpack[HybridStreamCall]
    ) -> "EmbeddingStream[str, HybridEmbedding[ScalarT], HybridBatch[ScalarT]]": ...
    @overload
    def passage_embed(
        self, passages: Source[InputT], *, key: Callable[[InputT], str], **call: Unpack[HybridStreamCall]
    ) -> "EmbeddingStream[InputT, HybridEmbedding[ScalarT], HybridBatch[ScalarT]]": ...
    @overload
    def passage_embed(
        self, passages: Source[str], *, key: None = None, **call: Unpack[HybridReturningCall]
    ) -> "ReturningStream[str, HybridEmbedding[ScalarT]]": ...
    @overload
    def passage_embed(
        self, passages: Source[InputT], *, key: Callable[[InputT], str], **call: Unpack[HybridReturningCall]
    ) -> "ReturningStream[InputT, HybridEmbedding[ScalarT]]": ...
    @checks_keywords
    def passage_embed(
        self, passages: Source[Any], **call: Unpack[HybridStreamKeywords]
    ) -> "AnyStream[Any, HybridEmbedding[ScalarT], HybridBatch[ScalarT]]":
        """The same as `embed`: every document is a passage."""
        return self._texts("embed", passages, call)

    # ---------------------------------------------------------------- a few inputs, at once

    @overload
    async def embed_query(
        self, query: str, *, with_tokens: Literal[False] = False, **call: Unpack[HybridCall]
    ) -> HybridEmbedding[ScalarT]: ...
    @overload
    async def embed_query(
        self, query: str, *, with_tokens: Literal[True], **call: Unpack[HybridCall]
    ) -> Counted[HybridEmbedding[ScalarT]]: ...
    @checks_keywords
    async def embed_query(
        self, query: str, *, with_tokens: bool = False, **call: Unpack[HybridCall]
    ) -> HybridEmbedding[ScalarT] | Counted[HybridEmbedding[ScalarT]]:
        """The results of one query, `with_tokens` as a `Counted`. Goes before bulk work."""
        return await self._query(query, cast(HybridStreamKeywords, call), with_tokens=with_tokens)

    @overload
    async def embed_documents(
        self, documents: Iterable[str], *, with_tokens: Literal[False] = False, **call: Unpack[HybridCall]
    ) -> HybridBatch[ScalarT]: ...
    @overload
    async def embed_documents(
        self, documents: Iterable[str], *, with_tokens: Literal[True], **call: Unpack[HybridCall]
    ) -> CountedBatch[HybridBatch[ScalarT]]: ...
    @checks_keywords
    async def embed_documents(
        self, documents: Iterable[str], *, with_tokens: bool = False, **call: Unpack[HybridCall]
    ) -> HybridBatch[ScalarT] | CountedBatch[HybridBatch[ScalarT]]:
        """The results of some documents, in input order, `with_tokens` as a `CountedBatch`. Goes before bulk work."""
        await self._turn()
        return await self._several(self.embed(documents, priority="interactive", **call), with_tokens=with_tokens)

    # ---------------------------------------------------------------- about texts and models

    @property
    def outputs(self) -> tuple[HybridOutput, ...]:
        """Which results calls give that ask for none: those that the constructor names, else all that the model has.

        Raises:
            StateError: The model is not open.
        """
        return _in_order(self._outputs or _outputs_of(self._peek()))

    @property
    def token_embedding_size(self) -> int | None:
        """Length of the vector of a token; None: the model has no late interaction results.

        Raises:
            StateError: The model is not open.
        """
        return self._peek().model.info.token_dim

    @checks_keywords
    async def token_count(self, texts: Source[str], *, truncated: bool = True) -> int:
        """How many tokens the texts have together, special tokens included.

        As `embed` computes them, each cut at `max_length`; with `truncated=False` all that the whole texts have.
        """
        opened = await self._turn()
        asked = replace(self._call(opened, "count", {}), truncated=truncated)
        return await self._count(opened, as_source(texts), TEXTS, asked)

    @classmethod
    def add_custom_model(
        cls,
        model: str,
        sources: object,
        sparse_head: str | None = None,
        late_interaction_head: str | None = None,
        dim: int | None = None,
        model_file: str = "onnx/model.onnx",
        description: str = "",
        license: str = "",  # noqa: A002 (the name that fastembed's users know)
        size_in_gb: float = 0.0,
        additional_files: Sequence[str] | None = None,
    ) -> None:
        """Make a model known by name, for this process and the workers it starts.

        Args:
            model: Its name; must not be taken.
            sources: Where its files come from: a hub repo ("organisation/name"), the URL of a `.tar.gz`, a directory
                as a `Path`, an `asyncembed.Origin`, any object with the attributes `hf` and `url`, or several of these.
            sparse_head: Path in the repo of the layer that gives a token's weight, in safetensors or as `torch.save`
                writes it; None: the graph gives it, if anything.
            late_interaction_head: Likewise of the layer that gives a token's vector. With either of them a dense vector
                is the first token's state.
            dim: Length of its dense vectors, where that is known.
            model_file: Path of the ONNX graph in the repo.
            description: For people.
            license: For people.
            size_in_gb: For people.
            additional_files: Further files that must be there, as paths in the repo.

        Raises:
            OptionError: The name is taken, or there is no source.
        """
        given = {"sparse_head": sparse_head, "late_interaction_head": late_interaction_head}
        for name, path in given.items():
            check_text(name, path)
        check_count("dim", dim, minimum=1)
        heads = {name: path for name, path in given.items() if path is not None}
        spec = cls._custom_spec(
            model, "hybrid", sources, model_file, additional_files, description, license, size_in_gb
        )
        pooling: Literal["cls", "none"] = "cls" if heads else "none"
        files = tuple(dict.fromkeys([*spec.additional_files, *heads.values()]))
        register(replace(spec, dim=dim, pooling=pooling, normalize=True, settings=heads, additional_files=files))

    # ---------------------------------------------------------------- parts

    def _call(self, opened: Opened, mode: Mode, asked: StreamKeywords | HybridCall) -> Call:
        wanted = cast(HybridCall, asked).get("outputs")
        check_some("outputs", wanted, HYBRID_OUTPUTS)
        known = _outputs_of(opened)
        outputs = wanted or self._outputs or known
        if missing := [name for name in outputs if name not in known]:
            raise OptionError(f"{opened.spec.name} has no {missing[0]} results, only {', '.join(known)}")
        return Call(
            mode=mode,
            long=self._long,
            dtype=self._dtype,
            outputs=_in_order(outputs),
        )

    def _assembly(self, call: Call) -> Assembly[HybridEmbedding[ScalarT], HybridBatch[ScalarT]]:
        return hybrid(call.outputs, self._known_size() or 0, call.dtype)


def _outputs_of(opened: Opened) -> tuple[HybridOutput, ...]:
    """What an encoder of ours says that it has; of somebody else's, which may not say it, everything."""
    return opened.model.info.outputs or HYBRID_OUTPUTS


def _in_order(outputs: Sequence[HybridOutput]) -> tuple[HybridOutput, ...]:
    """Each once, and in one order, so that equal wishes share batches."""
    return tuple(name for name in HYBRID_OUTPUTS if name in outputs)
