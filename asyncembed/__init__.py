"""Local embedding models behind `async for`: batched across callers, in order, with backpressure.

```python
async with TextEmbedding("BAAI/bge-small-en-v1.5") as model:
    async for vector in model.embed(documents):
        ...
```
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncembed.catalogue.spec import ModelSpec
    from asyncembed.embedders.cross_encoder import TextCrossEncoder
    from asyncembed.embedders.image import ImageEmbedding
    from asyncembed.embedders.late_interaction import LateInteractionTextEmbedding
    from asyncembed.embedders.multimodal import LateInteractionMultimodalEmbedding
    from asyncembed.embedders.sparse import SparseTextEmbedding
    from asyncembed.embedders.text import TextCall, TextEmbedding
    from asyncembed.engine.model import Stats
    from asyncembed.engine.pool import WorkerPool
    from asyncembed.hub.model_files import download
    from asyncembed.muvera import Muvera
    from asyncembed.options import Options
    from asyncembed.results import SparseEmbedding
    from asyncembed.scoring import maxsim, maxsim_scores
    from asyncembed.stream import EmbeddingStream

__version__ = "0.1.0"

__all__ = [
    "EmbeddingStream",
    "ImageEmbedding",
    "LateInteractionMultimodalEmbedding",
    "LateInteractionTextEmbedding",
    "ModelSpec",
    "Muvera",
    "Options",
    "SparseEmbedding",
    "SparseTextEmbedding",
    "Stats",
    "TextCall",
    "TextCrossEncoder",
    "TextEmbedding",
    "WorkerPool",
    "download",
    "maxsim",
    "maxsim_scores",
]

# Worker processes import this package too: nothing is loaded before it is used.
_HOMES = {
    "EmbeddingStream": "asyncembed.stream",
    "ImageEmbedding": "asyncembed.embedders.image",
    "LateInteractionMultimodalEmbedding": "asyncembed.embedders.multimodal",
    "LateInteractionTextEmbedding": "asyncembed.embedders.late_interaction",
    "ModelSpec": "asyncembed.catalogue.spec",
    "Muvera": "asyncembed.muvera",
    "Options": "asyncembed.options",
    "SparseEmbedding": "asyncembed.results",
    "SparseTextEmbedding": "asyncembed.embedders.sparse",
    "Stats": "asyncembed.engine.model",
    "TextCall": "asyncembed.embedders.text",
    "TextCrossEncoder": "asyncembed.embedders.cross_encoder",
    "TextEmbedding": "asyncembed.embedders.text",
    "WorkerPool": "asyncembed.engine.pool",
    "download": "asyncembed.hub.model_files",
    "maxsim": "asyncembed.scoring",
    "maxsim_scores": "asyncembed.scoring",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


if getattr(sys, "frozen", False):
    from asyncembed.engine.frozen import become_child

    become_child()
