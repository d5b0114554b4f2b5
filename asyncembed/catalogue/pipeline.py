"""A spec read from a repo's own files, as sentence-transformers writes them.

What a repo says is taken from it; what it does not say, the caller must (`Overrides`): nothing is guessed. It
goes in two steps, so that a repo on the hub need not be fetched whole:

1. `configuration_files(files)` names the small files that decide, out of the repo's listing.
2. `spec_from_directory(directory, files=...)` reads those, and its `model_file` and `additional_files` name
the rest.
"""

import re
import string
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from asyncembed.catalogue.limits import repo_limit, tokenizer_limit
from asyncembed.catalogue.onnx_choice import choose_onnx_file
from asyncembed.catalogue.spec import Family, LocalOrigin, ModelSpec, Origin, Pooling
from asyncembed.errors import ModelLoadError, OptionError, UnsupportedModelError
from asyncembed.repo_files import (
    WEIGHTS,
    WEIGHTS_INDEX,
    inside,
    is_safe_path,
    list_directory,
    read_json,
    read_object,
    shown,
)

_IMAGE_CONFIGURATION = ("preprocessor_config.json", "processor_config.json")
"""Either says how an image is prepared: transformers 5 writes it into the latter, with the rest of a processor's."""

CONFIGURATION = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
)
"""Small files that a catalogued model may need: those that fastembed downloads, so its models count as complete."""

_ROOT_CONFIGURATION = frozenset(
    {
        *CONFIGURATION,
        *_IMAGE_CONFIGURATION,
        "artifact.metadata",
        "chat_template.jinja",
        "config_sentence_transformers.json",
        "modules.json",
        "onnx_config.json",
        "router_config.json",
        "sentence_bert_config.json",
    }
)
"""Small files that a repo outside the catalogue says with what it is."""

IDF_FILE = "idf.json"
"""The weights of a query's tokens, as repos of inference-free SPLADE have them."""

_POOLINGS: Mapping[str, Pooling] = {
    "cls": "cls",
    "cls_token": "cls",
    "mean": "mean",
    "mean_tokens": "mean",
    "max": "max",
    "max_tokens": "max",
    "mean_sqrt_len": "mean_sqrt_len",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "weightedmean_tokens": "weighted_mean",
    "lasttoken": "last_token",
}
"""By the name as `pooling_mode`, and the name of a flag after `pooling_mode_`."""


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
        template: What a reranker that is a language model reads of a pair.
    """

    pooling: Pooling | None = None
    normalize: bool | None = None
    max_length: int | None = None
    onnx_file: str | None = None
    precision: str | None = None
    graph_output: int | str | None = None
    template: str | None = None

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
    origin: Origin | None = None,
    overrides: Overrides = Overrides(),
) -> ModelSpec:
    """Read what the repo in `directory` says about itself.

    Args:
        directory: Where its configuration files lie; the model itself need not be there yet.
        name: Name of the model; None: the directory.
        family: Which public class it is for.
        files: The repo's full listing, as paths with "/"; None: the files below `directory`.
        origin: Where the rest of the files comes from; None: `directory`.
        overrides: What the caller says.

    Returns:
        A spec whose `model_file` and `additional_files` are all that must be fetched besides the
        configuration, and besides what these files name themselves. `model_file` None means that there is no graph:
        but for the encoder "static", which has none, one must be exported from the weights first.

    Raises:
        UnsupportedModelError: The files do not say something, or ask for something that we do not compute;
            the message names the keyword that decides it.
        ModelLoadError: A file is broken.
    """
    listing = list_directory(directory) if files is None else files
    repo = _Repo(directory, name or str(directory), frozenset(filter(is_safe_path, listing)), overrides)
    if family not in _FAMILIES:
        raise repo.unsupported(f"a model of the family {family} must be in the catalogue or be registered")
    prompts, default_prompt = _prompts(repo)
    spec = ModelSpec(
        name=repo.name,
        family=family,
        encoder="dense",
        sources=(origin or LocalOrigin(directory),),
        graph_output=0 if overrides.graph_output is None else overrides.graph_output,
        prompts=prompts,
        default_prompt=default_prompt,
        is_catalogued=False,
    )
    spec = _with_weights(repo, _FAMILIES[family](repo, spec))
    return spec if overrides.max_length is None else replace(spec, max_length=overrides.max_length)


@dataclass(frozen=True, slots=True)
class _Module:
    """One of sentence-transformers' modules: its type, and what its files' paths begin with."""

    type_name: str
    prefix: str = ""

    @property
    def kind(self) -> str:
        """The last part of a type of sentence-transformers; a repo's own types keep their full name."""
        name = self.type_name
        return name.rsplit(".", 1)[-1] if name.startswith("sentence_transformers.") else name


