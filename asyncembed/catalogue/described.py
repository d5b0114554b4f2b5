"""A repo while its spec is read: what its files are, which modules it has, and what the caller says instead."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from asyncembed.catalogue.limits import repo_limit
from asyncembed.catalogue.spec import ModelSpec, Pooling
from asyncembed.errors import ModelLoadError, OptionError, UnsupportedModelError
from asyncembed.repo_files import inside, read_json, read_object, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What the caller says instead of the repo; None leaves a thing to the repo.

    Attributes:
        pooling: How hidden states become one vector.
        normalize: Whether vectors are scaled to unit length.
        max_length: Limit in tokens.
        onnx_file: Path of the graph in the repo.
        precision: "fp32", "fp16", "int8", ...: which of several graphs, by the names that exporters give
            them.
        preferred_precision: The same where nothing is said of it, if the graph of that precision lies beside the plain
            one.
        graph_output: Graph output used, by position or name.
        template: What a reranker that is a language model reads of a pair.
        int8_objection: Why no graph in 8 bits can be built of the weights of a model, by its spec and the directory
            with its configuration, None where it can; no such function: none is asked for.
        int8_of_graphs: Whether the float32 graph is taken then, where there is one, to be brought to 8 bits.
    """

    pooling: Pooling | None = None
    normalize: bool | None = None
    max_length: int | None = None
    onnx_file: str | None = None
    precision: str | None = None
    preferred_precision: str | None = None
    graph_output: int | str | None = None
    template: str | None = None
    int8_objection: Callable[[ModelSpec, Path], str | None] | None = None
    int8_of_graphs: bool = False

    def applied_to(self, spec: ModelSpec) -> ModelSpec:
        """The spec of a model that the catalogue or the caller describes, with these instead of what it says."""
        if self.onnx_file is not None:
            spec = spec.with_graph(self.onnx_file)
        settings = dict(spec.settings)
        if self.graph_output is not None or self.pooling not in (None, spec.pooling):
            settings.pop("output_name", None)  # it goes with the catalogue's pooling
        if self.template is not None:
            if spec.encoder != "causal_reranker":
                raise OptionError(f"{spec.name} is no language model that answers; leave out template=")
            settings["template"] = self.template
        if self.pooling == "none" and spec.pooling != "none":
            settings["takes_finished"] = "any" if self.graph_output is None else "named"
        return replace(
            spec,
            pooling=self.pooling or spec.pooling,
            normalize=spec.normalize if self.normalize is None else self.normalize,
            graph_output=spec.graph_output if self.graph_output is None else self.graph_output,
            settings=settings,
        )


@dataclass(frozen=True, slots=True)
class Module:
    """One of sentence-transformers' modules: its type, and what its files' paths begin with."""

    type_name: str
    prefix: str = ""

    @property
    def kind(self) -> str:
        """The last part of a type of sentence-transformers; a repo's own types keep their full name."""
        name = self.type_name
        return name.rsplit(".", 1)[-1] if name.startswith("sentence_transformers.") else name


