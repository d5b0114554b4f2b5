"""From safetensors weights to an ONNX graph, without torch."""

from asyncembed.export.architectures import is_exportable
from asyncembed.export.graph_cache import ensure_graph, find_graph

__all__ = ["ensure_graph", "find_graph", "is_exportable"]