@dataclass(frozen=True, slots=True)
class _Repo:
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

    def modules(self) -> list[_Module] | None:
        """The modules in modules.json, in its order; None where there is no such file."""
        value = read_json(self.directory / "modules.json")
        if value is None:
            return None
        if not isinstance(value, list) or not all(map(_is_module, value)):
            raise ModelLoadError(f"{self.directory / 'modules.json'} is no list of modules", model=self.name)
        return [self._module(record) for record in sorted(value, key=lambda record: int(record.get("idx", 0)))]

    def routes(self, router: _Module) -> dict[str, list[_Module]]:
        """The modules of a router for queries and for documents."""
        path = f"{router.prefix}router_config.json"
        config = self.json(path)
        types, structure, parameters = (config.get(key) for key in ("types", "structure", "parameters"))
        if isinstance(parameters, dict) and parameters.get("route_mappings"):
            raise self.unsupported(f"{path} has mappings of routes, which we do not compute")
        found: dict[str, list[_Module]] = {}
        for route in ("query", "document"):
            folders = structure.get(route) if isinstance(structure, dict) else None
            if not isinstance(types, dict) or not isinstance(folders, list) or not folders:
                raise self.unsupported(f"{path} names no modules for the route {route}")
            if not all(isinstance(folder, str) and isinstance(types.get(folder), str) for folder in folders):
                raise ModelLoadError(f"{self.directory / path} names modules without a type", model=self.name)
            records = [{"type": types[folder], "path": f"{router.prefix}{folder}"} for folder in folders]
            found[route] = list(map(self._module, records))
        return found

    def _module(self, record: dict[str, Any]) -> _Module:
        folder = str(record.get("path", "")).rstrip("/").removeprefix("./")
        if folder in ("", "."):
            return _Module(record.get("type", ""))
        inside(self.directory, folder)
        return _Module(record.get("type", ""), f"{folder}/")

    def unsupported(self, reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self.name}: {reason}", model=self.name)


def _is_module(record: object) -> bool:
    """Whether a record has what is read of it, in the right types: its type, its folder, its place in the order."""
    kinds = {"type": str, "path": str, "idx": int}
    return isinstance(record, dict) and all(isinstance(record.get(key, kind()), kind) for key, kind in kinds.items())


# A family each: from what no family knows better to what one does


def _text(repo: _Repo, spec: ModelSpec) -> ModelSpec:
    modules = repo.modules()
    if modules is None and repo.json("config.json").get("model_type") == "model2vec":
        return _override(repo, _model2vec(repo, spec))
    if modules is None and not repo.is_declared:
        said = {"pooling=": repo.overrides.pooling, "normalize=": repo.overrides.normalize}
        missing = [keyword for keyword, value in said.items() if value is None]
        raise repo.unsupported(
            f"there is no modules.json that says how its hidden states become one vector: say {' and '.join(missing)} "
            '(pooling="none" where the graph has an output sentence_embedding)'
        )
    return _override(repo, _with_tasks(repo, _from_modules(repo, modules or [], spec)))


def _with_tasks(repo: _Repo, spec: ModelSpec) -> ModelSpec:
    """The spec of a model with an adapter for each of several tasks, as jina-embeddings-v3 lists them."""
    names = repo.json("config.json").get("lora_adaptations")
    if spec.encoder != "dense" or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return spec
    tasks = {name: number for number, name in enumerate(names[:_MOST_TASKS])}
    query, passage = tasks.get("retrieval.query"), tasks.get("retrieval.passage")
    settings = {"query_task": query, "passage_task": passage, "default_task": passage}
    return _with_settings(spec, task_input="task_id", tasks=tasks, **settings) if tasks else spec


_MOST_TASKS = 100


def _image(repo: _Repo, spec: ModelSpec) -> ModelSpec:
    """Image repos say how an image is prepared, and nothing of what becomes of the graph's output."""
    if not any(name in repo.files for name in _IMAGE_CONFIGURATION):
        raise repo.unsupported(f"it has no {_IMAGE_CONFIGURATION[0]} that says how an image is prepared")
    overrides = repo.overrides
    spec = replace(
        spec,
        encoder="image",
        pooling=overrides.pooling or "none",
        normalize=True if overrides.normalize is None else overrides.normalize,
    )
    return _preferring(repo, "image_embeds", spec) if spec.pooling == "none" else spec


def _cross_encoder(repo: _Repo, spec: ModelSpec) -> ModelSpec:
    """A model for sequence classification whose one label is the score, or a language model whose answer is."""
    modules = repo.modules() or []
    spec = _with_settings(replace(spec, max_length=_max_length(repo)), **_own_activation(repo))
    answers = [module.prefix for module in modules if module.kind == "LogitScore"]
    if answers or _is_called(repo, "ForCausalLM") or repo.overrides.template is not None:
        kinds = [module.kind for module in modules]
        if kinds not in ([], ["Transformer"], ["Transformer", "LogitScore"]):
            raise repo.unsupported(
                f"its modules are {', '.join(map(shown, kinds[:8]))}; those of a language model that is a reranker are "
                "Transformer and LogitScore"
            )
        return _causal_reranker(repo, spec, answers[0] if answers else None)
    config = repo.json("config.json")
    _check_task(repo, "ForSequenceClassification")
    id2label = config.get("id2label")
    labels = _integer(config, "num_labels") or (len(id2label) if isinstance(id2label, dict) else 1)
    if labels != 1:
        raise repo.unsupported(f"it is a classifier of {labels} labels; a reranker has one, the score")
    forms = repo.json("sentence_bert_config.json").get("modality_config")
    if modules and isinstance(forms, dict) and "message" in forms:
        # Its chat template says what it reads of a pair, and no answer but its score is taken.
        return _with_settings(_instructed(replace(spec, encoder="causal_reranker")), yes=None, no=None)
    return _preferring(repo, "logits", replace(spec, encoder="cross_encoder"))


