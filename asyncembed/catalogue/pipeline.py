"""A spec read from a repo's own files, as sentence-transformers writes them.

What a repo says is taken from it; what it does not say, the caller must (`Overrides`): nothing is guessed. It
goes in two steps, so that a repo on the hub need not be fetched whole:

1. `configuration_files(files)` names the small files that decide, out of the repo's listing.
2. `spec_from_directory(directory, files=...)` reads those, and its `model_file` and `additional_files` name
the rest.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from asyncembed.catalogue.limits import most_tokens as most_tokens
from asyncembed.catalogue.limits import repo_limit
from asyncembed.catalogue.onnx_choice import choose_onnx_file as choose_onnx_file
from asyncembed.catalogue.spec import Family, LocalOrigin, ModelSpec, Origin, Pooling
from asyncembed.errors import ModelLoadError, UnsupportedModelError
from asyncembed.repo_files import WEIGHTS, WEIGHTS_INDEX, inside, is_safe_path, read_json, shown

_IMAGE_CONFIGURATION = ("preprocessor_config.json", "processor_config.json")
"""Either says how an image is prepared: transformers 5 writes it into the latter, with the rest of a processor's."""

_ROOT_CONFIGURATION = frozenset(
    {
        "config.json",
        "config_sentence_transformers.json",
        "modules.json",
        *_IMAGE_CONFIGURATION,
        "sentence_bert_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
)

_POOLING_FLAGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last_token",
}
_POOLING_NAMES: dict[str, Pooling] = {
    "cls": "cls",
    "mean": "mean",
    "max": "max",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "mean_sqrt_len": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last_token",
}


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
        graph_output: Graph output used, by position or name.
    """

    pooling: Pooling | None = None
    normalize: bool | None = None
    max_length: int | None = None
    onnx_file: str | None = None
    precision: str | None = None
    graph_output: int | str | None = None


def configuration_files(files: Collection[str]) -> tuple[str, ...]:
    """Those of a repo's files that `spec_from_directory` may read, all of them small except the tokenizer."""
    return tuple(
        sorted(
            path
            for path in filter(is_safe_path, files)
            if path in _ROOT_CONFIGURATION
            # The modules of sentence-transformers: 1_Pooling/config.json and so on.
            or (path.count("/") == 1 and PurePosixPath(path).name in _ROOT_CONFIGURATION)
        )
    )


def spec_from_directory(
    directory: Path,
    *,
    name: str | None = None,
    family: Family = "text",
    files: Collection[str] | None = None,
    source: Origin | None = None,
    overrides: Overrides = Overrides(),
) -> ModelSpec:
    """Read what the repo in `directory` says about itself.

    Args:
        directory: Where its configuration files lie; the model itself need not be there yet.
        name: Name of the model; None: the directory.
        family: Which public class it is for.
        files: The repo's full listing, as paths with "/"; None: the files below `directory`.
        source: Where the rest of the files comes from; None: `directory`.
        overrides: What the caller says.

    Returns:
        A spec whose `model_file` and `additional_files` are all that must be fetched besides the
        configuration. `model_file` None means that there is no graph: but for the encoder "static", which
        has none, one must be exported from the weights first.

    Raises:
        UnsupportedModelError: The files do not say something, or ask for something that we do not compute;
            the message names the keyword that decides it.
        ModelLoadError: A file is broken.
    """
    repo = _Repo(
        directory,
        name or str(directory),
        frozenset(filter(is_safe_path, list_directory(directory) if files is None else files)),
        overrides,
    )
    match family:
        case "text":
            pipeline = _read_pipeline(repo)
        case "cross_encoder":
            pipeline = _cross_encoder(repo)
        case "sparse":
            pipeline = _splade(repo)
        case "image":
            pipeline = _image(repo)
        case _:
            raise repo.unsupported(f"a model of the family {family} must be in the catalogue or be registered")
    model_file, extra = (None, ()) if pipeline.encoder == "static" else _graph_files(repo)
    if model_file is None and family != "text":
        raise repo.unsupported("it has no ONNX file, and only encoders of texts can be exported from weights")
    prompts, default_prompt = _read_prompts(repo)
    return ModelSpec(
        name=repo.name,
        family=family,
        encoder=pipeline.encoder,
        sources=(source or LocalOrigin(directory),),
        model_file=model_file,
        additional_files=(*extra, *pipeline.files),
        dim=pipeline.dim,
        pooling=pipeline.pooling,
        normalize=pipeline.normalize,
        graph_output=0 if overrides.graph_output is None else overrides.graph_output,
        max_length=pipeline.max_length if overrides.max_length is None else overrides.max_length,
        prompts=prompts,
        default_prompt=default_prompt,
        is_catalogued=False,
        settings=pipeline.settings,
    )


