"""Linear layers on the vectors of a graph: sentence-transformers' module `Dense`."""

import math
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


_erf = np.frompyfunc(math.erf, 1, 1)


def gelu(values: FloatArray) -> FloatArray:
    """`x · Φ(x)` with the exact normal distribution (Hendrycks and Gimpel 2016); the dtype stays."""
    doubled = 1 + np.asarray(_erf(values / math.sqrt(2)), np.float64)
    return np.asarray(values * doubled / 2, values.dtype)


ACTIVATIONS: Mapping[str, Callable[[FloatArray], FloatArray]] = {
    "torch.nn.modules.linear.Identity": lambda values: values,
    "torch.nn.modules.activation.Tanh": lambda values: np.tanh(values),
    "torch.nn.modules.activation.ReLU": lambda values: np.maximum(values, 0),
    "torch.nn.modules.activation.Sigmoid": sigmoid,
    "torch.nn.modules.activation.SiLU": lambda values: values * sigmoid(values),
    "torch.nn.modules.activation.GELU": gelu,
    "torch.nn.modules.activation.LeakyReLU": lambda values: np.where(values > 0, values, values * np.float32(0.01)),
    "torch.nn.modules.activation.ELU": lambda values: np.where(values > 0, values, np.expm1(np.minimum(values, 0))),
}


@dataclass(frozen=True, slots=True)
class Projection:
    """`activation(vectors @ weight.T + bias)`, plus what passes it by: from (n, in) to (n, out), all float32.

    Attributes:
        passes_by: Whether the vectors themselves are added to the result.
        residual: Or what is made of them: its product with `residual`.T.
    """

    weight: FloatArray
    bias: FloatArray | None
    activation: Callable[[FloatArray], FloatArray]
    passes_by: bool = False
    residual: FloatArray | None = None

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
        result = self.activation(values if self.bias is None else values + self.bias)
        if not self.passes_by:
            return result
        return result + (vectors if self.residual is None else vectors @ self.residual.T)


def read_projections(directory: Path, folders: Sequence[str]) -> list[Projection]:
    """The layers in `folders`, in order.

    Raises:
        UnsupportedModelError: An activation that we do not know, or weights that are not safetensors.
        ModelLoadError: A file is missing or broken, or a folder lies elsewhere.
    """
    return [_read_projection(inside(directory, folder)) for folder in folders]


def read_inner_projection(*paths: Path) -> Projection:
    """The layer `linear.weight` that stands in the files of a model's weights, as ColBERT's authors save it.

    Raises:
        ModelLoadError: There is none.
    """
    from asyncembed.runtime.safetensors import read_tensors

    with read_tensors(*paths) as tensors:
        found = tensors.get("linear.weight")
        weight = None if found is None or found.ndim != 2 else np.array(found, dtype=np.float32)
    if weight is None:
        files = ", ".join(map(str, paths))
        raise ModelLoadError(f"among the weights in {files} is no linear.weight (out, in), the layer of ColBERT")
    return Projection(weight, None, ACTIVATIONS["torch.nn.modules.linear.Identity"])


def _read_projection(folder: Path) -> Projection:
    model = str(folder.parent)
    if not (folder / "config.json").is_file():
        raise ModelLoadError(f"the linear layer in {folder} has no config.json", model=model)
    config = read_object(folder / "config.json")
    name = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"the activation {shown(name)} in {folder} is not supported; those that are: {', '.join(ACTIVATIONS)}",
            model=model,
        )
    if not (folder / WEIGHTS).is_file():
        raise UnsupportedModelError(
            f"the linear layer in {folder} has no model.safetensors; files of pickled Python are not read", model=model
        )
    return _read_layer(folder / WEIGHTS, ACTIVATIONS[name], passes_by=bool(config.get("use_residual")))


def _read_layer(path: Path, activation: Callable[[FloatArray], FloatArray], *, passes_by: bool) -> Projection:
    """A linear layer with weight (out, in) and bias (out,)."""
    from asyncembed.runtime.safetensors import read_tensors

    tensors = read_tensors(path)
    weight, bias, residual = map(tensors.get, ("linear.weight", "linear.bias", "residual.weight"))
    if (
        weight is None
        or weight.ndim != 2
        or (bias is not None and bias.shape != weight.shape[:1])
        or (passes_by and (residual is None) != (weight.shape[0] == weight.shape[1]))
        or (residual is not None and residual.shape != weight.shape)
    ):
        shapes = ", ".join(f"{shown(name)} {list(tensors.shape(name))}" for name in list(tensors)[:4])
        raise ModelLoadError(
            f"{path} is no linear layer, which has linear.weight (out, in), maybe linear.bias (out), and where it adds "
            f"its input to a result of another size, residual.weight (out, in), but {shapes}",
            model=str(path.parent.parent),
        )
    others = (None if array is None else array.astype(np.float32) for array in (bias, residual))
    bias, residual = others
    return Projection(weight.astype(np.float32), bias, activation, passes_by, residual)
