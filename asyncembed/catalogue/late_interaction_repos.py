"""Repos of models with a vector per token: of PyLate, sentence-transformers, ColBERT's authors and next-plaid."""

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from asyncembed.catalogue.described import DescribedRepo, Module, architectures, declared_limit, size_in, with_settings
from asyncembed.catalogue.hybrid_repos import heads_of, hybrid_spec
from asyncembed.catalogue.limits import tokenizer_limit
from asyncembed.catalogue.sentence_modules import linear_layer, transformer
from asyncembed.catalogue.spec import ModelSpec
from asyncembed.repo_files import shown


def late_interaction_spec(repo: DescribedRepo, spec: ModelSpec) -> ModelSpec:
    """A vector per token: by modules, as ColBERT's authors have it, or by a file beside a finished graph."""
    modules = repo.modules()
    spec = replace(spec, encoder="colbert", normalize=True)
    said = repo.json("config_sentence_transformers.json")
    is_pylate = said.get("model_type") == "ColBERT" or "query_prefix" in said
    if modules is not None and said.get("model_type") == "MultiVectorEncoder":
        return _multi_vector_encoder(repo, modules, spec)
    if modules is not None and (is_pylate or any(module.type_name.startswith("pylate.") for module in modules)):
        return _pylate(repo, [module for module in modules if module.kind != "Normalize"], said, spec)
    if "HF_ColBERT" in architectures(repo):
        metadata = repo.json("artifact.metadata")
        found: dict[str, Any] = {
            "query_prefix": metadata.get("query_token_id") or "[unused0]",
            "document_prefix": metadata.get("doc_token_id") or "[unused1]",
            "query_length": metadata.get("query_maxlen"),
            "document_length": metadata.get("doc_maxlen"),
            "attend_to_expansion_tokens": metadata.get("attend_to_mask_tokens"),
            "skiplist_words": None if metadata.get("mask_punctuation", True) else [],
        }
        return with_settings(_colbert(repo, found, spec), projection_in_weights=True)
    if finished := repo.json("onnx_config.json"):
        spec = _colbert(repo, finished, replace(spec, dim=size_in(finished, "embedding_dim", "embedding_dimension")))
        return with_settings(spec, lower_case=True) if finished.get("do_lower_case") else spec
    if "late_interaction_head" in heads_of(repo):
        # Its vectors may be of another length than the hidden states.
        return replace(
            with_settings(hybrid_spec(repo, replace(spec, normalize=False)), only="late_interaction"), dim=None
        )
    raise repo.unsupported(
        "nothing says that it has a vector for each token: neither modules of PyLate or of sentence-transformers' "
        "MultiVectorEncoder, nor the architecture HF_ColBERT in config.json, nor onnx_config.json; "
        "LateInteractionTextEmbedding.add_custom_model says it instead"
    )


def _pylate(repo: DescribedRepo, modules: Sequence[Module], said: dict[str, Any], spec: ModelSpec) -> ModelSpec:
    """A model of PyLate: a transformer and linear layers."""
    spec = _token_layers(repo, modules, _ORDER_OF_PYLATE, spec)
    if spec.default_prompt is not None:  # which it puts before queries and documents alike
        default = spec.prompts[spec.default_prompt]
        spec = replace(spec, prompts={role: spec.prompts.get(role) or default for role in ("query", "document")})
    return _colbert(repo, said, spec)


def _colbert(repo: DescribedRepo, said: dict[str, Any], spec: ModelSpec) -> ModelSpec:
    """What PyLate's keys say, with its defaults."""
    markers = {role: _word(repo, said, f"{role}_prefix", f"[{role[0].upper()}] ") for role in ("query", "document")}
    lengths = {role: size_in(said, f"{role}_length") or default for role, default in _PYLATE_LENGTHS.items()}
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
    return with_settings(replace(spec, max_length=lengths["document"]), **settings)


