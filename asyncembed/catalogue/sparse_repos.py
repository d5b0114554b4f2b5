"""Repos of SPLADE, as sentence-transformers has it: alike for queries and documents, or with a table for queries."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from asyncembed.catalogue.described import (
    DescribedRepo,
    Module,
    check_modality,
    check_task,
    declared_limit,
    preferring,
    size_in,
    with_settings,
)
from asyncembed.catalogue.hybrid_repos import heads_of, hybrid_spec
from asyncembed.catalogue.spec import ModelSpec
from asyncembed.repo_files import WEIGHTS, shown

IDF_FILE = "idf.json"
"""The weights of a query's tokens, as repos of inference-free SPLADE have them."""


def sparse_spec(repo: DescribedRepo, spec: ModelSpec) -> ModelSpec:
    """SPLADE, as sentence-transformers has it: alike for queries and documents, or with a table for queries."""
    if "sparse_head" in heads_of(repo):
        return with_settings(hybrid_spec(repo, spec), only="sparse")
    modules = repo.modules()
    if modules is None:
        check_task(repo, "ForMaskedLM")
        if IDF_FILE in repo.files:
            raise repo.unsupported(
                f"it has {IDF_FILE}, but no modules.json that says what becomes of a document's logits: "
                'SparseTextEmbedding.add_custom_model(..., kind="inference_free_splade") takes it'
            )
        return _splade(repo, [Module("MLMTransformer"), Module("SpladePooling")], spec)
    if [module.kind for module in modules] == ["Router"]:
        return _routed_splade(repo, modules[0], spec)
    return _splade(repo, modules, spec)


def _splade(repo: DescribedRepo, modules: Sequence[Module], spec: ModelSpec) -> ModelSpec:
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
    check_modality(repo, sentence)
    settings = _splade_pooling(repo, f"{pooling.prefix}config.json") if pooling.prefix else {}
    if model.prefix:
        settings["folder"] = model.prefix.rstrip("/")
    if sentence.get("do_lower_case"):
        settings["lower_case"] = True
    if most := size_in(repo.json("config_sentence_transformers.json"), "max_active_dims"):
        settings["max_active_dims"] = most
    spec = replace(spec, encoder="splade", max_length=declared_limit(repo, model.prefix))
    return preferring(repo, "logits", with_settings(spec, **settings))


def _splade_pooling(repo: DescribedRepo, path: str) -> dict[str, object]:
    """The settings that say how logits become weights."""
    config = repo.json(path)
    strategy, activation = config.get("pooling_strategy", "max"), config.get("activation_function", "relu")
    if strategy not in ("max", "sum") or activation not in ("relu", "log1p_relu"):
        raise repo.unsupported(
            f"its pooling is {shown(strategy)} of {shown(activation)}; only max and sum of relu and log1p_relu are "
            "computed"
        )
    return {"word_pooling": strategy, "activation": activation}


def _routed_splade(repo: DescribedRepo, router: Module, spec: ModelSpec) -> ModelSpec:
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
    return with_settings(spec, query_folder=folder.rstrip("/"), drops_special_tokens=False, **settings)