def _own_activation(repo: _Repo) -> dict[str, object]:
    """What the repo says is done to its scores, in one of the three places where versions have written it."""
    config = repo.json("config.json")
    nested = config.get("sentence_transformers")
    said = (
        repo.json("config_sentence_transformers.json").get("activation_fn")
        or (nested.get("activation_fn") if isinstance(nested, dict) else None)
        or config.get("sbert_ce_default_activation_function")
    )
    if not isinstance(said, str):
        return {}
    known = {"Identity": "none", "Sigmoid": "sigmoid"}
    name = said.rsplit(".", 1)[-1]
    return {"own_activation": known[name] if said.startswith("torch.nn.") and name in known else said}


_ANSWERS: Mapping[str | None, tuple[str, str]] = {
    None: ("yes", "no"),  # as sentence-transformers
    "qwen3-reranker": ("yes", "no"),
    "mxbai-rerank-v2": ("1", "0"),
}
"""What a language model answers, by its template, where no module says it."""


def _causal_reranker(repo: _Repo, spec: ModelSpec, module: str | None) -> ModelSpec:
    """A language model that answers; `module` is where the files of its module LogitScore lie, if it has one."""
    template = repo.overrides.template
    yes: object
    no: object
    yes, no = _ANSWERS.get(template, _ANSWERS[None])
    if module is not None:
        said = repo.json(f"{module}config.json")
        yes, no = said.get("true_token_id"), said.get("false_token_id")
        if not _is_id(yes) or not (no is None or _is_id(no)):
            raise repo.unsupported(f"{module}config.json has no usable true_token_id and false_token_id")
    spec = _instructed(replace(spec, encoder="causal_reranker"))
    spec = _with_settings(spec, yes=yes, no=no)
    if template is not None:
        spec = _with_settings(spec, template=template)
    return _preferring(repo, "logits", spec)


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _instructed(spec: ModelSpec) -> ModelSpec:
    """The spec of a model whose default prompt is its instruction."""
    if spec.default_prompt is None or not spec.prompts[spec.default_prompt]:
        return spec
    return _with_settings(spec, instruction=spec.prompts[spec.default_prompt])


HEADS: Mapping[str, tuple[str, ...]] = {
    "sparse_head": ("sparse_linear.pt", "sparse_linear.safetensors"),
    "late_interaction_head": ("colbert_linear.pt", "colbert_linear.safetensors"),
}
"""The linear layers of models like bge-m3, by the settings of a hybrid model that name them."""


def _heads(repo: _Repo) -> dict[str, str]:
    found = {setting: next((path for path in names if path in repo.files), None) for setting, names in HEADS.items()}
    return {setting: path for setting, path in found.items() if path is not None}


def _hybrid(repo: _Repo, spec: ModelSpec) -> ModelSpec:
    """A text model with layers for more results beside it, or a graph that has several; which ones its outputs tell."""
    heads = _heads(repo)
    spec = replace(spec, encoder="hybrid", settings=heads, additional_files=tuple(heads.values()))
    modules = repo.modules()
    if modules is not None:
        spec = _from_modules(repo, modules, spec)
        if spec.encoder != "hybrid":
            raise repo.unsupported("it is a static model, which has one vector for a text: TextEmbedding is its class")
        if unread := spec.settings.keys() - {*HEADS}:
            raise repo.unsupported(f"a hybrid model with {', '.join(sorted(unread))} is none that we compute")
    elif heads:
        spec = replace(spec, pooling="cls", normalize=True, max_length=_max_length(repo), dim=_hidden_size(repo))
    else:
        spec = replace(spec, normalize=True, max_length=_max_length(repo))
    if not heads and not any(path.endswith(".onnx") for path in repo.files):
        raise repo.unsupported(
            f"it has neither {' nor '.join(names[0] for names in HEADS.values())}, and no graph that could have more "
            "than dense vectors"
        )
    return spec


