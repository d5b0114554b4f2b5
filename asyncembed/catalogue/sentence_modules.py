"""The modules of a text model, as sentence-transformers lists them: each adds to the spec what it says."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from asyncembed.catalogue.described import (
    DescribedRepo,
    Module,
    check_modality,
    declared_limit,
    hidden_size,
    size_in,
    with_settings,
)
from asyncembed.catalogue.spec import ModelSpec, Pooling
from asyncembed.errors import UnsupportedModelError
from asyncembed.repo_files import WEIGHTS, shown

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


def from_modules(repo: DescribedRepo, modules: Sequence[Module], spec: ModelSpec) -> ModelSpec:
    """The spec of a model of these modules, in an order that we compute."""
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


def _computed(repo: DescribedRepo, modules: Sequence[Module]) -> list[Module]:
    """Those modules that are read. If the caller says it all, modules that we do not know are the graph's."""
    kind = repo.json("config_sentence_transformers.json").get("model_type")
    if isinstance(kind, str) and kind in _CLASSES and not repo.is_declared:
        raise repo.unsupported(f"it is a {kind}: open it with {_CLASSES[kind]}")
    unknown = [module.kind for module in modules if module.kind not in (*_READERS, "Dropout")]
    if unknown and not repo.is_declared:
        raise repo.unsupported(
            f"its module {shown(unknown[0])} is none that we compute; if the graph does that, say pooling= and "
            "normalize= yourself"
        )
    known = [module for module in modules if module.kind in _READERS]
    if repo.is_declared and not any(module.kind in ("Transformer", "StaticEmbedding") for module in known):
        known.insert(0, Module("Transformer"))  # under a name of the repo's own
    return known


def transformer(repo: DescribedRepo, prefix: str, spec: ModelSpec) -> ModelSpec:
    """The spec with what the encoder's files say: its limit, its width, its letters."""
    if prefix and not repo.is_declared:
        raise repo.unsupported(
            f"its transformer lies in the folder {shown(prefix)}; save it with a current sentence-transformers, "
            "which puts it beside modules.json"
        )
    sentence = repo.json("sentence_bert_config.json")
    task = sentence.get("transformer_task", "feature-extraction")
    if task != "feature-extraction" and not repo.is_declared:
        raise repo.unsupported(f"its Transformer is for the task {shown(task)}, not for feature-extraction")
    check_modality(repo, sentence)
    spec = replace(spec, max_length=declared_limit(repo), dim=hidden_size(repo))
    lowers = sentence.get("do_lower_case")
    return with_settings(spec, lower_case=True) if lowers else spec


def _static(repo: DescribedRepo, prefix: str, spec: ModelSpec) -> ModelSpec:
    files = (f"{prefix}{WEIGHTS}", f"{prefix}tokenizer.json")
    for path in files:
        if path not in repo.files:
            raise repo.unsupported(f"its static embedding lacks the file {path}")
    spec = replace(spec, encoder="static", pooling="mean", additional_files=files)
    return with_settings(spec, folder=prefix.rstrip("/")) if prefix else spec


def model2vec(repo: DescribedRepo, spec: ModelSpec) -> ModelSpec:
    """A static model as model2vec saves it, without sentence-transformers' files."""
    config = repo.json("config.json")
    spec = replace(
        _static(repo, "", spec),
        normalize=bool(config.get("normalize", True)),
        max_length=512,  # model2vec's own default
        dim=size_in(config, "hidden_dim"),
    )
    return with_settings(spec, drop_unknown=True)


def _pooling(repo: DescribedRepo, prefix: str, spec: ModelSpec) -> ModelSpec:
    path = f"{prefix}config.json"
    config = repo.json(path)
    try:
        pooling = _pooling_of(repo, path, config)
    except UnsupportedModelError:
        if repo.overrides.pooling is None:
            raise
        pooling = spec.pooling
    dim = size_in(config, "word_embedding_dimension", "embedding_dimension") or spec.dim
    spec = replace(spec, pooling=pooling, dim=dim)
    return with_settings(spec, include_prompt=False) if config.get("include_prompt") is False else spec


def _pooling_of(repo: DescribedRepo, path: str, config: dict[str, Any]) -> Pooling:
    modes = [mode for name, mode in _POOLINGS.items() if config.get(f"pooling_mode_{name}")]
    if named := config.get("pooling_mode"):
        names = named if isinstance(named, list) else [named]
        unknown = [mode for mode in names if not isinstance(mode, str) or mode not in _POOLINGS]
        if unknown:
            raise repo.unsupported(f"its pooling mode {shown(unknown[0])} is none that we compute: say pooling=")
        modes = [_POOLINGS[mode] for mode in names]
    if not modes:
        raise repo.unsupported(f"{path} has no pooling mode that we know: say pooling=")
    if len(modes) > 1:
        raise repo.unsupported(
            f"{path} has the pooling modes {', '.join(modes[:8])} at once, which we do not join; pooling= takes one of "
            "them, which makes other vectors"
        )
    return modes[0]


def _projection(repo: DescribedRepo, prefix: str, spec: ModelSpec) -> ModelSpec:
    if repo.overrides.pooling == "none":  # the graph's vector is what linear layers have made already
        return spec
    return linear_layer(repo, prefix, spec, of="sentence_embedding")


def linear_layer(repo: DescribedRepo, prefix: str, spec: ModelSpec, *, of: str | None) -> ModelSpec:
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
        dim=size_in(config, "out_features") or spec.dim,
        additional_files=(*spec.additional_files, *files),
    )
    return with_settings(spec, projections=(*earlier, prefix.rstrip("/")))


def _normalization(repo: DescribedRepo, prefix: str, spec: ModelSpec) -> ModelSpec:
    config = repo.json(f"{prefix}config.json") if prefix else {}
    scaled = config.get("module_input_name", "sentence_embedding")
    if scaled != "sentence_embedding":
        raise repo.unsupported(f"its Normalize is one of {shown(scaled)}, as multi-vector models have it")
    return replace(spec, normalize=True)


_READERS: Mapping[str, Callable[[DescribedRepo, str, ModelSpec], ModelSpec]] = {
    "Transformer": transformer,
    "StaticEmbedding": _static,
    "Pooling": _pooling,
    "Dense": _projection,
    "Normalize": _normalization,
}
"""The modules that we compute: each adds to the spec what its configuration says."""


_ORDER = re.compile("(Transformer Pooling|StaticEmbedding)( Dense)*( Normalize)*")


_DECLARED_ORDER = re.compile("(Transformer( Pooling)?|StaticEmbedding)( Dense)*( Normalize)*")
"""The second where the caller says all that modules would: a repo's own module may be what pools."""


def overridden(repo: DescribedRepo, spec: ModelSpec) -> ModelSpec:
    """Put what the caller says in the place of the module that says the same, and of no other."""
    pooling, normalize = repo.overrides.pooling, repo.overrides.normalize
    if spec.encoder == "static":
        if pooling not in (None, "mean"):
            raise repo.unsupported("a static embedding is the mean of its tokens' vectors: leave out pooling=")
    # A graph cannot know which tokens are a prompt's.
    elif pooling == "none" or (pooling in (None, spec.pooling) and spec.settings.get("include_prompt", True)):
        # A graph's finished vector is taken, any or the one that the caller names; see `find_output`.
        spec = with_settings(spec, takes_finished="any" if repo.overrides.graph_output is None else "named")
    return replace(
        spec,
        pooling=pooling or spec.pooling,
        dim=None if pooling == "none" else spec.dim,
        normalize=spec.normalize if normalize is None else normalize,
    )
