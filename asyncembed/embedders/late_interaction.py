"""Late interaction text embeddings: a vector per token, compared by MaxSim."""

from typing import TYPE_CHECKING, ClassVar, Generic, Literal, Unpack, overload

from asyncembed.catalogue.spec import Family
from asyncembed.checks import check_bool, check_choice, checks_keywords
from asyncembed.embedders.base import HasVectors, ModelName, Opened, StreamKeywords
from asyncembed.embedders.intake import as_source
from asyncembed.embedders.roles import TEXTS, TextRoles
from asyncembed.encoders.encoder import Call, Mode
from asyncembed.feeding import Source
from asyncembed.options import OptionKeywords
from asyncembed.results import MATRICES, Assembly, ScalarT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class LateInteractionKeywords(OptionKeywords, total=False):
    """The keywords that do not decide about the type of a result, for signatures."""

    truncate: bool


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

    Args:
        model_name: A name of the catalogue, a repo on the hub, a local directory, or a `ModelSpec`.
        truncate: Cut inputs over the length limit; False makes such an input an `InputError`.
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
        truncate: bool = True,
        dtype: Literal["float32", "float16"] = "float32",
        **options: Unpack[OptionKeywords],
    ) -> None:
        super().__init__(model_name, **options)
        check_bool("truncate", truncate)
        check_choice("dtype", dtype, ("float32", "float16"))
        self._truncate = truncate
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
            truncate=self._truncate,
            truncated=truncated,
            include_extension=include_extension,
            role="document" if is_doc else "query",
        )
        return await self._count(opened, as_source(texts), TEXTS, call)

    # ---------------------------------------------------------------- parts

    def _call(self, opened: Opened, mode: Mode, asked: StreamKeywords) -> Call:  # noqa: ARG002 (it asks for nothing)
        return Call(mode=mode, truncate=self._truncate, dtype=self._dtype)

    def _assembly(self, call: Call) -> "Assembly[NDArray[ScalarT], list[NDArray[ScalarT]]]":  # noqa: ARG002 (of one kind)
        return MATRICES