@dataclass(frozen=True, slots=True)
class _Repo:
    """What is known about a repo while its spec is put together."""

    directory: Path
    name: str
    files: frozenset[str]
    overrides: Overrides

    def json(self, path: str) -> dict[str, Any]:
        """The object in a file; an absent file counts as an empty one."""
        value = self._load(path)
        return value if isinstance(value, dict) else {}

    def modules(self) -> "list[_Module] | None":
        """The modules in modules.json, in its order; None where there is no such file."""
        value = self._load("modules.json")
        if value is None:
            return None
        if not isinstance(value, list) or not all(
            isinstance(module, dict) and isinstance(module.get("idx", 0), int) for module in value
        ):
            raise ModelLoadError(f"{self.directory / 'modules.json'} is no list of modules", model=self.name)
        return [self._module(record) for record in sorted(value, key=lambda record: int(record.get("idx", 0)))]

    def _module(self, record: dict[str, Any]) -> "_Module":
        kind, folder = record.get("type", ""), record.get("path", "")
        if not isinstance(kind, str) or not isinstance(folder, str):
            raise ModelLoadError(
                f"{self.directory / 'modules.json'} has a module without type or path", model=self.name
            )
        folder = folder.rstrip("/").removeprefix("./")
        if folder not in ("", "."):
            inside(self.directory, folder)
        return _Module(kind, "" if folder in ("", ".") else f"{folder}/")

    def _load(self, path: str) -> Any:
        return read_json(inside(self.directory, path))

    def unsupported(self, reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self.name}: {reason}", model=self.name)


@dataclass(frozen=True, slots=True)
class _Module:
    """One of sentence-transformers' modules: its type, and what its files' paths begin with."""

    type_name: str
    prefix: str

    @property
    def kind(self) -> str:
        """The last part of a type of sentence-transformers; a repo's own types keep their full name."""
        name = self.type_name
        return name.rsplit(".", 1)[-1] if name.startswith("sentence_transformers.") else name


@dataclass(slots=True)
class _Pipeline:
    """What is computed, before names and sources are added."""

    encoder: str = "dense"
    pooling: Pooling = "none"
    normalize: bool = False
    dim: int | None = None
    max_length: int | None = None
    files: tuple[str, ...] = ()
    settings: dict[str, object] = field(default_factory=dict)


def _image(repo: _Repo) -> _Pipeline:
    """Image repos say how an image is prepared, and nothing of what becomes of the graph's output."""
    if not any(name in repo.files for name in _IMAGE_CONFIGURATION):
        raise repo.unsupported(f"it has no {_IMAGE_CONFIGURATION[0]} that says how an image is prepared")
    overrides = repo.overrides
    return _Pipeline(
        encoder="image",
        pooling=overrides.pooling or "none",
        normalize=True if overrides.normalize is None else overrides.normalize,
        settings=_preferring(repo, "image_embeds") if overrides.pooling in (None, "none") else {},
    )


def _preferring(repo: _Repo, output: str) -> dict[str, object]:
    """The setting that takes a graph's output of this name, if it has one and the caller names none."""
    return {"output_name": output} if repo.overrides.graph_output is None else {}


def _read_pipeline(repo: _Repo) -> _Pipeline:
    overrides = repo.overrides
    modules = repo.modules()
    if modules is not None:
        return _from_modules(repo, modules)
    if repo.json("config.json").get("model_type") == "model2vec":
        return _model2vec(repo)
    if overrides.pooling is not None and overrides.normalize is not None:
        return _declared(repo, overrides.pooling, overrides.normalize)
    missing = [
        f"{keyword}="
        for keyword, value in (("pooling", overrides.pooling), ("normalize", overrides.normalize))
        if value is None
    ]
    raise repo.unsupported(
        f"there is no modules.json that says how its hidden states become one vector: say {' and '.join(missing)} "
        '(pooling="none" where the graph has an output sentence_embedding)'
    )


