"""What a model's files say of it beyond what it computes: its tokens, its labels, where it comes from.

Nothing of it is needed for vectors, so it is read when somebody asks, in a thread, and kept.
"""

from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from asyncembed.catalogue.onnx_choice import precision_of
from asyncembed.embedders.base import Embedder, HasVectors, is_loaded, opened_model
from asyncembed.encoders.encoder import EncoderConfig
from asyncembed.engine.supervisor import Supervisor
from asyncembed.errors import ModelLoadError, StateError, UnsupportedModelError
from asyncembed.repo_files import read_object
from asyncembed.server.refusals import Refusal
from asyncembed.server.token_lists import TokenLists

T = TypeVar("T")

THREADS = 2
"""How many requests at a time are answered by a thread of the server, as those for tokens are."""

_PRECISIONS = {"fp32": "float32", "fp16": "float16"}


class ModelFacts:
    """What is known of one served model, while it is open."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._tokens: tuple[EncoderConfig, TokenLists] | None = None
        self._limiter = CapacityLimiter(THREADS)

    @property
    def is_loaded(self) -> bool:
        """Whether what follows is known: no, where loading was left to the first request."""
        return is_loaded(self._embedder)

    @property
    def config(self) -> EncoderConfig:
        """What it was opened from. Raises `StateError` if it is not open."""
        model, _ = opened_model(self._embedder)
        return model.config

    @property
    def engine(self) -> Supervisor:
        """What computes it. Raises `StateError` if it is not open."""
        _, engine = opened_model(self._embedder)
        return engine

    async def ask_tokens(self, ask: Callable[[TokenLists], T]) -> T:
        """What `ask` makes of the model's tokens, in a thread.

        Raises:
            Refusal: The model has none.
        """
        config = self.config

        def work() -> T:
            if self._tokens is None or self._tokens[0] is not config:
                self._tokens = config, _read_tokens(config)
            return ask(self._tokens[1])

        return await to_thread.run_sync(work, limiter=self._limiter)

    async def label(self) -> str:
        """The name of a reranker's score, as its files have it: mostly "LABEL_0"."""
        return await to_thread.run_sync(_label, self.config, limiter=self._limiter)

    @property
    def revision(self) -> str | None:
        """The commit on the hub, where the files lie in its cache."""
        directory = self.config.directory
        return directory.name if directory.parent.name == "snapshots" else None

    @property
    def dim(self) -> int | None:
        """Length of its vectors, where they have one, and it is known."""
        if not isinstance(self._embedder, HasVectors):
            return None
        try:
            return self._embedder.embedding_size
        except StateError:  # it tells with its first vector
            return None

    @property
    def runs_on(self) -> str:
        """What computes it: the execution provider, for people."""
        model, _ = opened_model(self._embedder)
        return model.info.runs_on

    @property
    def precision(self) -> str | None:
        """Of the numbers that its graph computes with: "int8" also where only the graph tells so. None: it has none."""
        model, _ = opened_model(self._embedder)
        if not model.info.providers:
            return None
        if model.config.session.bfloat16:
            return "bf16"
        file = model.config.spec.model_file
        named = "fp32" if file is None else precision_of(file)
        return "int8" if named == "fp32" and model.info.dynamically_quantized else named

    @property
    def dtype(self) -> str:
        """What the weights are, by the name of the graph's file."""
        file = self.config.spec.model_file
        precision = "fp32" if file is None else precision_of(file)
        return _PRECISIONS.get(precision, precision)


def _read_tokens(config: EncoderConfig) -> TokenLists:
    try:
        return TokenLists(
            config.directory / config.spec.folder, lower_case=config.spec.settings.get("lower_case") is True
        )
    except (UnsupportedModelError, ModelLoadError) as error:
        raise Refusal("unfit", f"{config.spec.name} has no tokens that could be told", param="model") from error


def _label(config: EncoderConfig) -> str:
    names = read_object(config.directory / "config.json").get("id2label")
    position = config.spec.settings.get("column") or 0
    name = names.get(str(position)) if isinstance(names, dict) else None
    return name if isinstance(name, str) else f"LABEL_{position}"
