"""Late interaction between texts and images: a vector per token or patch, compared by MaxSim."""

import os
from collections.abc import Callable, Iterable
from typing import Literal, Unpack

from asyncembed.catalogue.spec import ModelSpec
from asyncembed.checks import check_choice
from asyncembed.embedders.base import InputT, PriorityName, as_source, measure_text
from asyncembed.embedders.image import ImageEmbedder, ImageKeywords
from asyncembed.embedders.image_source import ImageInput, OneImage, measure_image
from asyncembed.encoders.encoder import Call
from asyncembed.results import MATRICES, Matrix
from asyncembed.stream import EmbeddingStream, OnError, Source


class LateInteractionMultimodalEmbedding(ImageEmbedder):
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
        truncate: Cut texts over the length limit; False makes such a text an `InputError`.
        dtype: "float32" or "float16".
        options: Those of `ImageEmbedder`, and those that all six classes share (`workers`, `device`, `pool`, ...): see
            `asyncembed.Options`.
    """

    family = "late_interaction_multimodal"

    def __init__(
        self,
        model_name: str | os.PathLike[str] | ModelSpec,
        *,
        truncate: bool = True,
        dtype: Literal["float32", "float16"] = "float32",
        **options: Unpack[ImageKeywords],
    ) -> None:
        super().__init__(model_name, **options)
        check_choice("dtype", dtype, ("float32", "float16"))
        self._text_call = Call(mode="query", truncate=truncate, dtype=dtype)
        self._image_call = Call(mode="image", dtype=dtype)

    # ---------------------------------------------------------------- many inputs

    def embed_text(
        self,
        documents: Source[InputT],
        *,
        key: Callable[[InputT], str] | None = None,
        priority: PriorityName = "bulk",
        ordered: bool = True,
        on_error: OnError = "raise",
    ) -> EmbeddingStream[InputT, Matrix, list[Matrix]]:
        """Embed texts, as the queries that they are to these models.

        Args:
            documents: The texts, or records from which `key` takes the text. One `str` is one text.
            key: Takes the text out of a record.
            priority: "interactive" goes before "bulk".
            ordered: Whether results come in input order, or as they are ready.
            on_error: What becomes of an input that has no matrix: "raise" ends the stream with its error, "skip"
                leaves it out, "return" gives the error in the place of the matrix.

        Returns:
            A stream of float32 arrays (rows, dim).

        Raises:
            StateError: The embedder is not open, or was opened on another event loop.
            OptionError: An argument that cannot work.
            InputError: (from the stream) an input is not a text, or is over the limit with `truncate=False`; `index`
                says which.
        """
        return self._stream(
            as_source(documents),
            measure_text,
            self._text_call,
            MATRICES,
            key=key,
            priority=priority,
            ordered=ordered,
            on_error=on_error,
        )

    def embed_image(
        self,
        images: Source[InputT] | OneImage,
        *,
        key: Callable[[InputT], ImageInput] | None = None,
        priority: PriorityName = "bulk",
        ordered: bool = True,
        on_error: OnError = "raise",
    ) -> EmbeddingStream[InputT, Matrix, list[Matrix]]:
        """Embed images; see `ImageEmbedding.embed` for the arguments and errors.

        Returns:
            A stream of float32 arrays (rows, dim). ColPali has 1030 rows for an image, ColModernVBERT 64 and a few for
            each tile into which it cuts it.
        """
        return self._images(images, self._image_call, MATRICES, key, priority, ordered, on_error)

    # ---------------------------------------------------------------- a few inputs, at once

    async def embed_query(self, query: str) -> Matrix:
        """The matrix of one text: (rows, dim). Goes before bulk work."""
        return await self._one(query, measure_text, self._text_call, MATRICES)

    async def embed_images(self, images: Iterable[ImageInput]) -> list[Matrix]:
        """The matrices of some images, in input order. Goes before bulk work."""
        return await self.embed_image(images, priority="interactive").collect()

    async def embed_one_image(self, image: ImageInput) -> Matrix:
        """The matrix of one image: (rows, dim). Goes before bulk work."""
        return await self._one(image, measure_image, self._image_call, MATRICES)

    async def token_count(self, texts: Source[str], include_extension: bool = False) -> int:
        """How many tokens the texts have together, each cut at the length limit.

        With `include_extension` those count too that make a query of a text.
        """
        call = Call(truncate=self._text_call.truncate, settings=(("include_extension", include_extension),))
        return await self._count(as_source(texts), measure_text, call)

    # ---------------------------------------------------------------- about models

    @property
    def embedding_size(self) -> int:
        """Length of a row. Raises `StateError` if the model is neither catalogued nor open."""
        return self._vector_size()

    @classmethod
    def get_embedding_size(cls, model_name: str) -> int:
        """Length of a catalogued model's rows. Raises `UnknownModelError`."""
        return cls._catalogued_size(model_name)
