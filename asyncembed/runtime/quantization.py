"""Does a graph quantise its activations while it runs?

Such a graph takes one scale for a whole tensor, hence for a whole batch: the result for a text then depends
on its neighbours (cosine down to 0.98). The answer is read from the ONNX file itself.
"""

from pathlib import Path

from asyncembed.runtime.onnx_file import read_onnx_file


def is_dynamically_quantized(path: Path) -> bool:
    """Whether the ONNX file at `path` has an operator that derives a scale from its input at run time.

    A file that is no ONNX model gives False: that is for the runtime to say.
    """
    return read_onnx_file(path).is_dynamically_quantized