def _sparse(repo: _Repo, spec: ModelSpec) -> ModelSpec:
    """SPLADE, as sentence-transformers has it: alike for queries and documents, or with a table for queries."""
    if "sparse_head" in _heads(repo):
        return _with_settings(_hybrid(repo, spec), only="sparse")
    modules = repo.modules()
    if modules is None:
        _check_task(repo, "ForMaskedLM")
        if IDF_FILE in repo.files:
            raise repo.unsupported(
                f"it has {IDF_FILE}, but no modules.json that says what becomes of a document's logits: "
                'SparseTextEmbedding.add_custom_model(..., kind="inference_free_splade") takes it'
            )
        return _splade(repo, [_Module("MLMTransformer"), _Module("SpladePooling")], spec)
    if [module.kind for module in modules] == ["Router"]:
        return _routed_splade(repo, modules[0], spec)
    return _splade(repo, modules, spec)


def _splade(repo: _Repo, modules: Sequence[_Module], spec: ModelSpec) -> ModelSpec:
    """A masked language model whose logits are the weights of words."""
    kinds = [module.kind for module in modules]
    if kinds not in (["MLMTransformer", "SpladePooling"], ["Transformer", "SpladePooling"]):
        raise repo.unsupported(
            f"its modules are {', '.join(map(shown, kinds[:8]))}; SPLADE's are MLMTransformer and SpladePooling, or "
            "Transformer (of the task fill-mask) and SpladePooling"
        )
    model, pooling = modules
    sentence = repo.json(f"{model.prefix}sentence_bert_config.json")
    if model.kind == "Transformer" and sentence.get("transformer_task") != "fill-mask":
        raise repo.unsupported("its Transformer gives hidden states, not logits of words, which SpladePooling needs")
    _check_modality(repo, sentence)
    settings = _splade_pooling(repo, f"{pooling.prefix}config.json") if pooling.prefix else {}
    if model.prefix:
        settings["folder"] = model.prefix.rstrip("/")
    if sentence.get("do_lower_case"):
        settings["lower_case"] = True
    if most := _integer(repo.json("config_sentence_transformers.json"), "max_active_dims"):
        settings["max_active_dims"] = most
    spec = replace(spec, encoder="splade", max_length=_max_length(repo, model.prefix))
    return _preferring(repo, "logits", _with_settings(spec, **settings))


def _splade_pooling(repo: _Repo, path: str) -> dict[str, object]:
    """The settings that say how logits become weights."""
    config = repo.json(path)
    strategy, activation = config.get("pooling_strategy", "max"), config.get("activation_function", "relu")
    if strategy not in ("max", "sum") or activation not in ("relu", "log1p_relu"):
        raise repo.unsupported(
            f"its pooling is {shown(strategy)} of {shown(activation)}; only max and sum of relu and log1p_relu are "
            "computed"
        )
    return {"word_pooling": strategy, "activation": activation}


def _routed_splade(repo: _Repo, router: _Module, spec: ModelSpec) -> ModelSpec:
    """Documents by a graph, queries by a table."""
    routes = repo.routes(router)
    spec = _splade(repo, routes["document"], spec)
    query = routes["query"]
    if query == routes["document"]:
        return spec
    if [module.kind for module in query] != ["SparseStaticEmbedding"]:
        kinds = ", ".join(shown(module.kind) for module in query[:8])
        raise repo.unsupported(f"its queries go through {kinds}; only a SparseStaticEmbedding is computed for queries")
    folder = query[0].prefix
    named = repo.json(f"{folder}config.json").get("path")
    if isinstance(named, str) and named.endswith(".json"):
        # Wherever the file lay for who saved the repo.
        name = PurePosixPath(named).name
        table = next((path for path in (f"{folder}{name}", name) if path in repo.files), None)
        settings = {"idf_file": table}
    else:
        name = f"{folder}{WEIGHTS}"
        table = name if name in repo.files else None
        settings = {"query_weights": table}
    if table is None:
        raise repo.unsupported(f"the weights of its queries' tokens, {shown(name)}, are missing")
    spec = replace(spec, encoder="inference_free_splade", additional_files=(table,))
    return _with_settings(spec, query_folder=folder.rstrip("/"), drops_special_tokens=False, **settings)


def _late_interaction(repo: _Repo, spec: ModelSpec) -> ModelSpec:
    """A vector per token: by modules, as ColBERT's authors have it, or by a file beside a finished graph."""
    modules = repo.modules()
    spec = replace(spec, encoder="colbert", normalize=True)
    said = repo.json("config_sentence_transformers.json")
    is_pylate = said.get("model_type") == "ColBERT" or "query_prefix" in said
    if modules is not None and said.get("model_type") == "MultiVectorEncoder":
        return _multi_vector_encoder(repo, modules, spec)
    if modules is not None and (is_pylate or any(module.type_name.startswith("pylate.") for module in modules)):
        return _pylate(repo, [module for module in modules if module.kind != "Normalize"], said, spec)
    if "HF_ColBERT" in _architectures(repo):
        metadata = repo.json("artifact.metadata")
        found: dict[str, Any] = {
            "query_prefix": metadata.get("query_token_id") or "[unused0]",
            "document_prefix": metadata.get("doc_token_id") or "[unused1]",
            "query_length": metadata.get("query_maxlen"),
            "document_length": metadata.get("doc_maxlen"),
            "attend_to_expansion_tokens": metadata.get("attend_to_mask_tokens"),
            "skiplist_words": None if metadata.get("mask_punctuation", True) else [],
        }
        return _with_settings(_colbert(repo, found, spec), projection_in_weights=True)
    if finished := repo.json("onnx_config.json"):
        spec = _colbert(repo, finished, replace(spec, dim=_integer(finished, "embedding_dim", "embedding_dimension")))
        return _with_settings(spec, lower_case=True) if finished.get("do_lower_case") else spec
    if "late_interaction_head" in _heads(repo):
        # Its vectors may be of another length than the hidden states.
        return replace(_with_settings(_hybrid(repo, replace(spec, normalize=False)), only="late_interaction"), dim=None)
    raise repo.unsupported(
        "nothing says that it has a vector for each token: neither modules of PyLate or of sentence-transformers' "
        "MultiVectorEncoder, nor the architecture HF_ColBERT in config.json, nor onnx_config.json; "
        "LateInteractionTextEmbedding.add_custom_model says it instead"
    )