@dataclass(frozen=True, slots=True)
class DescribedRepo:
    """What is known about a repo while its spec is put together."""

    directory: Path
    name: str
    files: frozenset[str]
    overrides: Overrides

    @property
    def is_declared(self) -> bool:
        """Whether the caller says all that modules would say."""
        return self.overrides.pooling is not None and self.overrides.normalize is not None

    def json(self, path: str) -> dict[str, Any]:
        """The object in a file; an absent file counts as an empty one."""
        return read_object(inside(self.directory, path))

    def modules(self) -> list[Module] | None:
        """The modules in modules.json, in its order; None where there is no such file."""
        value = read_json(self.directory / "modules.json")
        if value is None:
            return None
        if not isinstance(value, list) or not all(map(_is_module, value)):
            raise ModelLoadError(f"{self.directory / 'modules.json'} is no list of modules", model=self.name)
        return [self._module(record) for record in sorted(value, key=lambda record: int(record.get("idx", 0)))]

    def routes(self, router: Module) -> dict[str, list[Module]]:
        """The modules of a router for queries and for documents."""
        path = f"{router.prefix}router_config.json"
        config = self.json(path)
        types, structure, parameters = (config.get(key) for key in ("types", "structure", "parameters"))
        if isinstance(parameters, dict) and parameters.get("route_mappings"):
            raise self.unsupported(f"{path} has mappings of routes, which we do not compute")
        found: dict[str, list[Module]] = {}
        for route in ("query", "document"):
            folders = structure.get(route) if isinstance(structure, dict) else None
            if not isinstance(types, dict) or not isinstance(folders, list) or not folders:
                raise self.unsupported(f"{path} names no modules for the route {route}")
            if not all(isinstance(folder, str) and isinstance(types.get(folder), str) for folder in folders):
                raise ModelLoadError(f"{self.directory / path} names modules without a type", model=self.name)
            records = [{"type": types[folder], "path": f"{router.prefix}{folder}"} for folder in folders]
            found[route] = list(map(self._module, records))
        return found

    def _module(self, record: dict[str, Any]) -> Module:
        folder = str(record.get("path", "")).rstrip("/").removeprefix("./")
        if folder in ("", "."):
            return Module(record.get("type", ""))
        inside(self.directory, folder)
        return Module(record.get("type", ""), f"{folder}/")

    def unsupported(self, reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self.name}: {reason}", model=self.name)


def _is_module(record: object) -> bool:
    """Whether a record has what is read of it, in the right types: its type, its folder, its place in the order."""
    kinds = {"type": str, "path": str, "idx": int}
    return isinstance(record, dict) and all(isinstance(record.get(key, kind()), kind) for key, kind in kinds.items())


def with_settings(spec: ModelSpec, **settings: object) -> ModelSpec:
    """The spec with these settings besides its own."""
    return replace(spec, settings={**spec.settings, **settings})


def preferring(repo: DescribedRepo, output: str, spec: ModelSpec) -> ModelSpec:
    """The spec that takes a graph's output of this name, if it has one and the caller names none."""
    return spec if repo.overrides.graph_output is not None else with_settings(spec, output_name=output)


def is_called(repo: DescribedRepo, task: str) -> bool:
    """Whether the repo's first architecture is one for a task."""
    names = architectures(repo)
    return bool(names) and isinstance(names[0], str) and names[0].endswith(task)


def architectures(repo: DescribedRepo) -> list[object]:
    """What config.json calls the model."""
    said = repo.json("config.json").get("architectures")
    return said if isinstance(said, list) else [said] if said else []


def check_task(repo: DescribedRepo, task: str) -> None:
    """See that config.json, if it says anything, calls it a model for this task."""
    names = architectures(repo)
    if names and not any(isinstance(name, str) and name.endswith(task) for name in names):
        raise repo.unsupported(f"config.json calls it {', '.join(map(shown, names[:8]))}, not a model {task}")


def check_modality(repo: DescribedRepo, sentence: Mapping[str, Any]) -> None:
    """See that a Transformer takes a plain text, by its `sentence_bert_config.json`; before 5.4 each does."""
    modalities = sentence.get("modality_config")
    if not isinstance(modalities, dict) or not modalities:
        return
    text = modalities.get("text")
    if text is None:
        raise repo.unsupported(
            f"its Transformer takes no plain text, only {', '.join(map(shown, list(modalities)[:8]))}"
        )
    method = text.get("method", "forward") if isinstance(text, dict) else text
    if method != "forward":
        raise repo.unsupported(f"its Transformer computes a text by its method {shown(method)}, not by forward")


def declared_limit(repo: DescribedRepo, prefix: str = "") -> int | None:
    """See `repo_limit`."""
    names = ("config.json", "tokenizer_config.json", "sentence_bert_config.json")
    return repo_limit(*(repo.json(f"{prefix}{name}") for name in names))


def hidden_size(repo: DescribedRepo) -> int | None:
    """How many numbers a hidden state has, if config.json says so."""
    return size_in(repo.json("config.json"), "hidden_size", "dim", "d_model")


def size_in(config: dict[str, Any], *keys: str) -> int | None:
    """The first of these entries that is a size: a number above 0 that an array could have."""
    return next((config[key] for key in keys if type(config.get(key)) is int and 0 < config[key] < 2**31), None)
