"""An embedding function in the registry of LanceDB.

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

from typing import Any, ClassVar, Self, cast

from asyncembed.embedders.text import DEFAULT_MODEL, TextEmbedding
from asyncembed.errors import StateError
from asyncembed.integrations._models import Model

try:
    from lancedb.embeddings import TextEmbeddingFunction, register
    from pydantic import ConfigDict, PrivateAttr
except ImportError as _error:
    raise ImportError('asyncembed.integrations.lancedb needs a package: pip install "asyncembed[lancedb]"') from _error

__all__ = ["AsyncembedFunction"]


@register("asyncembed")
class AsyncembedFunction(TextEmbeddingFunction):
    """Vectors of a column of texts, and, with the prompts and tasks of queries, of queries; from any thread.

    It is made by `create`, with values that a file can hold. The engine opens with the first call, and is shared with
    all who ask for the same. A row without a text has no vector. A text that cannot be embedded is an error of the
    whole call, at once: it is not tried again.

    Attributes:
        model: A name or directory, as `TextEmbedding` takes it. Its options are further keywords.
        keep_alive: Seconds after which the engine closes when nobody uses it, until the next call.
        max_retries: LanceDB's own; nothing is tried again here.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="allow")

    model: str = DEFAULT_MODEL
    keep_alive: float | None = None
    max_retries: int = 0
    _model: Any = PrivateAttr()

    @classmethod
    def create(cls, **keywords: Any) -> Self:
        """One with these parameters, which the schema of a table keeps."""
        return cast(Self, cast(Any, super()).create(**keywords))

    def model_post_init(self, context: Any) -> None:
        """Check the options; nothing is opened."""
        super().model_post_init(context)
        self._model = Model(TextEmbedding, self.model, keep_alive=self.keep_alive, **(self.model_extra or {}))

    def ndims(self) -> int:
        """Length of the vectors; opens a model that is not catalogued."""
        try:
            return int(self._own.anywhere.embedding_size)
        except StateError:
            return self._own.run(_size_of, instead="model.open")

    def compute_query_embeddings(self, query: str, *_: Any, **__: Any) -> list[Any]:
        """The vector of a query: float32 (dim,), in a list."""
        return [self._own.run(lambda model: model.embed_query(query), instead="model.embed_query")]

    def compute_source_embeddings(self, texts: Any, *_: Any, **__: Any) -> list[Any]:
        """The vectors of texts (a list, an array of numpy or arrow), None for those that are None."""
        return self.generate_embeddings(list(self.sanitize_input(texts)))

    def generate_embeddings(self, texts: Any, *_: Any, **__: Any) -> list[Any]:
        """The same of a list."""
        given = [text for text in texts if text is not None]
        rows = iter(self._own.run(lambda model: _collected(model, given), instead="model.embed_documents"))
        return [None if text is None else next(rows) for text in texts]

    def compute_query_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[Any]:
        """The same as without: LanceDB's own would hide an error in another one, or try again."""
        return self.compute_query_embeddings(*args, **kwargs)

    def compute_source_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Likewise."""
        return self.compute_source_embeddings(*args, **kwargs)

    @property
    def _own(self) -> Model[TextEmbedding[Any]]:
        return cast("Model[TextEmbedding[Any]]", self._model)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsyncembedFunction) and self.model_dump() == other.model_dump()

    def __hash__(self) -> int:
        return hash((type(self), self.model))


async def _collected(model: TextEmbedding[Any], texts: list[str]) -> Any:
    return await model.passage_embed(texts).collect()


async def _size_of(model: TextEmbedding[Any]) -> int:
    return model.embedding_size