def _pylate(repo: _Repo, modules: Sequence[_Module], said: dict[str, Any], spec: ModelSpec) -> ModelSpec:
    """A model of PyLate: a transformer and linear layers."""
    spec = _token_layers(repo, modules, _ORDER_OF_PYLATE, spec)
    if spec.default_prompt is not None:  # which it puts before queries and documents alike
        default = spec.prompts[spec.default_prompt]
        spec = replace(spec, prompts={role: spec.prompts.get(role) or default for role in ("query", "document")})
    return _colbert(repo, said, spec)


def _colbert(repo: _Repo, said: dict[str, Any], spec: ModelSpec) -> ModelSpec:
    """What PyLate's keys say, with its defaults."""
    markers = {role: _word(repo, said, f"{role}_prefix", f"[{role[0].upper()}] ") for role in ("query", "document")}
    lengths = {role: _integer(said, f"{role}_length") or default for role, default in _PYLATE_LENGTHS.items()}
    words = said.get("skiplist_words")
    expands = said.get("do_query_expansion") is not False
    settings = {
        "query_marker": markers["query"],
        "document_marker": markers["document"],
        "mask_token": None,
        "query_pad_length": lengths["query"] - bool(markers["query"]) if expands else None,
        "query_mask_attended": said.get("attend_to_expansion_tokens") is True,
        "query_max_length": lengths["query"],
        "reserved_markers": int(bool(markers["document"])),
        "skip_words": tuple(string.punctuation) if words is None else _words(repo, words),
        "skip_unknown": True,
        "normalize_queries": True,
    }
    return _with_settings(replace(spec, max_length=lengths["document"]), **settings)


def _multi_vector_encoder(repo: _Repo, modules: Sequence[_Module], spec: ModelSpec) -> ModelSpec:
    """A model of sentence-transformers' own class."""
    by_kind = {module.kind: module.prefix for module in modules}
    spec = _token_layers(repo, modules, _ORDER_OF_MULTI_VECTORS, replace(spec, normalize="Normalize" in by_kind))
    sentence = repo.json("sentence_bert_config.json")
    mask = repo.json(f"{by_kind['MultiVectorMask']}config.json") if "MultiVectorMask" in by_kind else {}
    if mask.get("keep_only_token_ids"):
        raise repo.unsupported("it keeps the vectors of some tokens of a document only, which we do not compute")
    tasks = mask.get("skiplist_tasks") or ["document"]
    own = _max_length(repo)
    settings: dict[str, object] = {
        "mask_token": None,
        # Neither bounds the other.
        "query_max_length": _integer(sentence, "query_length")
        or own
        or tokenizer_limit(repo.json("tokenizer_config.json")),
        "skip_words": _words(repo, mask.get("skiplist_words") or []) if "document" in tasks else (),
        "skips_in_queries": "query" in tasks,
        "normalize_queries": spec.normalize,
    }
    spec = replace(spec, max_length=_integer(sentence, "document_length") or own)
    expansion = sentence.get("query_expansion")
    if isinstance(expansion, dict):
        settings |= _expansion(repo, expansion, settings)
        if "MultiVectorMask" not in by_kind:
            raise repo.unsupported("it lengthens queries, but has no MultiVectorMask that counts what is put in")
    if "HierarchicalTokenPooling" in by_kind:
        settings |= _token_pooling(repo, f"{by_kind['HierarchicalTokenPooling']}config.json")
    return _with_settings(spec, **settings)


def _expansion(repo: _Repo, expansion: dict[str, Any], settings: Mapping[str, object]) -> dict[str, object]:
    """How queries are lengthened."""
    strategy, length, longest = expansion.get("strategy"), _integer(expansion, "length"), settings["query_max_length"]
    if strategy not in ("fixed", "min") or length is None:
        raise repo.unsupported(
            f"its query_expansion is {shown(strategy)}, to {shown(expansion.get('length'))} tokens; only fixed and "
            "min, with a length, are computed"
        )
    return {
        "query_pad_length": length,
        "query_mask_attended": expansion.get("attend") is True,
        "mask_token": expansion["token"] if isinstance(expansion.get("token"), str) else None,
        "query_max_length": length if strategy == "fixed" else longest and max(length, int(str(longest))),
    }