def _from_modules(repo: _Repo, modules: Sequence[_Module]) -> _Pipeline:
    overrides = repo.overrides
    # The caller says it all; modules that we do not know are the graph's then.
    is_declared = overrides.pooling is not None and overrides.normalize is not None
    known = [module for module in modules if module.kind in _READERS]
    unknown = [module.kind for module in modules if module.kind not in (*_READERS, "Dropout")]
    if unknown and not is_declared:
        raise repo.unsupported(
            f"its module {shown(unknown[0])} is none that we compute; if the graph does that, say pooling= and "
            "normalize= yourself"
        )
    kinds = [module.kind for module in known]
    if is_declared and not {"Transformer", "StaticEmbedding"}.intersection(kinds):
        kinds.insert(0, "Transformer")  # under a name of the repo's own
    _check_order(repo, kinds, pools="Pooling" in kinds or (is_declared and "Transformer" in kinds))
    pipeline = _Pipeline()
    if "Transformer" in kinds:
        _read_limits(repo, pipeline)
        pipeline.dim = _hidden_size(repo)
    for module in known:
        _READERS[module.kind](repo, module.prefix, pipeline)
    _override(repo, pipeline)
    return pipeline


def _check_order(repo: _Repo, kinds: Sequence[str], *, pools: bool) -> None:
    ranks = [_MODULE_ORDER[kind] for kind in kinds]
    if ranks != sorted(ranks) or ranks[:1] != [0] or ("Transformer" in kinds) != pools:
        raise repo.unsupported(f"its modules come in an order that we do not compute: {', '.join(kinds)}")


def _override(repo: _Repo, pipeline: _Pipeline) -> None:
    """Put what the caller says in the place of the module that says the same, and of no other."""
    overrides = repo.overrides
    if pipeline.encoder == "static":
        _check_static_pooling(repo)
    elif overrides.pooling == "none" or (
        # A graph cannot know which tokens are a prompt's.
        overrides.pooling in (None, pipeline.pooling) and pipeline.settings.get("include_prompt", True)
    ):
        _take_finished(repo, pipeline)
    if overrides.pooling == "none":
        # The graph's vector is what linear layers have made already.
        pipeline.pooling, pipeline.dim, pipeline.files = "none", None, ()
        pipeline.settings.pop("projections", None)
    elif overrides.pooling is not None:
        pipeline.pooling = overrides.pooling
    if overrides.normalize is not None:
        pipeline.normalize = overrides.normalize


def _take_finished(repo: _Repo, pipeline: _Pipeline) -> None:
    """Let a graph's finished vector be taken, any or the one that the caller names; see `find_output`."""
    pipeline.settings["takes_finished"] = "any" if repo.overrides.graph_output is None else "named"


def _check_static_pooling(repo: _Repo) -> None:
    if repo.overrides.pooling not in (None, "mean"):
        raise repo.unsupported("a static embedding is the mean of its tokens' vectors: leave out pooling=")


_MODULE_ORDER = {"Transformer": 0, "StaticEmbedding": 0, "Pooling": 1, "Dense": 2, "Normalize": 3}


def _add_transformer(repo: _Repo, prefix: str, pipeline: _Pipeline) -> None:  # noqa: ARG001 (one signature for all)
    if prefix and (repo.overrides.pooling is None or repo.overrides.normalize is None):
        raise repo.unsupported(
            f"its transformer lies in the folder {shown(prefix)}; save it with a current sentence-transformers, "
            "which puts it beside modules.json"
        )


def _add_static(repo: _Repo, prefix: str, pipeline: _Pipeline) -> None:
    pipeline.encoder = "static"
    pipeline.pooling = "mean"
    pipeline.files = (f"{prefix}{WEIGHTS}", f"{prefix}tokenizer.json")
    pipeline.settings = {"folder": prefix.rstrip("/")} if prefix else {}
    for path in pipeline.files:
        if path not in repo.files:
            raise repo.unsupported(f"its static embedding lacks the file {path}")


