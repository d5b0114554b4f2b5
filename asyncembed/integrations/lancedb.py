"""Embedding functions in the registry of LanceDB: of texts, and of images.

```python
import lancedb
from lancedb.pydantic import LanceModel, Vector

function = AsyncembedFunction.create(model="BAAI/bge-small-en-v1.5")  # or get_registry().get("asyncembed")


class Article(LanceModel):
    text: str = function.SourceField()
    vector: Vector(function.ndims()) = function.VectorField()


table = lancedb.connect("articles").create_table("articles", schema=Article)
table.add([{"text": "the way"}, {"text": "a day"}])
print(table.search("a way").limit(1).to_list()[0]["text"])
```

Needs `pip install "asyncembed[lancedb]"`. The model's name and options are kept in the table's schema. A program that
has imported this module opens the table with its function. LanceDB calls it in threads, also for its asynchronous
tables, whose loop stays free.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Self, TypeAlias, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

from asyncembed.embedders.image import ImageEmbedding
from asyncembed.embedders.text import DEFAULT_MODEL, TextEmbedding
from asyncembed.errors import OF_ONE_INPUT, OptionError, StateError
from asyncembed.integrations._models import Model, listed

try:
    from lancedb.embeddings import EmbeddingFunction, TextEmbeddingFunction, register
    from pydantic import ConfigDict, PrivateAttr
except ImportError as _error:
    raise ImportError('asyncembed.integrations.lancedb needs a package: pip install "asyncembed[lancedb]"') from _error

__all__ = ["AsyncembedFunction", "AsyncembedImageFunction"]

AnyModel: TypeAlias = Model[TextEmbedding[Any]] | Model[ImageEmbedding[Any]]


class _Function(EmbeddingFunction):
    """What the functions share: their parameters, and the engine that these stand for."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="allow")

    model: str
    keep_alive: float | None = None
    max_retries: int = 0
    _model: Any = PrivateAttr()

    @classmethod
    def create(cls, **keywords: Any) -> Self:
        """One with these parameters, which the schema of a table keeps."""
        return cast(Self, cast(Any, super()).create(**keywords))

    def ndims(self) -> int:
        """Length of the vectors; opens a model that is not catalogued."""
        own = cast(AnyModel, self._model)
        try:
            return int(own.anywhere.embedding_size)
        except StateError:
            return own.run(_size_of, instead="model.open")

    def compute_query_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[Any]:
        """The same as without: LanceDB's own would hide an error in another one, or try again."""
        return cast(list[Any], self.compute_query_embeddings(*args, **kwargs))

    def compute_source_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Likewise."""
        return cast(list[Any], self.compute_source_embeddings(*args, **kwargs))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Function) and type(self) is type(other) and self.model_dump() == other.model_dump()

    def __hash__(self) -> int:
        return hash((type(self), self.model))


@register("asyncembed")
class AsyncembedFunction(_Function, TextEmbeddingFunction):
    """Vectors of a column of texts, and, with the prompts and tasks of queries, of queries; from any thread.

    It is made by `create`, with values that a file can hold. The engine opens with the first call, and is shared with
    all who ask for the same. A row without a text has no vector, which a table takes where
    `table.add(..., on_bad_vectors="null")` says so. A text that cannot be embedded is an error of the whole call, at
    once: it is not tried again.

    Attributes:
        model: A name or directory, as `TextEmbedding` takes it. Its options are further keywords.
        keep_alive: Seconds after which the engine closes when nobody uses it, until the next call.
        max_retries: LanceDB's own; nothing is tried again here.
    """

    model: str = DEFAULT_MODEL

    def model_post_init(self, context: Any) -> None:
        """Check the options; nothing is opened."""
        super().model_post_init(context)
        self._model = Model(TextEmbedding, self.model, keep_alive=self.keep_alive, **(self.model_extra or {}))

    def compute_query_embeddings(self, query: str, *_: Any, **__: Any) -> list[Any]:
        """The vector of a query: float32 (dim,), in a list."""
        return [self._own.run(lambda model: model.embed_query(query), instead="model.embed_query")]

    def compute_source_embeddings(self, texts: Any, *_: Any, **__: Any) -> list[Any]:
        """The vectors of texts (a list, an array of numpy or arrow), None for those that are None."""
        return self.generate_embeddings(self.sanitize_input(texts))

    def generate_embeddings(self, texts: Any, *_: Any, **__: Any) -> list[Any]:
        """The same of a list."""

        def compute(given: list[Any]) -> Any:
            return self._own.run(lambda model: _collected(model, given), instead="model.embed_documents")

        return _of_those_given(listed(texts), compute)

    @property
    def _own(self) -> Model[TextEmbedding[Any]]:
        return cast("Model[TextEmbedding[Any]]", self._model)


@register("asyncembed-image")
class AsyncembedImageFunction(_Function):
    """Vectors of a column of images, to be searched by an image, or by a text where the model has a twin for texts.

    A row holds a file's bytes, or a path or URI (`file:`, `http:`, `https:`); one without an image has no vector. It is
    made by `create`, with values that a file can hold, and opens with the first call, as `AsyncembedFunction` does.

    Attributes:
        model: A name or directory, as `ImageEmbedding` takes it. Its options are further keywords.
        text_model: A `TextEmbedding` with vectors of the same space, for queries that are strings; or None.
        keep_alive: Seconds after which the engines close when nobody uses them, until the next call.
        max_retries: LanceDB's own; nothing is tried again here.
    """

    model: str = "Qdrant/clip-ViT-B-32-vision"
    text_model: str | None = None
    _texts: Any = PrivateAttr(default=None)

    def model_post_init(self, context: Any) -> None:
        """Check the options; nothing is opened."""
        super().model_post_init(context)
        self._model = Model(ImageEmbedding, self.model, keep_alive=self.keep_alive, **(self.model_extra or {}))
        if self.text_model is not None:
            self._texts = Model(TextEmbedding, self.text_model, keep_alive=self.keep_alive)

    def compute_query_embeddings(self, query: Any, *_: Any, **__: Any) -> list[Any]:
        """The vector of a query: float32 (dim,), in a list.

        A string is a text; an image is bytes, an image of Pillow's, a `pathlib.Path` or an array of pixels.

        Raises:
            OptionError: A text, and there is no `text_model`.
        """
        if not isinstance(query, str):
            own = cast(Model[ImageEmbedding[Any]], self._model)
            return [own.run(lambda model: model.embed_image(query), instead="model.embed_image")]
        if self._texts is None:
            raise OptionError(
                "this table is searched by images: bytes, Pillow's or a pathlib.Path; texts need text_model="
            )
        texts = cast(Model[TextEmbedding[Any]], self._texts)
        return [texts.run(lambda model: model.embed_query(query), instead="model.embed_query")]

    def compute_source_embeddings(self, images: Any, *_: Any, **__: Any) -> list[Any]:
        """The vectors of images (a list, an array of numpy or arrow), None for those that are None."""
        own = cast(Model[ImageEmbedding[Any]], self._model)

        def compute(given: list[Any]) -> Any:
            located = [_at_its_path(image) for image in given]
            return own.run(lambda model: _images_collected(model, located), instead="model.embed_images")

        return _of_those_given([images] if isinstance(images, bytes) else listed(self.sanitize_input(images)), compute)


def _of_those_given(inputs: list[Any], compute: Callable[[list[Any]], Any]) -> list[Any]:
    """The results of what is not None, at its places; an error has the place of its input, too."""
    places = [place for place, one in enumerate(inputs) if one is not None]
    results: list[Any] = [None] * len(inputs)
    try:
        rows = compute([inputs[place] for place in places])
    except OF_ONE_INPUT as error:
        if error.index is not None:
            error.index = places[error.index]
        raise
    for place, row in zip(places, rows, strict=True):
        results[place] = row
    return results


def _at_its_path(image: Any) -> Any:
    """An image as `ImageEmbedding` takes it, which knows no `file:` URIs."""
    if isinstance(image, str) and (parts := urlsplit(image)).scheme == "file":
        return url2pathname(parts.path)
    return image


async def _collected(model: TextEmbedding[Any], texts: list[str]) -> Any:
    return await model.passage_embed(texts).collect()


async def _images_collected(model: ImageEmbedding[Any], images: list[Any]) -> Any:
    return await model.embed(images).collect()


async def _size_of(model: TextEmbedding[Any] | ImageEmbedding[Any]) -> int:
    return model.embedding_size
