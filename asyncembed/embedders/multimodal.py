"""Late interaction between texts and images: a vector per token or patch, compared by MaxSim."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Unpack, get_args, overload

from asyncembed.catalogue.lookup import list_models, register
from asyncembed.catalogue.spec import Family
from asyncembed.checks import check_bool, check_choice, check_count, check_long, checks_keywords
from asyncembed.embedders.base import AnyStream, ModelName, Opened, ReturningCall, StreamCall, StreamKeywords
from asyncembed.embedders.image import ImageEmbedder, ImageKeywords
from asyncembed.embedders.intake import InputT, as_source
from asyncembed.embedders.roles import TEXTS
from asyncembed.encoders.encoder import Call
from asyncembed.feeding import Source
from asyncembed.images.inputs import ImageInput, ImageT
from asyncembed.results import MATRICES, Counted, CountedBatch, ScalarT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from asyncembed.stream import EmbeddingStream, ReturningStream


MultimodalKind = Literal["colpali", "colmodernvbert"]


class MultimodalKeywords(ImageKeywords, total=False):
    """The keywords that do not decide about the type of a result, for signatures."""

    long: Literal["truncate", "error"]


class LateInteractionMultimodalEmbedding(ImageEmbedder, Generic[ScalarT]):
    """ColPali and ColModernVBERT: matrices of texts (the queries) and of images (pages, the documents).

    ```python
    async with LateInteractionMultimodalEmbedding("Qdrant/colmodernvbert") as model:
        pages = await model.embed_image(paths).collect()           # a list of arrays (rows, 128)
        query = await model.embed_query("revenue by region, 2023")  # (rows, 128)
        scores = maxsim_scores(query, pages)
    ```

    A matrix has no rows for padding, so it is what its input alone gives.

    Args:
        model_name: A name of the catalogue, a repo on the hub, a local directory, or a `ModelSpec`.
        long: What becomes of a text over the length limit: "truncate" cuts it there, "error" makes it an `InputError`.
        dtype: "float32" or "float16".
        options: Those of `ImageEmbedder`, and those that all classes share (`workers`, `device`, `pool`, ...): see
            `asyncembed.Options`.
    """

    family: ClassVar[Family] = "late_interaction_multimodal"

    @overload
    def __init__(
        self: "LateInteractionMultimodalEmbedding[np.float32]",
        model_name: ModelName,
        *,
        dtype: Literal["float32"] = "float32",
        **keywords: Unpack[MultimodalKeywords],
    ) -> None: ...
    @overload
    def __init__(
        self: "LateInteractionMultimodalEmbedding[np.float16]",
        model_name: ModelName,
        *,
        dtype: Literal["float16"],
        **keywords: Unpack[MultimodalKeywords],
    ) -> None: ...
    @checks_keywords
    def __init__(
        self,
        model_name: ModelName,
        *,
        long: Literal["truncate", "error"] = "truncate",
        dtype: Literal["float32", "float16"] = "float32",
        **options: Unpack[ImageKeywords],
    ) -> None:
        super().__init__(model_name, **options)
        check_choice("dtype", dtype, ("float32", "float16"))
        check_long(long)
        self._text_call = Call(mode="query", long=long, dtype=dtype)
        self._image_call = Call(mode="image", dtype=dtype)

    # ---------------------------------------------------------------- many inputs

    @overload
    def embed_text(
        self, documents: Source[str], *, key: None = None, **call: Unpack[StreamCall]
    ) -> "EmbeddingStream[str, NDArray[ScalarT], list[NDArray[ScalarT]]]": ...
    @overload
    def embed_text(
        self, documents: Source[InputT], *, key: Callable[[InputT], str], **call: Unpack[StreamCall]
    ) -> "EmbeddingStream[InputT, NDArray[ScalarT], list[NDArray[ScalarT]]]": ...
    @overload
    def embed_text(
        self, documents: Source[str], *, key: None = None, **call: Unpack[ReturningCall]
    ) -> "ReturningStream[str, NDArray[ScalarT]]": ...
    @overload
    def embed_text(
        self, documents: Source[InputT], *, key: Callable[[InputT], str], **call: Unpack[ReturningCall]
    ) -> "ReturningStream[InputT, NDArray[ScalarT]]": ...
    @checks_keywords
    def embed_text(
        self, documents: Source[Any], **call: Unpack[StreamKeywords]
    ) -> "AnyStream[Any, NDArray[ScalarT], list[NDArray[ScalarT]]]":
        """Embed texts, as the queries that they are to these models.

        Args:
            documents: The texts, or records from which `key` takes the text. One `str` is one text.
            call: `key`, `priority`, `ordered`, `on_error`: see `asyncembed.StreamKeywords`, also for the errors.

        Returns:
            A stream of arrays (rows, dim).
        """
        return self._stream(
            self._require_open(), as_source(documents), TEXTS, lambda _: (self._text_call, MATRICES), call
        )

    @overload
    def embed_image(
        self, images: Source[ImageT] | ImageT, *, key: None = None, **call: Unpack[StreamCall]
    ) -> "EmbeddingStream[ImageT, NDArray[ScalarT], list[NDArray[ScalarT]]]": ...
    @overload
    def embed_image(
        self, images: Source[InputT], *, key: Callable[[InputT], ImageInput], **call: Unpack[StreamCall]
    ) -> "EmbeddingStream[InputT, NDArray[ScalarT], list[NDArray[ScalarT]]]": ...
    @overload
    def embed_image(
        self, images: Source[ImageT] | ImageT, *, key: None = None, **call: Unpack[ReturningCall]
    ) -> "ReturningStream[ImageT, NDArray[ScalarT]]": ...
    @overload
    def embed_image(
        self, images: Source[InputT], *, key: Callable[[InputT], ImageInput], **call: Unpack[ReturningCall]
    ) -> "ReturningStream[InputT, NDArray[ScalarT]]": ...
    @checks_keywords
    def embed_image(
        self, images: Source[Any] | ImageInput, **call: Unpack[StreamKeywords]
    ) -> "AnyStream[Any, NDArray[ScalarT], list[NDArray[ScalarT]]]":
        """Embed images; see `ImageEmbedding.embed` for the arguments.

        `ImageEmbedding.embed_image` is for one image, as in fastembed; here that is `embed_one_image`.

        Returns:
            A stream of arrays (rows, dim). ColPali has 1030 rows for an image, ColModernVBERT 64 and a few for each
            tile into which it cuts it.
        """
        return self._images(images, self._image_call, lambda: MATRICES, call)

    # ---------------------------------------------------------------- a few inputs, at once

    @overload
    async def embed_query(self, query: str, *, with_tokens: Literal[False] = False) -> "NDArray[ScalarT]": ...
    @overload
    async def embed_query(self, query: str, *, with_tokens: Literal[True]) -> "Counted[NDArray[ScalarT]]": ...
    @checks_keywords
    async def embed_query(
        self, query: str, *, with_tokens: bool = False
    ) -> "NDArray[ScalarT] | Counted[NDArray[ScalarT]]":
        """The matrix of one text: (rows, dim), `with_tokens` as a `Counted`. Goes before bulk work."""
        opened = await self._turn()
        return await self._one(opened, query, TEXTS, self._text_call, MATRICES, with_tokens=with_tokens)

    @overload
    async def embed_images(
        self, images: Iterable[ImageInput], *, with_tokens: Literal[False] = False
    ) -> "list[NDArray[ScalarT]]": ...
    @overload
    async def embed_images(
        self, images: Iterable[ImageInput], *, with_tokens: Literal[True]
    ) -> "CountedBatch[list[NDArray[ScalarT]]]": ...
    @checks_keywords
    async def embed_images(
        self, images: Iterable[ImageInput], *, with_tokens: bool = False
    ) -> "list[NDArray[ScalarT]] | CountedBatch[list[NDArray[ScalarT]]]":
        """The matrices of some images, in input order, `with_tokens` as a `CountedBatch`. Goes before bulk work."""
        await self._turn()
        return await self._several(self.embed_image(images, priority="interactive"), with_tokens=with_tokens)

    @overload
    async def embed_one_image(
        self, image: ImageInput, *, with_tokens: Literal[False] = False
    ) -> "NDArray[ScalarT]": ...
    @overload
    async def embed_one_image(
        self, image: ImageInput, *, with_tokens: Literal[True]
    ) -> "Counted[NDArray[ScalarT]]": ...
    @checks_keywords
    async def embed_one_image(
        self, image: ImageInput, *, with_tokens: bool = False
    ) -> "NDArray[ScalarT] | Counted[NDArray[ScalarT]]":
        """The matrix of one image: (rows, dim), `with_tokens` as a `Counted`. Goes before bulk work."""
        opened = await self._turn()
        return await self._one(opened, image, self._door, self._image_call, MATRICES, with_tokens=with_tokens)

    @checks_keywords
    async def token_count(self, texts: Source[str], include_extension: bool = False, *, truncated: bool = True) -> int:
        """How many tokens the texts have together.

        As `embed_text` computes them, each cut at `max_length`; with `truncated=False` all that the whole texts have.
        With `include_extension` those count too that make a query of a text.
        """
        opened = await self._turn()
        check_bool("include_extension", include_extension)
        call = Call(long=self._text_call.long, truncated=truncated, include_extension=include_extension)
        return await self._count(opened, as_source(texts), TEXTS, call)

    @classmethod
    def add_custom_model(
        cls,
        model: str,
        sources: object,
        kind: MultimodalKind,
        dim: int = 128,
        model_file: str = "model.onnx",
        description: str = "",
        license: str = "",  # noqa: A002 (the name that fastembed's users know)
        size_in_gb: float = 0.0,
        additional_files: Sequence[str] | None = None,
    ) -> None:
        """Make a fine-tuned ColPali or ColModernVBERT known by name, for this process and the workers it starts.

        Args:
            model: Its name; must not be taken.
            sources: Where its files come from: a hub repo ("organisation/name"), the URL of a `.tar.gz`, a directory
                as a `Path`, an `asyncembed.Origin`, any object with the attributes `hf` and `url`, or several of these.
            kind: "colpali" or "colmodernvbert": whose texts and images it takes as the catalogue's model does.
            dim: Length of its vectors.
            model_file: Path of the ONNX graph in the repo.
            description: For people.
            license: For people.
            size_in_gb: For people.
            additional_files: Further files that must be there, as paths in the repo.

        Raises:
            OptionError: The name is taken, there is no source, or no such kind.
        """
        check_choice("kind", kind, get_args(MultimodalKind))
        check_count("dim", dim, minimum=1, may_be_none=False)
        settings = next(spec.settings for spec in list_models(cls.family) if spec.encoder == kind)
        spec = cls._custom_spec(model, kind, sources, model_file, additional_files, description, license, size_in_gb)
        files = ("processor_config.json",) if kind == "colmodernvbert" else ()
        register(replace(spec, dim=dim, additional_files=(*files, *spec.additional_files), settings=settings))

    def _usual_calls(self, opened: Opened) -> Sequence[Call]:  # noqa: ARG002 (it is no matter of the model)
        return [self._text_call, self._image_call]
