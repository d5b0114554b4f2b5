"""An embedding model for Pydantic AI.

```python
from pydantic_ai import Embedder

embedder = Embedder(AsyncembedEmbeddingModel("BAAI/bge-small-en-v1.5"))
result = await embedder.embed_query("what is backpressure?")
print(len(result.embeddings[0]), result.usage.input_tokens)
```

Needs `pip install "asyncembed[pydantic-ai]"`. It works on asyncio and trio, and from the synchronous methods of
`Embedder`: concurrent calls are batched together, whichever event loops they come from.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack, cast

from asyncembed.embedders.text import DEFAULT_MODEL, TextCall, TextEmbedding, TextKeywords
from asyncembed.errors import InputError
from asyncembed.integrations._models import Model, as_lists, listed

try:
    from pydantic_ai.embeddings import EmbeddingModel, EmbeddingResult, EmbeddingSettings
    from pydantic_ai.usage import RequestUsage
except ImportError as _error:
    raise ImportError(
        'asyncembed.integrations.pydantic_ai needs a package: pip install "asyncembed[pydantic-ai]"'
    ) from _error

if TYPE_CHECKING:
    from pydantic_ai.embeddings.result import EmbedInputType

    from asyncembed.embedders.base import ModelName, PriorityName
    from asyncembed.sync import TextEmbedding as SyncTextEmbedding

__all__ = ["AsyncembedEmbeddingModel", "AsyncembedEmbeddingSettings"]

INTERACTIVE_INPUTS = 128
"""A call with more inputs is an ingest, and lets queries pass."""

_CALL_KEYWORDS: Mapping[str, str] = {
    "dimensions": "truncate_dim",
    "asyncembed_prompt": "prompt",
    "asyncembed_prompt_name": "prompt_name",
    "asyncembed_task": "task",
}
"""The settings → the keywords of a call."""

_Found: TypeAlias = tuple[list[list[float]], int, list[int]]
"""Vectors, tokens of all inputs, and the positions of those that were cut."""


class AsyncembedEmbeddingSettings(EmbeddingSettings, total=False):
    """The settings of a call; `extra_headers` and `extra_body` are for models behind HTTP, and say nothing here.

    Without `truncate`, the model's own counts, which is to cut; `provider_details["cut"]` of a result has the positions
    of the inputs that were. With `dimensions`, vectors are cut to so many components, and normalised again.

    Keys:
        asyncembed_prompt: Put before each input, instead of the prompt of its role.
        asyncembed_prompt_name: The prompt of this name, of those that the model has.
        asyncembed_task: Task of a multi-task model, by name or number.
    """

    asyncembed_prompt: str
    asyncembed_prompt_name: str
    asyncembed_task: str | int


class AsyncembedEmbeddingModel(EmbeddingModel):
    """A model on this machine, for `pydantic_ai.Embedder`. Queries and documents get the prompts of their roles.

    Args:
        model: An `asyncembed.TextEmbedding`, open or not, or an `asyncembed.sync.TextEmbedding`; or a name: then the
            first call opens the model, for all in this process who ask for the same name and options.
        settings: What calls have that say nothing else: an `AsyncembedEmbeddingSettings`.
        keep_alive: With a name: seconds after which the model closes when nobody uses it, until the next call.
        options: With a name: the keywords of `asyncembed.TextEmbedding`.

    Raises:
        OptionError: No such model; or options beside a model, which has its own.
    """

    def __init__(
        self,
        model: "TextEmbedding[Any] | SyncTextEmbedding[Any] | ModelName" = DEFAULT_MODEL,
        *,
        settings: EmbeddingSettings | None = None,
        keep_alive: float | None = None,
        **options: Unpack[TextKeywords],
    ) -> None:
        super().__init__(settings=settings)
        self._model: Model[TextEmbedding[Any]] = Model(TextEmbedding, model, keep_alive=keep_alive, **options)

    @property
    def model_name(self) -> str:
        """The name or directory as it was given."""
        return self._model.name

    @property
    def system(self) -> str:
        """The provider's name."""
        return "asyncembed"

    async def embed(
        self,
        inputs: str | Sequence[str],
        *,
        input_type: "EmbedInputType",
        settings: EmbeddingSettings | None = None,
    ) -> EmbeddingResult:
        """The vectors of some texts, as lists; `usage.input_tokens` is what the model has computed for them.

        Raises:
            InputError: An input is no text, or over the limit with the setting `truncate=False`; `index` says which.
            AsyncEmbedError: The model cannot be opened.
        """
        texts, merged = self.prepare_embed(listed(inputs), settings)
        call = _call_of(merged)
        if input_type == "query" and len(texts) == 1:
            vectors, tokens, cut = await self._embed_query(texts[0], call)
        else:
            vectors, tokens, cut = await self._embed(texts, input_type, call)
        return EmbeddingResult(
            vectors,
            inputs=texts,
            input_type=input_type,
            model_name=self.model_name,
            provider_name=self.system,
            usage=RequestUsage(input_tokens=tokens),
            provider_details={"cut": cut} if cut else None,
        )

    async def _embed_query(self, text: str, call: TextCall) -> _Found:
        # What an agent asks for: a call of its own is half the work of a stream.
        try:
            one = await self._model.anywhere.embed_query(text, with_tokens=True, **call)
        except InputError as error:
            error.index = 0
            raise
        return [one.result.tolist()], one.tokens, [0] if one.is_cut else []

    async def _embed(self, texts: list[str], input_type: "EmbedInputType", call: TextCall) -> _Found:
        model = self._model.anywhere
        embed = model.query_embed if input_type == "query" else model.passage_embed
        priority: PriorityName = "interactive" if len(texts) <= INTERACTIVE_INPUTS else "bulk"
        batch = await embed(texts, priority=priority, **call).with_tokens().collect()
        return await as_lists(batch.results), int(batch.tokens.sum()), batch.is_cut.nonzero()[0].tolist()

    async def max_input_tokens(self) -> int | None:
        """Most tokens of an input, special tokens and prompt included; opens the model."""
        return (await self._model.anywhere.open()).max_length

    async def count_tokens(self, text: str) -> int:
        """How many tokens the whole text has, special tokens included, without a prompt; opens the model."""
        return await self._model.anywhere.token_count([text], truncated=False)

    async def aclose(self) -> None:
        """Give back a model that was given by name, which closes where nobody else uses it; a call opens it again."""
        await self._model.aclose()


def _call_of(settings: EmbeddingSettings) -> TextCall:
    call = {_CALL_KEYWORDS[name]: value for name, value in settings.items() if name in _CALL_KEYWORDS}
    if "truncate" in settings:
        call["long"] = "truncate" if settings["truncate"] else "error"
    return cast(TextCall, call)
