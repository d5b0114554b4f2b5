"""A spec read from a repo's own files, as sentence-transformers writes them.

What a repo says is taken from it; what it does not say, the caller must (`Overrides`): nothing is guessed. It
goes in two steps, so that a repo on the hub need not be fetched whole:

1. `configuration_files(files)` names the small files that decide, out of the repo's listing.
2. `spec_from_directory(directory, files=...)` reads those, and its `model_file` and `additional_files` name
the rest.
"""

import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from asyncembed.catalogue.described import DescribedRepo, Overrides, preferring, size_in, with_settings
from asyncembed.catalogue.hybrid_repos import hybrid_spec
from asyncembed.catalogue.late_interaction_repos import late_interaction_spec
from asyncembed.catalogue.onnx_choice import choose_onnx_file, prefer
from asyncembed.catalogue.reranker_repos import reranker_spec
from asyncembed.catalogue.sentence_modules import from_modules, model2vec, overridden
from asyncembed.catalogue.sparse_repos import sparse_spec
from asyncembed.catalogue.spec import Family, LocalOrigin, ModelSpec, Origin
from asyncembed.errors import UnsupportedModelError
from asyncembed.repo_files import WEIGHTS, WEIGHTS_INDEX, is_safe_path, list_directory

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
    repo = DescribedRepo(directory, name or str(directory), frozenset(filter(is_safe_path, listing)), overrides)
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


def _text(repo: DescribedRepo, spec: ModelSpec) -> ModelSpec:
    modules = repo.modules()
    if modules is None and repo.json("config.json").get("model_type") == "model2vec":
        return overridden(repo, model2vec(repo, spec))
    if modules is None and not repo.is_declared:
        said = {"pooling=": repo.overrides.pooling, "normalize=": repo.overrides.normalize}
        missing = [keyword for keyword, value in said.items() if value is None]
        raise repo.unsupported(
            f"there is no modules.json that says how its hidden states become one vector: say {' and '.join(missing)} "
            '(pooling="none" where the graph has an output sentence_embedding)'
        )
    kept = size_in(repo.json("config_sentence_transformers.json"), "truncate_dim")
    spec = replace(spec, truncate_dim=kept)
    return overridden(repo, _with_tasks(repo, from_modules(repo, modules or [], spec)))


def _with_tasks(repo: DescribedRepo, spec: ModelSpec) -> ModelSpec:
    """The spec of a model with an adapter for each of several tasks, as jina-embeddings-v3 lists them."""
    names = repo.json("config.json").get("lora_adaptations")
    if spec.encoder != "dense" or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return spec
    tasks = {name: number for number, name in enumerate(names[:_MOST_TASKS])}
    query, passage = tasks.get("retrieval.query"), tasks.get("retrieval.passage")
    settings = {"query_task": query, "passage_task": passage, "default_task": passage}
    return with_settings(spec, task_input="task_id", tasks=tasks, **settings) if tasks else spec


_MOST_TASKS = 100


def _image(repo: DescribedRepo, spec: ModelSpec) -> ModelSpec:
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
    return preferring(repo, "image_embeds", spec) if spec.pooling == "none" else spec


_FAMILIES: Mapping[str, Callable[[DescribedRepo, ModelSpec], ModelSpec]] = {
    "text": _text,
    "late_interaction": late_interaction_spec,
    "cross_encoder": reranker_spec,
    "sparse": sparse_spec,
    "hybrid": hybrid_spec,
    "image": _image,
}
"""The families that a repo can be of by its own word."""


_EXPORTED_FAMILIES = ("text", "sparse", "late_interaction", "hybrid", "cross_encoder")
"""Those that a graph can be built for from weights."""


def _with_weights(repo: DescribedRepo, spec: ModelSpec) -> ModelSpec:
    """The spec with its graph, or, for an export, its weights; either names further files itself."""
    if spec.encoder == "static":
        return spec
    prefix = f"{spec.folder}/" if spec.folder else ""
    # The model's own weights are the repo's, wherever they lie.
    files = repo.files | {name for name in (WEIGHTS, WEIGHTS_INDEX) if f"{prefix}{name}" in repo.files}
    graph = _chosen_graph(repo, spec, files)
    if graph is not None:
        if spec.settings.get("projection_in_weights"):
            spec = with_settings(spec, projection_in_weights=False, finishes=True)
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


def _chosen_graph(repo: DescribedRepo, spec: ModelSpec, files: frozenset[str]) -> str | None:
    """The path of the graph that is meant, None where it is to be built of the weights."""
    overrides, objection = repo.overrides, None
    if overrides.int8_objection is not None and (WEIGHTS in files or WEIGHTS_INDEX in files):
        objection = overrides.int8_objection(spec, repo.directory)
        if objection is None and spec.family in _EXPORTED_FAMILIES and spec.settings.get("word_pooling") != "sum":
            return None
    if overrides.int8_of_graphs and spec.family in _EXPORTED_FAMILIES:
        with contextlib.suppress(UnsupportedModelError):
            if (plain := choose_onnx_file(files, model=repo.name)) is not None:
                return plain
    try:
        graph = choose_onnx_file(files, onnx_file=overrides.onnx_file, precision=overrides.precision, model=repo.name)
    except UnsupportedModelError as error:
        if objection is None:
            raise
        reason = f"no graph in 8 bits can be built: {objection}; and {error}"
        raise UnsupportedModelError(reason, model=repo.name) from None
    preferred = overrides.preferred_precision
    return graph if graph is None or preferred is None else prefer(preferred, graph, files)


def _prompts(repo: DescribedRepo) -> tuple[dict[str, str], str | None]:
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
