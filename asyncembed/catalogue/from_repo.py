"""A spec read from a repo's own files, as sentence-transformers writes them.

What a repo says is taken from it; what it does not say, the caller must (`Overrides`): nothing is guessed. It
goes in two steps, so that a repo on the hub need not be fetched whole:

1. `configuration_files(files)` names the small files that decide, out of the repo's listing.
2. `spec_from_directory(directory, files=...)` reads those, and its `model_file` and `additional_files` name
the rest.
"""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from asyncembed.catalogue.spec import Family, LocalSource, ModelSpec, Pooling, Source
from asyncembed.errors import ModelLoadError, OptionError, UnsupportedModelError

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

_ROOT_CONFIGURATION = frozenset(
    {
        "config.json",
        "config_sentence_transformers.json",
        "modules.json",
        "preprocessor_config.json",
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

# What exporters append to a graph's name: `model_fp16.onnx`, `model_quantized.onnx`,
# `model_qint8_avx512_vnni.onnx`.
_PRECISIONS: dict[str, tuple[str, ...]] = {
    "fp32": (r"",),
    "fp16": (r"_fp16", r"_f16", r"_float16"),
    "int8": (r"_int8", r"_quantized", r"_qint8.*", r"_i8"),
    "uint8": (r"_uint8", r"_quint8.*"),
    "q4": (r"_q4",),
    "q4f16": (r"_q4f16",),
    "bnb4": (r"_bnb4",),
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
        output: Graph output used, by position or name.
    """

    pooling: Pooling | None = None
    normalize: bool | None = None
    max_length: int | None = None
    onnx_file: str | None = None
    precision: str | None = None
    output: int | str | None = None


def configuration_files(files: Collection[str]) -> tuple[str, ...]:
    """Those of a repo's files that `spec_from_directory` may read, all of them small except the tokenizer."""
    return tuple(
        sorted(
            path
            for path in files
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
    source: Source | None = None,
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
        frozenset(files) if files is not None else frozenset(_listing(directory)),
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
        sources=(source or LocalSource(directory),),
        model_file=model_file,
        additional_files=(*extra, *pipeline.files),
        dim=pipeline.dim,
        pooling=pipeline.pooling,
        normalize=pipeline.normalize,
        output=0 if overrides.output is None else overrides.output,
        max_length=pipeline.max_length if overrides.max_length is None else overrides.max_length,
        prompts=prompts,
        default_prompt=default_prompt,
        is_catalogued=False,
        settings=pipeline.settings,
    )


_SPARE_POSITIONS = {
    **dict.fromkeys(("albert", "bert", "distilbert", "electra"), 0),
    # Their positions are counted from the padding token's id, which is 1.
    **dict.fromkeys(("camembert", "mpnet", "roberta", "xlm-roberta"), 2),
}
"""Types of models that learn a vector for each position, so that no input can be longer: and how many of these vectors
stand for no token."""


def most_tokens(config: dict[str, Any]) -> int | None:
    """The longest input that a model can compute, by its `config.json`; None where that does not tell."""
    spare = _SPARE_POSITIONS.get(str(config.get("model_type")))
    positions = _integer(config, "max_position_embeddings")
    if spare is None or positions is None or config.get("position_embedding_type", "absolute") != "absolute":
        return None
    return positions - spare


def choose_onnx_file(
    files: Collection[str], *, onnx_file: str | None = None, precision: str | None = None, model: str = ""
) -> str | None:
    """Which graph of a repo is meant: the plain fp32 one unless another is asked for.

    Returns:
        Its path, or None where the repo has weights that can be exported, but no fp32 graph.

    Raises:
        UnsupportedModelError: There is none that fits, or several; the message lists them.
        OptionError: `precision` is no precision that we know the file names of.
    """
    graphs = sorted(path for path in files if path.endswith(".onnx"))
    listing = ", ".join(graphs) or "none"
    if onnx_file is not None:
        if onnx_file not in graphs:
            raise UnsupportedModelError(f"{model} has no {onnx_file}; its ONNX files: {listing}", model=model)
        return onnx_file
    if precision is not None and precision not in _PRECISIONS:
        raise OptionError(f"precision must be one of {', '.join(_PRECISIONS)}, not {precision!r}")
    fitting = [path for path in graphs if precision_of(path) == (precision or "fp32")]
    preferred = [path for path in fitting if PurePosixPath(path).stem == "model"]
    for candidates in (preferred, fitting):
        # One folder only, or the one that the hub's tools use.
        chosen = [path for path in candidates if path.startswith("onnx/")] if len(candidates) > 1 else candidates
        if len(chosen) == 1:
            return chosen[0]
        if candidates:
            break
    if not fitting and precision in (None, "fp32") and _has_weights(files):
        return None
    if not graphs:
        raise UnsupportedModelError(
            f"{model} has no ONNX file; its weights can be exported, but with precision fp32"
            if _has_weights(files)
            else f"{model} has neither an ONNX file nor model.safetensors",
            model=model,
        )
    wanted = f"of precision {precision}" if precision else "of plain fp32"
    raise UnsupportedModelError(
        f"{model} has {'several ONNX files' if fitting else 'no ONNX file'} {wanted}, of these: {listing}; "
        "say which one with onnx_file= or precision=",
        model=model,
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

    def modules(self) -> list[dict[str, Any]] | None:
        """The list in modules.json, in its order; None where there is no such file."""
        value = self._load("modules.json")
        if value is None:
            return None
        if not isinstance(value, list) or not all(
            isinstance(module, dict) and isinstance(module.get("idx", 0), int) for module in value
        ):
            raise ModelLoadError(f"{self.directory / 'modules.json'} is no list of modules", model=self.name)
        return sorted(value, key=lambda module: int(module.get("idx", 0)))

    def _load(self, path: str) -> Any:
        file = self.directory / path
        if not file.is_file():
            return None
        try:
            return json.loads(file.read_bytes())
        except ValueError as error:
            raise ModelLoadError(f"cannot read {file}: {error}", model=self.name) from error

    def unsupported(self, reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self.name}: {reason}", model=self.name)


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
    overrides = repo.overrides
    return _Pipeline(
        encoder="image",
        pooling=overrides.pooling or "none",
        normalize=True if overrides.normalize is None else overrides.normalize,
    )


def _read_pipeline(repo: _Repo) -> _Pipeline:
    overrides = repo.overrides
    modules = repo.modules()
    if modules is None and repo.json("config.json").get("model_type") == "model2vec":
        return _model2vec(repo)
    if overrides.pooling is not None and overrides.normalize is not None:
        # The caller says it all; modules that we do not know do not matter then.
        return _declared(repo, overrides.pooling, overrides.normalize)
    if modules is None:
        missing = [
            f"{keyword}="
            for keyword, value in (("pooling", overrides.pooling), ("normalize", overrides.normalize))
            if value is None
        ]
        raise repo.unsupported(
            f"there is no modules.json that says how its hidden states become one vector: say {' and '.join(missing)}"
        )
    return _from_modules(repo, modules)


def _from_modules(repo: _Repo, modules: Sequence[dict[str, Any]]) -> _Pipeline:
    kinds = [_kind(str(module.get("type", ""))) for module in modules]
    if "Dropout" in kinds:  # does nothing outside training
        modules = [module for module, kind in zip(modules, kinds, strict=True) if kind != "Dropout"]
        kinds = [kind for kind in kinds if kind != "Dropout"]
    pipeline = _Pipeline()
    for kind, module in zip(kinds, modules, strict=True):
        folder = str(module.get("path", ""))
        match kind:
            case "Transformer":
                _add_transformer(repo, folder, pipeline)
            case "StaticEmbedding":
                _add_static(repo, folder, pipeline)
            case "Pooling":
                _add_pooling(repo, folder, pipeline)
            case "Dense":
                _add_projection(repo, folder, pipeline)
            case "Normalize":
                pipeline.normalize = True
            case unknown:
                raise repo.unsupported(
                    f"its module {unknown!r} is none that we compute; if the graph does that, say pooling= and "
                    "normalize= yourself"
                )
    ranks = [_MODULE_ORDER[kind] for kind in kinds]
    if ranks != sorted(ranks) or ranks[:1] != [0] or ("Transformer" in kinds) != ("Pooling" in kinds):
        raise repo.unsupported(f"its modules come in an order that we do not compute: {', '.join(kinds)}")
    if repo.overrides.pooling is not None:
        pipeline.pooling = repo.overrides.pooling
    if repo.overrides.normalize is not None:
        pipeline.normalize = repo.overrides.normalize
    return pipeline


def _kind(type_name: str) -> str:
    """The last part of a type of sentence-transformers; a repo's own types keep their full name."""
    return type_name.rsplit(".", 1)[-1] if type_name.startswith("sentence_transformers.") else type_name


_MODULE_ORDER = {"Transformer": 0, "StaticEmbedding": 0, "Pooling": 1, "Dense": 2, "Normalize": 3}
# transformers writes 1e30 where a tokenizer has no limit.
_NO_LIMIT = 10**15


def _add_transformer(repo: _Repo, folder: str, pipeline: _Pipeline) -> None:
    if folder:
        raise repo.unsupported(
            f"its transformer lies in the folder {folder!r}; save it with a current sentence-transformers, "
            "which puts it beside modules.json"
        )
    _read_limits(repo, pipeline)
    pipeline.dim = _hidden_size(repo)


def _add_static(repo: _Repo, folder: str, pipeline: _Pipeline) -> None:
    pipeline.encoder = "static"
    pipeline.pooling = "mean"
    prefix = f"{folder}/" if folder else ""
    pipeline.files = (f"{prefix}{WEIGHTS}", f"{prefix}tokenizer.json")
    pipeline.settings = {"folder": folder} if folder else {}
    for path in pipeline.files:
        if path not in repo.files:
            raise repo.unsupported(f"its static embedding lacks the file {path}")


def _add_pooling(repo: _Repo, folder: str, pipeline: _Pipeline) -> None:
    config = repo.json(f"{folder}/config.json")
    modes: list[Pooling] = [mode for flag, mode in _POOLING_FLAGS.items() if config.get(flag)]
    if named := config.get("pooling_mode"):
        names = [named] if isinstance(named, str) else list(named)
        if unknown := [mode for mode in names if mode not in _POOLING_NAMES]:
            raise repo.unsupported(f"its pooling mode {unknown[0]!r} is none that we compute: say pooling=")
        modes = [_POOLING_NAMES[mode] for mode in names]
    if len(modes) != 1 and repo.overrides.pooling is None:
        said = f"the pooling modes {', '.join(modes)} at once" if modes else "no pooling mode that we know"
        raise repo.unsupported(f"{folder}/config.json has {said}: say pooling=")
    if modes:
        pipeline.pooling = modes[0]
    pipeline.dim = _integer(config, "word_embedding_dimension", "embedding_dimension") or pipeline.dim
    if config.get("include_prompt") is False:
        pipeline.settings["include_prompt"] = False


def _add_projection(repo: _Repo, folder: str, pipeline: _Pipeline) -> None:
    weights = f"{folder}/{WEIGHTS}"
    if weights not in repo.files:
        raise repo.unsupported(
            f"its linear layer lacks {weights}: files of pickled Python (pytorch_model.bin) are not read"
        )
    config = repo.json(f"{folder}/config.json")
    if config.get("use_residual") or config.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        raise repo.unsupported(
            f"its linear layer in {folder} is of a kind that we do not compute (residual, or per token)"
        )
    pipeline.dim = _integer(config, "out_features") or pipeline.dim
    pipeline.files += (weights, f"{folder}/config.json")
    earlier = pipeline.settings.get("projections", ())
    assert isinstance(earlier, tuple)
    pipeline.settings["projections"] = (*earlier, folder)


def _model2vec(repo: _Repo) -> _Pipeline:
    """A static model as model2vec saves it, without sentence-transformers' files."""
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
    return _Pipeline(encoder="cross_encoder", max_length=_max_length(repo))


def _splade(repo: _Repo) -> _Pipeline:
    """A masked language model whose logits are the weights of words, as sentence-transformers' sparse encoders are."""
    modules = repo.modules()
    if modules is None:
        _check_task(repo, "ForMaskedLM")
    else:
        kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
        if kinds != ["MLMTransformer", "SpladePooling"]:
            raise repo.unsupported(f"its modules are {', '.join(kinds)}; SPLADE's are MLMTransformer and SpladePooling")
        pooling = repo.json(f"{modules[1].get('path', '')}/config.json")
        how = pooling.get("pooling_strategy", "max"), pooling.get("activation_function", "relu")
        if how != ("max", "relu"):
            raise repo.unsupported(f"its pooling is {how[0]} of {how[1]}; only max of relu is computed")
    return _Pipeline(encoder="splade", max_length=_max_length(repo))


def _check_task(repo: _Repo, task: str) -> None:
    architectures = repo.json("config.json").get("architectures") or []
    if not any(str(name).endswith(task) for name in architectures) and architectures:
        raise repo.unsupported(f"config.json calls it {', '.join(map(str, architectures))}, not a model {task}")


def _declared(repo: _Repo, pooling: Pooling, normalize: bool) -> _Pipeline:
    pipeline = _Pipeline(pooling=pooling, normalize=normalize)
    _read_limits(repo, pipeline)
    if pooling != "none":
        pipeline.dim = _hidden_size(repo)
    return pipeline


def _read_limits(repo: _Repo, pipeline: _Pipeline) -> None:
    pipeline.max_length = _max_length(repo)
    if repo.json("sentence_bert_config.json").get("do_lower_case"):
        pipeline.settings["lower_case"] = True


def _max_length(repo: _Repo) -> int | None:
    """The limit that the repo declares beside its tokenizer; None leaves it to the tokenizer's own configuration."""
    declared = _integer(repo.json("sentence_bert_config.json"), "max_seq_length")
    if declared is not None:
        return declared
    # A tokenizer may allow more than the model has positions for; sentence-transformers takes the smaller one.
    positions = _integer(repo.json("config.json"), "max_position_embeddings")
    tokens = _integer(repo.json("tokenizer_config.json"), "model_max_length")
    return positions if positions is not None and tokens is not None and positions < tokens < _NO_LIMIT else None


def _read_prompts(repo: _Repo) -> tuple[dict[str, str], str | None]:
    config = repo.json("config_sentence_transformers.json")
    declared = config.get("prompts")
    if not isinstance(declared, dict):
        declared = {}
    prompts = {str(name): text for name, text in declared.items() if isinstance(text, str) and text}
    # The names that sentence-transformers looks for when it encodes documents.
    for synonym in ("document", "corpus"):
        if synonym in prompts:
            prompts.setdefault("passage", prompts[synonym])
    default = config.get("default_prompt_name")
    return prompts, default if isinstance(default, str) and default in prompts else None


def _graph_files(repo: _Repo) -> tuple[str | None, tuple[str, ...]]:
    """The graph, and the files beside it that hold its weights; for an export, the weights themselves."""
    overrides = repo.overrides
    graph = choose_onnx_file(repo.files, onnx_file=overrides.onnx_file, precision=overrides.precision, model=repo.name)
    if graph is not None:
        external = re.compile(re.escape(graph) + r"([_.]data(_\d+)?)")
        stem = re.compile(re.escape(graph.removesuffix(".onnx")) + r"\.(data|bin)")
        return graph, tuple(sorted(path for path in repo.files if external.fullmatch(path) or stem.fullmatch(path)))
    if WEIGHTS in repo.files:
        return None, (WEIGHTS,)
    shards = sorted(path for path in repo.files if re.fullmatch(r"model-\d+-of-\d+\.safetensors", path))
    return None, (WEIGHTS_INDEX, *shards)


def precision_of(path: str) -> str | None:
    """The precision that a graph's name tells; None where it is none that we know."""
    stem = PurePosixPath(path).stem
    for precision, suffixes in _PRECISIONS.items():
        if precision != "fp32" and any(re.fullmatch(rf"\w+?{suffix}", stem) for suffix in suffixes):
            return precision
    # Optimised graphs (`model_O2.onnx`) hold fp32 weights; the last step, O4, turns them into fp16.
    return "fp16" if stem.endswith("_O4") else "fp32"


def _has_weights(files: Collection[str]) -> bool:
    return WEIGHTS in files or WEIGHTS_INDEX in files


def _hidden_size(repo: _Repo) -> int | None:
    return _integer(repo.json("config.json"), "hidden_size", "dim", "d_model")


def _integer(config: dict[str, Any], *keys: str) -> int | None:
    return next((config[key] for key in keys if type(config.get(key)) is int), None)


def _listing(directory: Path) -> list[str]:
    if not directory.is_dir():
        raise ModelLoadError(f"there is no directory {directory}", model=str(directory))
    return [
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(directory).parts)
    ]