def _multi_vector_encoder(repo: DescribedRepo, modules: Sequence[Module], spec: ModelSpec) -> ModelSpec:
    """A model of sentence-transformers' own class."""
    by_kind = {module.kind: module.prefix for module in modules}
    spec = _token_layers(repo, modules, _ORDER_OF_MULTI_VECTORS, replace(spec, normalize="Normalize" in by_kind))
    sentence = repo.json("sentence_bert_config.json")
    mask = repo.json(f"{by_kind['MultiVectorMask']}config.json") if "MultiVectorMask" in by_kind else {}
    if mask.get("keep_only_token_ids"):
        raise repo.unsupported("it keeps the vectors of some tokens of a document only, which we do not compute")
    tasks = mask.get("skiplist_tasks") or ["document"]
    own = declared_limit(repo)
    settings: dict[str, object] = {
        "mask_token": None,
        # Neither bounds the other.
        "query_max_length": size_in(sentence, "query_length")
        or own
        or tokenizer_limit(repo.json("tokenizer_config.json")),
        "skip_words": _words(repo, mask.get("skiplist_words") or []) if "document" in tasks else (),
        "skips_in_queries": "query" in tasks,
        "normalize_queries": spec.normalize,
    }
    spec = replace(spec, max_length=size_in(sentence, "document_length") or own)
    expansion = sentence.get("query_expansion")
    if isinstance(expansion, dict):
        settings |= _expansion(repo, expansion, settings)
        if "MultiVectorMask" not in by_kind:
            raise repo.unsupported("it lengthens queries, but has no MultiVectorMask that counts what is put in")
    if "HierarchicalTokenPooling" in by_kind:
        settings |= _token_pooling(repo, f"{by_kind['HierarchicalTokenPooling']}config.json")
    return with_settings(spec, **settings)


def _expansion(repo: DescribedRepo, expansion: dict[str, Any], settings: Mapping[str, object]) -> dict[str, object]:
    """How queries are lengthened."""
    strategy, length, longest = expansion.get("strategy"), size_in(expansion, "length"), settings["query_max_length"]
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


def _token_pooling(repo: DescribedRepo, path: str) -> dict[str, object]:
    config = repo.json(path)
    tasks, factor, protected = (config.get(key) for key in ("tasks", "pool_factor", "num_protected_tokens"))
    if tasks not in (None, "document", ["document"]):
        raise repo.unsupported(f"{path} is not for documents alone, which is all that we compute")
    if not isinstance(factor, int | float) or not factor >= 1 or not isinstance(protected, int) or protected < 0:
        raise repo.unsupported(f"{path} has no usable pool_factor or num_protected_tokens")
    is_normalized = config.get("normalize_embeddings") is True
    return {"pool_factor": factor, "protected_tokens": protected, "normalize_pooled": is_normalized}


def _token_layers(repo: DescribedRepo, modules: Sequence[Module], order: re.Pattern[str], spec: ModelSpec) -> ModelSpec:
    """The spec with the transformer and the linear layers among `modules`."""
    kinds = ["Dense" if module.type_name in _TOKEN_LAYERS else module.kind for module in modules]
    if not order.fullmatch(" ".join(kinds)):
        raise repo.unsupported(f"its modules {', '.join(map(shown, kinds[:8]))} are in an order that we do not compute")
    spec = transformer(repo, modules[0].prefix, spec)
    for module in (module for module, kind in zip(modules, kinds, strict=True) if kind == "Dense"):
        # PyLate takes a layer for one of tokens, whatever it says.
        spec = linear_layer(
            repo, module.prefix, spec, of="token_embeddings" if order is _ORDER_OF_MULTI_VECTORS else None
        )
    return spec


def _word(repo: DescribedRepo, said: dict[str, Any], key: str, default: str) -> str:
    value = said.get(key)
    if value is not None and not isinstance(value, str):
        raise repo.unsupported(f"its {key} is {shown(value)}, which is no token")
    return default if value is None else value


def _words(repo: DescribedRepo, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise repo.unsupported(f"its skiplist_words are {shown(value)}, which is no list of tokens")
    return tuple(value)


_PYLATE_LENGTHS = {"query": 32, "document": 180}


_TOKEN_LAYERS = ("pylate.models.Dense.Dense", "pylate.models.Dense")


_ORDER_OF_PYLATE = re.compile("Transformer( Dense)*")


_ORDER_OF_MULTI_VECTORS = re.compile(
    "Transformer( Dense)*( MultiVectorMask)?( Normalize)?( MultiVectorMask)?( HierarchicalTokenPooling)?"
)