def _add_pooling(repo: _Repo, prefix: str, pipeline: _Pipeline) -> None:
    path = f"{prefix}config.json"
    config = repo.json(path)
    try:
        pipeline.pooling = _pooling_of(repo, path, config)
    except UnsupportedModelError:
        if repo.overrides.pooling is None:
            raise
    pipeline.dim = _integer(config, "word_embedding_dimension", "embedding_dimension") or pipeline.dim
    if config.get("include_prompt") is False:
        pipeline.settings["include_prompt"] = False


def _pooling_of(repo: _Repo, path: str, config: dict[str, Any]) -> Pooling:
    modes: list[Pooling] = [mode for flag, mode in _POOLING_FLAGS.items() if config.get(flag)]
    if named := config.get("pooling_mode"):
        names = named if isinstance(named, list) else [named]
        unknown = [mode for mode in names if not isinstance(mode, str) or mode not in _POOLING_NAMES]
        if unknown:
            raise repo.unsupported(f"its pooling mode {shown(unknown[0])} is none that we compute: say pooling=")
        modes = [_POOLING_NAMES[mode] for mode in names]
    if len(modes) != 1:
        said = f"the pooling modes {', '.join(modes[:8])} at once" if modes else "no pooling mode that we know"
        raise repo.unsupported(f"{path} has {said}: say pooling=")
    return modes[0]


def _add_projection(repo: _Repo, prefix: str, pipeline: _Pipeline) -> None:
    if repo.overrides.pooling == "none":
        return
    weights = f"{prefix}{WEIGHTS}"
    if weights not in repo.files:
        raise repo.unsupported(
            f"its linear layer lacks {weights}: files of pickled Python (pytorch_model.bin) are not read"
        )
    config = repo.json(f"{prefix}config.json")
    if config.get("use_residual") or config.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        raise repo.unsupported(
            f"its linear layer in {prefix} is of a kind that we do not compute (residual, or per token)"
        )
    pipeline.dim = _integer(config, "out_features") or pipeline.dim
    pipeline.files += (weights, f"{prefix}config.json")
    earlier = pipeline.settings.get("projections", ())
    assert isinstance(earlier, tuple)
    pipeline.settings["projections"] = (*earlier, prefix.rstrip("/"))


def _add_normalization(repo: _Repo, prefix: str, pipeline: _Pipeline) -> None:  # noqa: ARG001
    pipeline.normalize = True


_READERS: Mapping[str, Callable[[_Repo, str, _Pipeline], None]] = {
    "Transformer": _add_transformer,
    "StaticEmbedding": _add_static,
    "Pooling": _add_pooling,
    "Dense": _add_projection,
    "Normalize": _add_normalization,
}
"""The modules that we compute: each reads its configuration into the pipeline."""


def _model2vec(repo: _Repo) -> _Pipeline:
    """A static model as model2vec saves it, without sentence-transformers' files."""
    _check_static_pooling(repo)
    normalize = repo.overrides.normalize
    pipeline = _Pipeline(
        normalize=bool(repo.json("config.json").get("normalize", True)) if normalize is None else normalize,
        max_length=512,  # model2vec's own default
        dim=_integer(repo.json("config.json"), "hidden_dim"),
    )
    _add_static(repo, "", pipeline)
    pipeline.settings["drop_unknown"] = True
    return pipeline


def _cross_encoder(repo: _Repo) -> _Pipeline:
    """A model for sequence classification whose one label is the score."""
    config = repo.json("config.json")
    _check_task(repo, "ForSequenceClassification")
    id2label = config.get("id2label")
    labels = _integer(config, "num_labels") or (len(id2label) if isinstance(id2label, dict) else 1)
    if labels != 1:
        raise repo.unsupported(f"it is a classifier of {labels} labels; a reranker has one, the score")
    return _Pipeline(encoder="cross_encoder", max_length=_max_length(repo), settings=_preferring(repo, "logits"))


