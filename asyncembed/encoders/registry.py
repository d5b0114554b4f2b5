"""From a config to a loaded encoder: the one place that knows which module serves which `spec.encoder`.

An encoder of somebody else's is named "package.module:factory"; the factory takes the `EncoderConfig`. Workers do not
import the caller's main module, so it must live in an importable one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from asyncembed.catalogue.spec import ModelSpec
from asyncembed.encoders import settings as kinds
from asyncembed.errors import UnsupportedModelError
from asyncembed.faking import ENCODER
from asyncembed.runtime.session import opening_ahead

if TYPE_CHECKING:
    from asyncembed.encoders.encoder import Encoder, EncoderConfig


NO_LIMIT = 2**31 - 1
"""For a tokenizer that is to cut nothing."""


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of encoder.

    Attributes:
        factory: What makes one, as "module:name".
        settings: What the spec of its models, and the caller, may say; None: anything.
        needs_graph: Whether a graph is exported for a model that has none.
        is_cheap: Whether a token costs next to nothing.
        needs_graph_at_once: Whether nothing can be computed before its graph is loaded.
        pools_spans: Whether it gives vectors to parts of a text that goes through the model as a whole.
        reads_roles: Whether it computes something else of queries; one with tasks does so in any case.
    """

    factory: str
    settings: type[kinds.Settings] | None
    needs_graph: bool = True
    is_cheap: bool = False
    needs_graph_at_once: bool = False
    pools_spans: bool = False
    reads_roles: bool = True

    def reads_roles_of(self, spec: ModelSpec) -> bool:
        """Whether a query's result may be another one than a document's, their prompts aside."""
        return self.reads_roles or "tasks" in spec.settings

    @property
    def is_foreign(self) -> bool:
        """Whether it is somebody else's."""
        return self.settings is None


def _row(
    factory: str,
    settings: type[kinds.Settings],
    *,
    has_graph: bool = True,
    needs_graph_at_once: bool = True,
    pools_spans: bool = False,
    reads_roles: bool = True,
) -> Row:
    return Row(
        f"asyncembed.encoders.{factory}",
        settings,
        needs_graph=has_graph,
        is_cheap=not has_graph,
        needs_graph_at_once=has_graph and needs_graph_at_once,
        pools_spans=pools_spans,
        reads_roles=reads_roles,
    )


ROWS: Mapping[str, Row] = {
    "dense": _row("dense:DenseEncoder", kinds.DenseSettings, pools_spans=True, reads_roles=False),
    "static": _row("static:StaticEncoder", kinds.StaticSettings, has_graph=False, reads_roles=False),
    "colbert": _row("colbert:LateInteractionEncoder", kinds.ColbertSettings),
    "token_states": _row("colbert:LateInteractionEncoder", kinds.ColbertSettings),
    "hybrid": _row("one_pass:HybridEncoder", kinds.HybridSettings),
    "colpali": _row("colpali:colpali", kinds.ColPaliSettings),
    "colmodernvbert": _row("colpali:colmodernvbert", kinds.ColModernVBertSettings),
    "image": _row("vision:ImageEncoder", kinds.ImageSettings),
    "splade": _row("splade:splade", kinds.SpladeSettings),
    "inference_free_splade": _row(
        "splade:inference_free_splade", kinds.InferenceFreeSettings, needs_graph_at_once=False
    ),
    "bm25": _row("bm25:Bm25Encoder", kinds.Bm25Settings, has_graph=False),
    "bm42": _row("bm42:bm42", kinds.Bm42Settings),
    "minicoil": _row("minicoil:minicoil", kinds.MiniCoilSettings),
    "cross_encoder": _row("reranker:CrossEncoder", kinds.RerankerSettings),
    "causal_reranker": _row("causal_reranker:CausalReranker", kinds.CausalRerankerSettings),
}


def row_of(spec: ModelSpec) -> Row:
    """The kind of encoder that computes a model.

    Raises:
        UnsupportedModelError: No encoder has this name.
    """
    if spec.encoder in ROWS:
        return ROWS[spec.encoder]
    if ":" in spec.encoder:
        return Row(spec.encoder, None, needs_graph=False)
    raise UnsupportedModelError(f"no encoder is called {spec.encoder!r}", model=spec.name)


def check_settings(spec: ModelSpec, keywords: Mapping[str, object]) -> None:
    """See that the model's encoder understands its spec and the caller; raises as `read_settings` does."""
    row = row_of(spec)
    if row.settings is not None:
        kinds.read_settings(row.settings, spec, keywords)


class TokenSource(Protocol):
    """Reads texts as a model does, for what must know where its tokens are."""

    def placed(self, text: str, *, prefix: str = "") -> Iterator[tuple[list[int], list[int]]]:
        """See `TextTokenizer.placed`."""
        ...

    def around(self) -> tuple[list[int], list[int]]:
        """See `TextTokenizer.around`."""
        ...


def token_source(config: "EncoderConfig") -> TokenSource:
    """That of the texts of a dense model; reads its files.

    Raises:
        UnsupportedModelError: The encoder is somebody else's, or the files do not say what is needed.
        ModelLoadError: A file is broken.
    """
    spec = config.spec
    if spec.encoder == ENCODER:
        from asyncembed.encoders.hashed import WordSource

        return WordSource()
    if row_of(spec).is_foreign:
        raise UnsupportedModelError(
            f"{spec.name} has an encoder of its own, whose tokens nobody else knows: cut its texts yourself",
            model=spec.name,
        )
    from asyncembed.encoders.tokenization import TextTokenizer

    return TextTokenizer(
        config.directory / spec.folder,
        max_length=NO_LIMIT,
        lower_case=bool(spec.settings.get("lower_case")),
        add_special_tokens=spec.encoder != "static",
        pads=False,
    )


def build(config: "EncoderConfig") -> "Encoder":
    """Load the model of `config`; blocks while it reads files and builds the session.

    Raises:
        UnsupportedModelError: No encoder has this name, or the model asks for something it cannot do.
        RuntimeMissingError: onnxruntime or the execution provider asked for is not installed.
    """
    row, graph = row_of(config.spec), config.spec.model_file
    factory = row.factory
    module, _, name = factory.partition(":")
    try:
        make = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UnsupportedModelError(f"the encoder {factory!r} cannot be imported in a worker: {error}") from error
    if graph is None or not row.needs_graph_at_once:
        return cast("Encoder", make(config))
    with opening_ahead(config.directory / graph, config.session, prepared=config.prepared):
        return cast("Encoder", make(config))