def _token_pooling(repo: _Repo, path: str) -> dict[str, object]:
    config = repo.json(path)
    tasks, factor, protected = (config.get(key) for key in ("tasks", "pool_factor", "num_protected_tokens"))
    if tasks not in (None, "document", ["document"]):
        raise repo.unsupported(f"{path} is not for documents alone, which is all that we compute")
    if not isinstance(factor, int | float) or not factor >= 1 or not isinstance(protected, int) or protected < 0:
        raise repo.unsupported(f"{path} has no usable pool_factor or num_protected_tokens")
    is_normalized = config.get("normalize_embeddings") is True
    return {"pool_factor": factor, "protected_tokens": protected, "normalize_pooled": is_normalized}


def _token_layers(repo: _Repo, modules: Sequence[_Module], order: re.Pattern[str], spec: ModelSpec) -> ModelSpec:
    """The spec with the transformer and the linear layers among `modules`."""
    kinds = ["Dense" if module.type_name in _TOKEN_LAYERS else module.kind for module in modules]
    if not order.fullmatch(" ".join(kinds)):
        raise repo.unsupported(f"its modules {', '.join(map(shown, kinds[:8]))} are in an order that we do not compute")
    spec = _transformer(repo, modules[0].prefix, spec)
    for module in (module for module, kind in zip(modules, kinds, strict=True) if kind == "Dense"):
        # PyLate takes a layer for one of tokens, whatever it says.
        spec = _layer(repo, module.prefix, spec, of="token_embeddings" if order is _ORDER_OF_MULTI_VECTORS else None)
    return spec


def _word(repo: _Repo, said: dict[str, Any], key: str, default: str) -> str:
    value = said.get(key)
    if value is not None and not isinstance(value, str):
        raise repo.unsupported(f"its {key} is {shown(value)}, which is no token")
    return default if value is None else value


