"""Linear layers on the vectors of a graph: sentence-transformers' module `Dense`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from asyncembed.encoders.pooling import FloatArray
from asyncembed.errors import ModelLoadError, UnsupportedModelError
from asyncembed.repo_files import WEIGHTS, inside, read_object, shown

if TYPE_CHECKING:
    from asyncembed.runtime.safetensors import Tensors


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
    """`activation(vectors @ weight.T + bias)`: from (n, in) to (n, out), all float32.

    Attributes:
        weight, bias: (out, in) and (out,).
        activation: Of each number.
        residual: What is added: nothing, the vectors, or their product with this weight (out, in).
    """

    weight: FloatArray
    bias: FloatArray | None = None
    activation: Callable[[FloatArray], FloatArray] = lambda values: values
    residual: FloatArray | Literal["vectors"] | None = None

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
        done = self.activation(values if self.bias is None else values + self.bias)
        if self.residual is None:
            return done
        return done + (vectors if isinstance(self.residual, str) else vectors @ self.residual.T)


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
    return _read_layer(folder / WEIGHTS, ACTIVATIONS[name], has_residual=config.get("use_residual") is True)


def read_inner_projection(*paths: Path) -> Projection:
    """The layer `linear.weight` that stands in the files of a model's weights, as ColBERT's authors save it.

    Raises:
        ModelLoadError: There is none.
    """
    from asyncembed.runtime.safetensors import read_tensors

    with read_tensors(*paths) as tensors:
        weight = tensors.get("linear.weight")
        if weight is None or weight.ndim != 2:
            raise ModelLoadError(
                f"{', '.join(map(str, paths))}: among the weights is no linear.weight (out, in), the layer of ColBERT",
                model=str(paths[0].parent) if paths else None,
            )
        return Projection(np.array(weight, dtype=np.float32))


def _read_layer(path: Path, activation: Callable[[FloatArray], FloatArray], *, has_residual: bool) -> Projection:
    from asyncembed.runtime.safetensors import read_tensors

    tensors = read_tensors(path)
    weight, bias = tensors.get("linear.weight"), tensors.get("linear.bias")
    if weight is None or weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        shapes = ", ".join(f"{shown(name)} {list(tensors.shape(name))}" for name in list(tensors)[:4])
        raise ModelLoadError(
            f"{path} is no linear layer, which has linear.weight (out, in) and maybe linear.bias (out), but {shapes}",
            model=str(path.parent.parent),
        )
    added: FloatArray | Literal["vectors"] | None = None
    if has_residual:
        added = "vectors" if weight.shape[0] == weight.shape[1] else _residual(path, tensors, weight.shape)
    return Projection(weight.astype(np.float32), None if bias is None else bias.astype(np.float32), activation, added)


def _residual(path: Path, tensors: "Tensors", shape: tuple[int, ...]) -> FloatArray:
    residual = tensors.get("residual.weight")
    if residual is None or residual.shape != shape:
        raise ModelLoadError(
            f"{path} has no residual.weight {list(shape)}, although its layer has a residual",
            model=str(path.parent.parent),
        )
    return residual.astype(np.float32)
