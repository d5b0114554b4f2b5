"""Late interaction text embeddings: a vector per token, compared by MaxSim."""

import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, Unpack, overload

from asyncembed.catalogue.lookup import register
from asyncembed.catalogue.spec import Family
from asyncembed.checks import (
    check_bool,
    check_choice,
    check_count,
    check_long,
    check_number,
    check_text,
    check_words,
    checks_keywords,
)
from asyncembed.embedders.base import HasVectors, ModelName, Opened, StreamKeywords
from asyncembed.embedders.intake import as_source
from asyncembed.embedders.roles import TEXTS, TextRoles, role_prompt_of_two
from asyncembed.encoders.encoder import Call, Mode
from asyncembed.feeding import Source
from asyncembed.options import OptionKeywords
from asyncembed.results import MATRICES, Assembly, ScalarT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class LateInteractionKeywords(OptionKeywords, total=False):
    """The keywords that do not decide about the type of a result, for signatures."""

    long: Literal["truncate", "error"]
    pool_factor: float | None
    protected_tokens: int | None


class LateInteractionTextEmbedding(
    HasVectors, TextRoles["NDArray[ScalarT]", "list[NDArray[ScalarT]]"], Generic[ScalarT]
):
    """ColBERT and its descendants: for each text a matrix with a vector per token.

    ```python
    async with LateInteractionTextEmbedding("answerdotai/answerai-colbert-small-v1") as model:
        documents = await model.embed(texts).collect()           # a list of arrays (tokens, dim)
        query = await model.embed_query("what is backpressure?")  # (tokens, dim)
        scores = maxsim_scores(query, documents)
    ```

    Queries have matrices of their own: `query_embed` and `embed_query` for them, `embed` for documents. A matrix has no
    rows for padding, and is what its text alone gives; of most models a query has at least 32, as mask tokens lengthen
    it. `maxsim_scores` compares matrices, `Muvera` makes each one vector.

    A repo of PyLate, of sentence-transformers' `MultiVectorEncoder`, of ColBERT's authors or of next-plaid says itself
    how it is computed; the prompts that it declares are put before texts.

    Args:
        model_name: A name of the catalogue, a repo on the hub, a local directory, or a `ModelSpec`.
        pool_factor: Make every so many vectors of a document one, as in 2 or 3, for a smaller index: those that are
            alike become their mean, whose length is at most 1. Queries stay as they are. Needs the package scipy.
        protected_tokens: With `pool_factor`: how many vectors, from the first, stay as they are (1).
        long: What becomes of an input over the length limit: "truncate" cuts it there, "error" makes it an
            `InputError`.
        dtype: "float32" or "float16".
        options: The keywords that all classes share (`workers`, `device`, `pool`, ...): see `asyncembed.Options`.

    Raises:
        OptionError: An unknown keyword, or a value that cannot work.
    """

    family: ClassVar[Family] = "late_interaction"

    @overload
    def __init__(
        self: "LateInteractionTextEmbedding[np.float32]",
        model_name: ModelName,
        *,
        dtype: Literal["float32"] = "float32",
        **keywords: Unpack[LateInteractionKeywords],
    ) -> None: ...
    @overload
    def __init__(
        self: "LateInteractionTextEmbedding[np.float16]",
        model_name: ModelName,
        *,
        dtype: Literal["float16"],
        **keywords: Unpack[LateInteractionKeywords],
    ) -> None: ...
    @checks_keywords
    def __init__(
        self,
        model_name: ModelName,
        *,
        long: Literal["truncate", "error"] = "truncate",
        pool_factor: float | None = None,
        protected_tokens: int | None = None,
        dtype: Literal["float32", "float16"] = "float32",
        **options: Unpack[OptionKeywords],
    ) -> None:
        super().__init__(model_name, **options)
        check_long(long)
        check_number("pool_factor", pool_factor, minimum=1, may_be_none=True)
        check_count("protected_tokens", protected_tokens, minimum=0)
        given = {"pool_factor": pool_factor, "protected_tokens": protected_tokens}
        self._given = {name: value for name, value in given.items() if value is not None}
        check_choice("dtype", dtype, ("float32", "float16"))
        self._long = long
        self._dtype: Literal["float32", "float16"] = dtype

    # ---------------------------------------------------------------- about texts and models

    @checks_keywords
    async def token_count(
        self, texts: Source[str], is_doc: bool = True, include_extension: bool = False, *, truncated: bool = True
    ) -> int:
        """How many tokens the texts have together, special tokens included.

        As `embed` computes them, each cut at the length limit; with `truncated=False` all that the whole texts have.

        Args:
            texts: The texts; one `str` is one text.
            is_doc: Whether they are documents, rather than queries.
            include_extension: Whether the model's marker, and the mask tokens that lengthen a query, count too.
            truncated: Whether only those count that are left when a text is cut.
        """
        opened = await self._turn()
        check_bool("is_doc", is_doc)
        check_bool("include_extension", include_extension)
        call = Call(
            prompt=role_prompt_of_two(opened.spec.prompts, "passage" if is_doc else "query"),
            long=self._long,
            truncated=truncated,
            include_extension=include_extension,
            role="document" if is_doc else "query",
        )
        return await self._count(opened, as_source(texts), TEXTS, call)

    @classmethod
    def add_custom_model(
        cls,
        model: str,
        sources: object,
        dim: int,
        model_file: str = "model.onnx",
        description: str = "",
        license: str = "",  # noqa: A002 (the name that fastembed's users know)
        size_in_gb: float = 0.0,
        additional_files: Sequence[str] | None = None,
        query_prefix: str | None = "[Q] ",
        document_prefix: str | None = "[D] ",
        query_length: int | None = 32,
        document_length: int | None = None,
        do_query_expansion: bool = True,
        attend_to_expansion_tokens: bool = False,
        skiplist_words: Iterable[str] = tuple(string.punctuation),
        normalization: bool = True,
    ) -> None:
        """Make a model known by name, for this process and the workers it starts.

        A repo that says itself how it is computed (see the class) needs none of this.

        Args:
            model: Its name; must not be taken.
            sources: Where its files come from: a hub repo ("organisation/name"), the URL of a `.tar.gz`, a directory
                as a `Path`, an `asyncembed.Origin`, any object with the attributes `hf` and `url`, or several of these.
            dim: Length of its vectors.
            model_file: Path of the ONNX graph in the repo; its first output is (batch, tokens, dim).
            description: For people.
            license: For people.
            size_in_gb: For people.
            additional_files: Further files that must be there, as paths in the repo.
            query_prefix: The token of the vocabulary that is put after the first one of a query; None: none.
            document_prefix: That of a document.
            query_length: Most tokens of a query, this one included; None: as many as a document may have.
            document_length: Most tokens of a document, likewise; None: as its tokenizer's files say.
            do_query_expansion: Whether mask tokens lengthen a query to `query_length`.
            attend_to_expansion_tokens: Whether the others attend to these.
            skiplist_words: Tokens of the vocabulary whose vectors a document leaves out.
            normalization: Whether vectors are scaled to unit length.

        Raises:
            OptionError: The name is taken, there is no source, or a value that cannot work.
        """
        check_count("dim", dim, minimum=1, may_be_none=False)
        check_count("query_length", query_length, minimum=1, may_be_none=not do_query_expansion)
        check_count("document_length", document_length, minimum=1)
        check_text("query_prefix", query_prefix, may_be_empty=True)
        check_text("document_prefix", document_prefix, may_be_empty=True)
        for name, value in (
            ("do_query_expansion", do_query_expansion),
            ("attend_to_expansion_tokens", attend_to_expansion_tokens),
            ("normalization", normalization),
        ):
            check_bool(name, value)
        spec = cls._custom_spec(
            model, "colbert", sources, model_file, additional_files, description, license, size_in_gb
        )
        settings = {
            "query_marker": query_prefix or None,
            "document_marker": document_prefix or None,
            "mask_token": None,
            "query_max_length": query_length,
            "query_pad_length": (query_length or 0) - bool(query_prefix) if do_query_expansion else None,
            "query_mask_attended": attend_to_expansion_tokens,
            "reserved_markers": int(bool(document_prefix)),
            "skip_words": check_words("skiplist_words", skiplist_words),
            "normalize_queries": normalization,
        }
        register(replace(spec, dim=dim, max_length=document_length, normalize=normalization, settings=settings))

    # ---------------------------------------------------------------- parts

    def _settings(self) -> Mapping[str, object]:
        return self._given

    def _call(self, opened: Opened, mode: Mode, asked: StreamKeywords) -> Call:  # noqa: ARG002 (it asks for nothing)
        return Call(mode=mode, prompt=role_prompt_of_two(opened.spec.prompts, mode), long=self._long, dtype=self._dtype)

    def _assembly(self, call: Call) -> "Assembly[NDArray[ScalarT], list[NDArray[ScalarT]]]":  # noqa: ARG002 (of one kind)
        return MATRICES
