"""From safetensors weights to an ONNX graph, without torch: `graph_cache` is what others call."""
