"""How near the results of a graph in 8 bits are to its model's float ones: what `bench` prints, and keeps beside it."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asyncembed.embedders.base import Embedder, opened_model
from asyncembed.embedders.sparse import SparseTextEmbedding
from asyncembed.embedders.text import TextEmbedding
from asyncembed.engine.pool import WorkerPool
from asyncembed.export.graph_cache import ACCURACY_FILE, DATA_FILE, INT8_GRAPH_FILE
from asyncembed.files import in_disk_thread, replacing
from asyncembed.scoring import cosine

MOST_TEXTS = 300
NEAREST = 10

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What two forms of a model make of the same texts.

    Attributes:
        texts: How many they were.
        cosine_mean: Of the two vectors of a text, on average.
        cosine_min: The least.
        nearest_shared: How many of the texts that are nearest to a text in one form are so in the other, 0 to 1.
    """

    texts: int
    cosine_mean: float
    cosine_min: float
    nearest_shared: float


def compared(exact: Vectors, found: Vectors) -> Accuracy:
    """Compare the vectors of two or more texts, (texts, dim), in two forms; what the narrower ones lack is 0."""
    width = max(exact.shape[1], found.shape[1])
    exact, found = (np.pad(each, ((0, 0), (0, width - each.shape[1]))) for each in (exact, found))
    near = np.diag(cosine(exact, found))
    nearest = [_nearest(cosine(each, each)) for each in (exact, found)]
    shared = [len(set(one) & set(other)) / len(one) for one, other in zip(*nearest, strict=True)]
    return Accuracy(len(exact), float(near.mean()), float(near.min()), float(np.mean(shared)))


def _nearest(cosines: Vectors) -> list[list[int]]:
    """Of each row, the columns with the largest numbers, without its own."""
    np.fill_diagonal(cosines, -2)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, : min(NEAREST, len(cosines) - 1)]
    return [row.tolist() for row in order]


def graph_in_8_bits(embedder: Embedder) -> Path | None:
    """The graph of an open model whose accuracy can be told; None: it has none that was made here in 8 bits."""
    model, _ = opened_model(embedder)
    graph = Path(model.config.spec.model_file or "")
    is_told = graph.is_absolute() and isinstance(embedder, TextEmbedding | SparseTextEmbedding)
    return graph if is_told and graph.name == INT8_GRAPH_FILE and graph.with_name(DATA_FILE).is_file() else None


async def vectors(embedder: Embedder, texts: Sequence[str]) -> Vectors:
    """The vectors of some texts, of an open model with one for each."""
    assert isinstance(embedder, TextEmbedding | SparseTextEmbedding), "others have several"
    found: list[Any] = [each async for each in embedder.embed(texts)]
    if isinstance(embedder, TextEmbedding):
        return np.stack(found)
    wide = np.zeros((len(found), 1 + max(int(each.indices.max(initial=0)) for each in found)), np.float32)
    for row, each in zip(wide, found, strict=True):
        row[each.indices] = each.values
    return wide


async def accuracy_of(graph: Path, found: Vectors, texts: Sequence[str], exact: Embedder, pool: WorkerPool) -> Accuracy:
    """Compare what a graph has made of some texts with what the float model does, and keep that beside the graph.

    `exact` is made with `pool=pool`, and neither is open.
    """
    async with pool, exact:
        accuracy = compared(await vectors(exact, texts), found)
    with suppress(OSError):  # a cache of somebody else's
        await in_disk_thread(_keep, graph.with_name(ACCURACY_FILE), accuracy)
    return accuracy


def _keep(path: Path, accuracy: Accuracy) -> None:
    with replacing(path) as made:
        made.write_text(json.dumps(asdict(accuracy), indent=1), "utf-8")
