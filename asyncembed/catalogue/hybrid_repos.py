"""Repos of models with several results from one pass, as bge-m3."""

from collections.abc import Mapping
from dataclasses import replace

from asyncembed.catalogue.described import DescribedRepo, declared_limit, hidden_size
from asyncembed.catalogue.sentence_modules import from_modules
from asyncembed.catalogue.spec import ModelSpec

HEADS: Mapping[str, tuple[str, ...]] = {
    "sparse_head": ("sparse_linear.pt", "sparse_linear.safetensors"),
    "late_interaction_head": ("colbert_linear.pt", "colbert_linear.safetensors"),
}
"""The linear layers of models like bge-m3, by the settings of a hybrid model that name them."""


def heads_of(repo: DescribedRepo) -> dict[str, str]:
    """The files of such layers that the repo has, by setting."""
    found = {setting: next((path for path in names if path in repo.files), None) for setting, names in HEADS.items()}
    return {setting: path for setting, path in found.items() if path is not None}


def hybrid_spec(repo: DescribedRepo, spec: ModelSpec) -> ModelSpec:
    """A text model with layers for more results beside it, or a graph that has several; which ones its outputs tell."""
    heads = heads_of(repo)
    spec = replace(spec, encoder="hybrid", settings=heads, additional_files=tuple(heads.values()))
    modules = repo.modules()
    if modules is not None:
        spec = from_modules(repo, modules, spec)
        if spec.encoder != "hybrid":
            raise repo.unsupported("it is a static model, which has one vector for a text: TextEmbedding is its class")
        if unread := spec.settings.keys() - {*HEADS}:
            raise repo.unsupported(f"a hybrid model with {', '.join(sorted(unread))} is none that we compute")
    elif heads:
        spec = replace(spec, pooling="cls", normalize=True, max_length=declared_limit(repo), dim=hidden_size(repo))
    else:
        spec = replace(spec, normalize=True, max_length=declared_limit(repo))
    if not heads and not any(path.endswith(".onnx") for path in repo.files):
        raise repo.unsupported(
            f"it has neither {' nor '.join(names[0] for names in HEADS.values())}, and no graph that could have more "
            "than dense vectors"
        )
    return spec
