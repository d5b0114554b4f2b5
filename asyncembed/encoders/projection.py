"""Linear layers after the pooling: sentence-transformers' module `Dense`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asyncembed.encoders.pooling import FloatArray
from asyncembed.errors import ModelLoadError, UnsupportedModelError
from asyncembed.repo_files import WEIGHTS, inside, read_object, shown


def sigmoid(values: FloatArray) -> FloatArray:
    """`1 / (1 + exp(-x))`, without overflow; the dtype stays."""
    # exp of a number that is not positive; the two halves of the curve mirror each other.
    small = np.exp(-np.abs(values))
    return np.where(values >= 0, 1 / (1 + small), small / (1 + small)).astype(values.dtype, copy=False)


ACTIVATIONS: Mapping[str, Callable[[FloatArray], FloatArray]] = {
    "torch.nn.modules.linear.Identity": lambda values: values,
    "torch.nn.modules.activation.Tanh": lambda values: np.tanh(values),
    "torch.nn.modules.activation.ReLU": lambda values: np.maximum(values, 0),
    "torch.nn.modules.activation.Sigmoid": sigmoid,
    "torch.nn.modules.activation.SiLU": lambda values: values * sigmoid(values),
}


@dataclass(frozen=True, slots=True)
class Projection:
    """`activation(vectors @ weight.T + bias)`: from (n, in) to (n, out), all float32."""

    weight: FloatArray
    bias: FloatArray | None
    activation: Callable[[FloatArray], FloatArray]

    def __call__(self, vectors: FloatArray) -> FloatArray:
        """Project (n, in) to (n, out).

        Raises:
            UnsupportedModelError: The vectors are of another length.
        """
        if vectors.shape[1] != self.weight.shape[1]:
            raise UnsupportedModelError(
                f"the model has vectors of length {vectors.shape[1]}, and a linear layer for those of length "
                f"{self.weight.shape[1]}"
            )
        values: FloatArray = vectors @ self.weight.T
        return self.activation(values if self.bias is None else values + self.bias)


def read_projections(directory: Path, folders: Sequence[str]) -> list[Projection]:
    """The layers in `folders`, in order.

    Raises:
        UnsupportedModelError: An activation that we do not know, or weights that are not safetensors.
        ModelLoadError: A file is missing or broken, or a folder lies elsewhere.
    """
    return [_read_projection(inside(directory, folder)) for folder in folders]


def _read_projection(folder: Path) -> Projection:
    model = str(folder.parent)
    if not (folder / "config.json").is_file():
        raise ModelLoadError(f"the linear layer in {folder} has no config.json", model=model)
    name = read_object(folder / "config.json").get("activation_function", "torch.nn.modules.activation.Tanh")
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"the activation {shown(name)} in {folder} is not supported; those that are: {', '.join(ACTIVATIONS)}",
            model=model,
        )
    if not (folder / WEIGHTS).is_file():
        raise UnsupportedModelError(
            f"the linear layer in {folder} has no model.safetensors; files of pickled Python are not read", model=model
        )
    weight, bias = _read_layer(folder / WEIGHTS)
    return Projection(weight, bias, ACTIVATIONS[name])


def _read_layer(path: Path) -> tuple[FloatArray, FloatArray | None]:
    """Weight (out, in) and bias (out,) of a linear layer."""
    from asyncembed.runtime.safetensors import read_tensors

    tensors = read_tensors(path)
    weight, bias = tensors.get("linear.weight"), tensors.get("linear.bias")
    if weight is None or weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        shapes = ", ".join(f"{shown(name)} {list(tensors.shape(name))}" for name in list(tensors)[:4])
        raise ModelLoadError(
            f"{path} is no linear layer, which has linear.weight (out, in) and maybe linear.bias (out), but {shapes}",
            model=str(path.parent.parent),
        )
    return weight.astype(np.float32), None if bias is None else bias.astype(np.float32)