def _words(repo: _Repo, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise repo.unsupported(f"its skiplist_words are {shown(value)}, which is no list of tokens")
    return tuple(value)


_PYLATE_LENGTHS = {"query": 32, "document": 180}
_TOKEN_LAYERS = ("pylate.models.Dense.Dense", "pylate.models.Dense")
_ORDER_OF_PYLATE = re.compile("Transformer( Dense)*")
_ORDER_OF_MULTI_VECTORS = re.compile(
    "Transformer( Dense)*( MultiVectorMask)?( Normalize)?( MultiVectorMask)?( HierarchicalTokenPooling)?"
)


_FAMILIES: Mapping[str, Callable[[_Repo, ModelSpec], ModelSpec]] = {
    "text": _text,
    "late_interaction": _late_interaction,
    "cross_encoder": _cross_encoder,
    "sparse": _sparse,
    "hybrid": _hybrid,
    "image": _image,
}
"""The families that a repo can be of by its own word."""


# The modules of a text model


def _from_modules(repo: _Repo, modules: Sequence[_Module], spec: ModelSpec) -> ModelSpec:
    computed = _computed(repo, modules)
    kinds = " ".join(module.kind for module in computed)
    if not (_DECLARED_ORDER if repo.is_declared else _ORDER).fullmatch(kinds):
        raise repo.unsupported(f"its modules come in an order that we do not compute: {kinds}")
    for module in computed:
        spec = _READERS[module.kind](repo, module.prefix, spec)
    return spec


_CLASSES: Mapping[str, str] = {
    "ColBERT": "LateInteractionTextEmbedding",
    "CrossEncoder": "TextCrossEncoder",
    "MultiVectorEncoder": "LateInteractionTextEmbedding",
    "SparseEncoder": "SparseTextEmbedding",
}
"""By the `model_type` of sentence-transformers and PyLate: what opens a model that has no one vector for a text."""


def _computed(repo: _Repo, modules: Sequence[_Module]) -> list[_Module]:
    """Those modules that are read. If the caller says it all, modules that we do not know are the graph's."""
    unknown = [module.kind for module in modules if module.kind not in (*_READERS, "Dropout")]
    if unknown and not repo.is_declared:
        kind = repo.json("config_sentence_transformers.json").get("model_type")
        if isinstance(kind, str) and kind in _CLASSES:
            raise repo.unsupported(f"it is a {kind}: open it with {_CLASSES[kind]}")
        raise repo.unsupported(
            f"its module {shown(unknown[0])} is none that we compute; if the graph does that, say pooling= and "
            "normalize= yourself"
        )
    known = [module for module in modules if module.kind in _READERS]
    if repo.is_declared and not any(module.kind in ("Transformer", "StaticEmbedding") for module in known):
        known.insert(0, _Module("Transformer"))  # under a name of the repo's own
    return known


def _transformer(repo: _Repo, prefix: str, spec: ModelSpec) -> ModelSpec:
    if prefix and not repo.is_declared:
        raise repo.unsupported(
            f"its transformer lies in the folder {shown(prefix)}; save it with a current sentence-transformers, "
            "which puts it beside modules.json"
        )
    sentence = repo.json("sentence_bert_config.json")
    task = sentence.get("transformer_task", "feature-extraction")
    if task != "feature-extraction" and not repo.is_declared:
        raise repo.unsupported(f"its Transformer is for the task {shown(task)}, not for feature-extraction")
    _check_modality(repo, sentence)
    spec = replace(spec, max_length=_max_length(repo), dim=_hidden_size(repo))
    lowers = sentence.get("do_lower_case")
    return _with_settings(spec, lower_case=True) if lowers else spec


def _static(repo: _Repo, prefix: str, spec: ModelSpec) -> ModelSpec:
    files = (f"{prefix}{WEIGHTS}", f"{prefix}tokenizer.json")
    for path in files:
        if path not in repo.files:
            raise repo.unsupported(f"its static embedding lacks the file {path}")
    spec = replace(spec, encoder="static", pooling="mean", additional_files=files)
    return _with_settings(spec, folder=prefix.rstrip("/")) if prefix else spec


def _model2vec(repo: _Repo, spec: ModelSpec) -> ModelSpec:
    """A static model as model2vec saves it, without sentence-transformers' files."""
    config = repo.json("config.json")
    spec = replace(
        _static(repo, "", spec),
        normalize=bool(config.get("normalize", True)),
        max_length=512,  # model2vec's own default
        dim=_integer(config, "hidden_dim"),
    )
    return _with_settings(spec, drop_unknown=True)


def _pooling(repo: _Repo, prefix: str, spec: ModelSpec) -> ModelSpec:
    path = f"{prefix}config.json"
    config = repo.json(path)
    try:
        pooling = _pooling_of(repo, path, config)
    except UnsupportedModelError:
        if repo.overrides.pooling is None:
            raise
        pooling = spec.pooling
    dim = _integer(config, "word_embedding_dimension", "embedding_dimension") or spec.dim
    spec = replace(spec, pooling=pooling, dim=dim)
    return _with_settings(spec, include_prompt=False) if config.get("include_prompt") is False else spec


def _pooling_of(repo: _Repo, path: str, config: dict[str, Any]) -> Pooling:
    modes = [mode for name, mode in _POOLINGS.items() if config.get(f"pooling_mode_{name}")]
    if named := config.get("pooling_mode"):
        names = named if isinstance(named, list) else [named]
        unknown = [mode for mode in names if not isinstance(mode, str) or mode not in _POOLINGS]
        if unknown:
            raise repo.unsupported(f"its pooling mode {shown(unknown[0])} is none that we compute: say pooling=")
        modes = [_POOLINGS[mode] for mode in names]
    if len(modes) != 1:
        said = f"the pooling modes {', '.join(modes[:8])} at once" if modes else "no pooling mode that we know"
        raise repo.unsupported(f"{path} has {said}: say pooling=")
    return modes[0]


def _projection(repo: _Repo, prefix: str, spec: ModelSpec) -> ModelSpec:
    if repo.overrides.pooling == "none":  # the graph's vector is what linear layers have made already
        return spec
    return _layer(repo, prefix, spec, of="sentence_embedding")


def _layer(repo: _Repo, prefix: str, spec: ModelSpec, *, of: str | None) -> ModelSpec:
    """The spec with one more linear layer, on what sentence-transformers calls `of`; None: on whatever there is."""
    files = (f"{prefix}{WEIGHTS}", f"{prefix}config.json")
    if files[0] not in repo.files:
        raise repo.unsupported(
            f"its linear layer lacks {files[0]}: files of pickled Python (pytorch_model.bin) are not read"
        )
    config = repo.json(files[1])
    for end in ("input", "output"):
        name = config.get(f"module_{end}_name")
        if of is not None and name not in (None, of):
            raise repo.unsupported(f"its linear layer in {prefix} has {shown(name)} for its {end}, not {of}")
    earlier = spec.settings.get("projections", ())
    assert isinstance(earlier, tuple)
    spec = replace(
        spec,
        dim=_integer(config, "out_features") or spec.dim,
        additional_files=(*spec.additional_files, *files),
    )
    return _with_settings(spec, projections=(*earlier, prefix.rstrip("/")))


def _normalization(repo: _Repo, prefix: str, spec: ModelSpec) -> ModelSpec:
    config = repo.json(f"{prefix}config.json") if prefix else {}
    scaled = config.get("module_input_name", "sentence_embedding")
    if scaled != "sentence_embedding":
        raise repo.unsupported(f"its Normalize is one of {shown(scaled)}, as multi-vector models have it")
    return replace(spec, normalize=True)


_READERS: Mapping[str, Callable[[_Repo, str, ModelSpec], ModelSpec]] = {
    "Transformer": _transformer,
    "StaticEmbedding": _static,
    "Pooling": _pooling,
    "Dense": _projection,
    "Normalize": _normalization,
}
"""The modules that we compute: each adds to the spec what its configuration says."""

_ORDER = re.compile("(Transformer Pooling|StaticEmbedding)( Dense)*( Normalize)*")
_DECLARED_ORDER = re.compile("(Transformer( Pooling)?|StaticEmbedding)( Dense)*( Normalize)*")
"""The second where the caller says all that modules would: a repo's own module may be what pools."""


def _override(repo: _Repo, spec: ModelSpec) -> ModelSpec:
    """Put what the caller says in the place of the module that says the same, and of no other."""
    pooling, normalize = repo.overrides.pooling, repo.overrides.normalize
    if spec.encoder == "static":
        if pooling not in (None, "mean"):
            raise repo.unsupported("a static embedding is the mean of its tokens' vectors: leave out pooling=")
    # A graph cannot know which tokens are a prompt's.
    elif pooling == "none" or (pooling in (None, spec.pooling) and spec.settings.get("include_prompt", True)):
        # A graph's finished vector is taken, any or the one that the caller names; see `find_output`.
        spec = _with_settings(spec, takes_finished="any" if repo.overrides.graph_output is None else "named")
    return replace(
        spec,
        pooling=pooling or spec.pooling,
        dim=None if pooling == "none" else spec.dim,
        normalize=spec.normalize if normalize is None else normalize,
    )


# What several of them need


def _with_settings(spec: ModelSpec, **settings: object) -> ModelSpec:
    return replace(spec, settings={**spec.settings, **settings})


def _preferring(repo: _Repo, output: str, spec: ModelSpec) -> ModelSpec:
    """The spec that takes a graph's output of this name, if it has one and the caller names none."""
    return spec if repo.overrides.graph_output is not None else _with_settings(spec, output_name=output)


_EXPORTED_FAMILIES = ("text", "sparse", "late_interaction", "hybrid", "cross_encoder")
"""Those that a graph can be built for from weights."""


def _with_weights(repo: _Repo, spec: ModelSpec) -> ModelSpec:
    """The spec with its graph, or, for an export, its weights; either names further files itself."""
    if spec.encoder == "static":
        return spec
    overrides = repo.overrides
    prefix = f"{spec.folder}/" if spec.folder else ""
    # The model's own weights are the repo's, wherever they lie.
    files = repo.files | {name for name in (WEIGHTS, WEIGHTS_INDEX) if f"{prefix}{name}" in repo.files}
    graph = choose_onnx_file(files, onnx_file=overrides.onnx_file, precision=overrides.precision, model=repo.name)
    if graph is not None:
        if spec.settings.get("projection_in_weights"):
            spec = _with_settings(spec, projection_in_weights=False, finishes=True)
        return replace(spec, model_file=graph)
    if spec.settings.get("word_pooling") == "sum":
        raise repo.unsupported(
            "it has no ONNX file, and the graphs that we export give the largest logit of a word, not the sum that its "
            "SpladePooling takes"
        )
    if spec.family not in _EXPORTED_FAMILIES:
        raise repo.unsupported("it has no ONNX file, and only models of texts can be exported from weights")
    weights = f"{prefix}{WEIGHTS if f'{prefix}{WEIGHTS}' in repo.files else WEIGHTS_INDEX}"
    return replace(spec, additional_files=(weights, *spec.additional_files))


def _prompts(repo: _Repo) -> tuple[dict[str, str], str | None]:
    """The prompts by name, and the name of the one that every input gets."""
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


def _is_called(repo: _Repo, task: str) -> bool:
    """Whether the repo's first architecture is one for a task."""
    names = _architectures(repo)
    return bool(names) and isinstance(names[0], str) and names[0].endswith(task)


def _architectures(repo: _Repo) -> list[object]:
    architectures = repo.json("config.json").get("architectures")
    return architectures if isinstance(architectures, list) else [architectures] if architectures else []


def _check_task(repo: _Repo, task: str) -> None:
    names = _architectures(repo)
    if names and not any(isinstance(name, str) and name.endswith(task) for name in names):
        raise repo.unsupported(f"config.json calls it {', '.join(map(shown, names[:8]))}, not a model {task}")


def _check_modality(repo: _Repo, sentence: Mapping[str, Any]) -> None:
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


def _max_length(repo: _Repo, prefix: str = "") -> int | None:
    """See `repo_limit`."""
    names = ("config.json", "tokenizer_config.json", "sentence_bert_config.json")
    return repo_limit(*(repo.json(f"{prefix}{name}") for name in names))


def _hidden_size(repo: _Repo) -> int | None:
    return _integer(repo.json("config.json"), "hidden_size", "dim", "d_model")


def _integer(config: dict[str, Any], *keys: str) -> int | None:
    """The first of these entries that is a size: a number above 0 that an array could have."""
    return next((config[key] for key in keys if type(config.get(key)) is int and 0 < config[key] < 2**31), None)
