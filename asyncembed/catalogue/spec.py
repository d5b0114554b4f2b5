"""A model as data: everything that one encoder needs to know about it, and where its files come from.

Nothing here computes. A spec travels to the workers by pickle, so it holds plain values only.
"""

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

Family: TypeAlias = Literal[
    "text", "sparse", "late_interaction", "hybrid", "image", "late_interaction_multimodal", "cross_encoder"
]

Pooling: TypeAlias = Literal["cls", "mean", "max", "weighted_mean", "mean_sqrt_len", "last_token", "none"]
"""From hidden states to one vector; "none" means that the graph pools by itself."""


@dataclass(frozen=True, slots=True)
class HubOrigin:
    """A repo on the Hugging Face hub, as `organisation/name`."""

    repo: str


@dataclass(frozen=True, slots=True)
class ArchiveOrigin:
    """A `.tar.gz` at a URL whose one top folder, `folder`, holds the files."""

    url: str
    folder: str


@dataclass(frozen=True, slots=True)
class LocalOrigin:
    """A directory on this machine."""

    path: Path


@dataclass(frozen=True, slots=True)
class CacheFolderOrigin:
    """A directory in the cache's root that earlier versions of fastembed left: used if there, never downloaded."""

    folder: str


Origin: TypeAlias = HubOrigin | ArchiveOrigin | LocalOrigin | CacheFolderOrigin
"""Where files come from. (A *source* is what a caller embeds.)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model.

    Attributes:
        name: Canonical name; look-up ignores its letter case.
        family: Which public class serves it.
        encoder: Which encoder computes it: the name of one of the package, or "package.module:factory" for an
            `asyncembed.Encoder` of your own.
        sources: Where its files come from, tried in order.
        model_file: Path of the ONNX graph inside the repo; None for models without a graph.
        additional_files: Further files that must be present, as repo paths (external data, word lists).
        dim: Length of its vectors, where they have a fixed one.
        truncate_dim: How many leading components of a vector its repo keeps; None: all.
        pooling: How hidden states become one vector.
        normalize: Whether the encoder scales the vectors to unit length.
        graph_output: Graph output used, by position or name.
        max_length: Limit in tokens, special tokens included; None: the tokenizer's configuration decides.
        prompts: Text put before an input, by role or name ("query", "passage", ...).
        default_prompt: Name of the prompt that every input gets unless a call says otherwise.
        prompts_by_default: Whether prompts are put before inputs unless the caller says otherwise; None: those that a
            repo itself declares are, those of the catalogue are not.
        description: For people.
        license: For people, as its authors name it.
        size_in_gb: For people: what is downloaded.
        languages: For people: codes as "en", or "multilingual", or "code".
        stated_limit: For people: its limit in tokens by its authors' word.
        reads_repo: Whether its repo's own files say how it is computed, as for one outside the catalogue: then this
            adds what is in none of them.
        is_catalogued: Whether it is known by name, rather than read from a repo's own configuration.
        settings: Numbers and names that only this model's encoder understands.
        output: What `graph_output` was called in 0.1; only ever given, never read.
    """

    name: str
    family: Family
    encoder: str
    sources: tuple[Origin, ...]
    model_file: str | None = None
    additional_files: tuple[str, ...] = ()
    dim: int | None = None
    truncate_dim: int | None = None
    pooling: Pooling = "none"
    normalize: bool = False
    graph_output: int | str = 0
    max_length: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    description: str = ""
    license: str = ""
    size_in_gb: float = 0.0
    languages: tuple[str, ...] = ()
    stated_limit: int | None = None
    prompts_by_default: bool | None = None
    reads_repo: bool = False
    is_catalogued: bool = True
    settings: Mapping[str, object] = field(default_factory=dict)
    output: InitVar[int | str | None] = None

    def __post_init__(self, output: int | str | None) -> None:
        if output is not None:
            object.__setattr__(self, "graph_output", output)

    @property
    def folder(self) -> str:
        """Where the files of the model itself lie in the repo: "" at its root."""
        return str(self.settings.get("folder", ""))

    def completed_by(self, read: "ModelSpec") -> "ModelSpec":
        """What the files of its repo say, with what is in none of them."""
        has_prompts = any(read.prompts.values())
        return replace(
            read,
            name=self.name,
            prompts=read.prompts if has_prompts else self.prompts,
            default_prompt=read.default_prompt if has_prompts else None,
            prompts_by_default=has_prompts,
            description=self.description,
            license=self.license,
            size_in_gb=self.size_in_gb,
            languages=self.languages,
            stated_limit=self.stated_limit,
        )

    def with_graph(self, graph: str) -> "ModelSpec":
        """The same model with another file for its graph; the weights of one graph are of no use to another."""
        if graph == self.model_file:
            return self
        others = (path for path in self.additional_files if not path.startswith(f"{self.model_file}"))
        return replace(self, model_file=graph, additional_files=tuple(others))
