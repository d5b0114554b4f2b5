"""For every encoder that the package has, a small model that it serves."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from asyncembed.catalogue.lookup import require_model
from asyncembed.catalogue.pipeline import spec_from_directory
from asyncembed.catalogue.spec import LocalOrigin, ModelSpec
from asyncembed.encoders.settings import CausalRerankerSettings, read_settings
from asyncembed.export.answers import read_answer
from asyncembed.export.graph_cache import ensure_graph
from tests.support.graphs import DIM
from tests.support.hybrid_models import hybrid_spec, write_hybrid_model
from tests.support.images import write_image_model
from tests.support.late_interaction import write_late_interaction_model
from tests.support.models import spec_for, write_model
from tests.support.multimodal import COLMODERNVBERT_NAME, COLPALI_NAME, write_multimodal_model
from tests.support.sparse_models import (
    BM25,
    BM42,
    IF_SPLADE,
    MINICOIL,
    RERANKER,
    SPLADE,
    write_bm25,
    write_bm42,
    write_if_splade,
    write_minicoil,
    write_reranker,
    write_splade,
)
from tests.support.static_models import DIM as STATIC_DIM
from tests.support.static_models import write_static
from tests.support.tokenizers import wordpiece

LANGUAGE_MODELS = Path(__file__).parent.parent / "embedders" / "data"

Write = Callable[[Path], ModelSpec]


def _dense(directory: Path) -> ModelSpec:
    return spec_for(write_model(directory), pooling="mean", normalize=True)


def _static(directory: Path) -> ModelSpec:
    write_static(directory, wordpiece())
    spec = require_model("minishlab/potion-base-8M", "text")
    return replace(spec, dim=STATIC_DIM, sources=(LocalOrigin(directory),))


def _sparse(directory: Path, *, name: str, write: Callable[[Path], Path]) -> ModelSpec:
    return replace(require_model(name, "sparse"), sources=(LocalOrigin(write(directory)),))


def _reranker(directory: Path) -> ModelSpec:
    spec = require_model(RERANKER, "cross_encoder")
    return replace(spec, sources=(LocalOrigin(write_reranker(directory)),), dim=DIM)


def _causal_reranker(directory: Path) -> ModelSpec:
    shutil.copytree(LANGUAGE_MODELS / "logit_score", directory, dirs_exist_ok=True)
    spec = spec_from_directory(directory, family="cross_encoder")
    settings = read_settings(CausalRerankerSettings, spec)
    assert settings.yes is not None
    head = read_answer(directory, settings.yes, settings.no)
    return replace(spec, model_file=str(ensure_graph(directory, head=head, cache_dir=directory / "cache")))


WRITE: Mapping[str, Write] = {
    "dense": _dense,
    "static": _static,
    "colbert": partial(write_late_interaction_model, name="colbert-ir/colbertv2.0"),
    "token_states": partial(write_late_interaction_model, name="jinaai/jina-embeddings-v2-small-en-tokens"),
    "bm25": partial(_sparse, name=BM25, write=write_bm25),
    "bm42": partial(_sparse, name=BM42, write=write_bm42),
    "minicoil": partial(_sparse, name=MINICOIL, write=write_minicoil),
    "splade": partial(_sparse, name=SPLADE, write=write_splade),
    "inference_free_splade": partial(_sparse, name=IF_SPLADE, write=write_if_splade),
    "cross_encoder": _reranker,
    "causal_reranker": _causal_reranker,
    "hybrid": lambda directory: hybrid_spec(write_hybrid_model(directory)),
    "image": write_image_model,
    "colpali": partial(write_multimodal_model, name=COLPALI_NAME),
    "colmodernvbert": partial(write_multimodal_model, name=COLMODERNVBERT_NAME),
}
"""The name of an encoder → writes a model of its kind into a directory."""