def _splade(repo: _Repo) -> _Pipeline:
    """A masked language model whose logits are the weights of words, as sentence-transformers' sparse encoders are."""
    modules = repo.modules()
    if modules is None:
        _check_task(repo, "ForMaskedLM")
    else:
        kinds = [module.type_name.rsplit(".", 1)[-1] for module in modules]
        if kinds != ["MLMTransformer", "SpladePooling"]:
            raise repo.unsupported(
                f"its modules are {', '.join(map(shown, kinds[:8]))}; SPLADE's are MLMTransformer and SpladePooling"
            )
        pooling = repo.json(f"{modules[1].prefix}config.json")
        how = pooling.get("pooling_strategy", "max"), pooling.get("activation_function", "relu")
        if how != ("max", "relu"):
            raise repo.unsupported(f"its pooling is {shown(how[0])} of {shown(how[1])}; only max of relu is computed")
    return _Pipeline(encoder="splade", max_length=_max_length(repo), settings=_preferring(repo, "logits"))


def _check_task(repo: _Repo, task: str) -> None:
    architectures = repo.json("config.json").get("architectures")
    names = architectures if isinstance(architectures, list) else [architectures] if architectures else []
    if names and not any(isinstance(name, str) and name.endswith(task) for name in names):
        raise repo.unsupported(f"config.json calls it {', '.join(map(shown, names[:8]))}, not a model {task}")


def _declared(repo: _Repo, pooling: Pooling, normalize: bool) -> _Pipeline:
    pipeline = _Pipeline(pooling=pooling, normalize=normalize)
    _read_limits(repo, pipeline)
    if pooling == "none":
        _take_finished(repo, pipeline)
    else:
        pipeline.dim = _hidden_size(repo)
    return pipeline


def _read_limits(repo: _Repo, pipeline: _Pipeline) -> None:
    pipeline.max_length = _max_length(repo)
    if repo.json("sentence_bert_config.json").get("do_lower_case"):
        pipeline.settings["lower_case"] = True


def _max_length(repo: _Repo) -> int | None:
    """See `repo_limit`."""
    return repo_limit(
        repo.json("config.json"), repo.json("tokenizer_config.json"), repo.json("sentence_bert_config.json")
    )


def _read_prompts(repo: _Repo) -> tuple[dict[str, str], str | None]:
    config = repo.json("config_sentence_transformers.json")
    declared = config.get("prompts")
    if not isinstance(declared, dict):
        declared = {}
    prompts = {name: text for name, text in declared.items() if isinstance(text, str)}
    # A prompt for documents has several names; all of them may be asked for by the one that is ours.
    for synonym in ("document", "corpus"):
        if synonym in prompts:
            prompts.setdefault("passage", prompts[synonym])
    default = config.get("default_prompt_name")
    return prompts, default if isinstance(default, str) and default in prompts else None


def _graph_files(repo: _Repo) -> tuple[str | None, tuple[str, ...]]:
    """The graph, whose own weights it names itself; for an export, the files with the weights."""
    overrides = repo.overrides
    graph = choose_onnx_file(repo.files, onnx_file=overrides.onnx_file, precision=overrides.precision, model=repo.name)
    if graph is not None:
        return graph, ()
    if WEIGHTS in repo.files:
        return None, (WEIGHTS,)
    shards = sorted(path for path in repo.files if re.fullmatch(r"model-\d+-of-\d+\.safetensors", path))
    return None, (WEIGHTS_INDEX, *shards)


def _hidden_size(repo: _Repo) -> int | None:
    return _integer(repo.json("config.json"), "hidden_size", "dim", "d_model")


def _integer(config: dict[str, Any], *keys: str) -> int | None:
    """The first of these entries that is a size: a number above 0 that an array could have."""
    return next((config[key] for key in keys if type(config.get(key)) is int and 0 < config[key] < 2**31), None)


def list_directory(directory: Path) -> list[str]:
    """The files below a directory, as paths with "/", hidden ones left out.

    Raises:
        ModelLoadError: There is no such directory, or it cannot be read.
    """
    if not directory.is_dir():
        raise ModelLoadError(f"there is no directory {directory}", model=str(directory))
    try:
        return [
            path.relative_to(directory).as_posix()
            for path in directory.rglob("*")
            if not any(part.startswith(".") for part in path.relative_to(directory).parts) and path.is_file()
        ]
    except OSError as error:
        raise ModelLoadError(f"the directory {directory} cannot be read: {error}", model=str(directory)) from error
