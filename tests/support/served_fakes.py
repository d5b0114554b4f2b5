"""A fake model of each class, by the name of its family, as servers are given them."""

from dataclasses import replace

from asyncembed import (
    ImageEmbedding,
    LateInteractionMultimodalEmbedding,
    LateInteractionTextEmbedding,
    SparseTextEmbedding,
    TextCrossEncoder,
    TextEmbedding,
)
from asyncembed.embedders.base import Embedder
from asyncembed.testing import fake_model

PROMPTS = {"query": "find: ", "document": "text: ", "clustering": "cluster: "}

DIM = 8


def fakes_of_all_kinds() -> dict[str, Embedder]:
    """New ones, which are not open."""
    return {
        "text": TextEmbedding(fake_model(dim=DIM, prompts=PROMPTS)),
        "unit": TextEmbedding(replace(fake_model(dim=DIM), normalize=True)),
        "sparse": SparseTextEmbedding(fake_model("sparse")),
        "late_interaction": LateInteractionTextEmbedding(fake_model("late_interaction", dim=4)),
        "image": ImageEmbedding(fake_model("image", dim=6)),
        "late_interaction_multimodal": LateInteractionMultimodalEmbedding(
            fake_model("late_interaction_multimodal", dim=4)
        ),
        "cross_encoder": TextCrossEncoder(fake_model("cross_encoder")),
    }
