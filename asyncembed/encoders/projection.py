"""Linear layers after the pooling: sentence-transformers' module `Dense`."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asyncembed.encoders.pooling import FloatArray
from asyncembed.errors import ModelLoadError, UnsupportedModelError


def _sigmoid(values: FloatArray) -> FloatArray:
    # By way of tanh, since exp overflows for large negative values.
    half = np.float32(0.5)
    result: FloatArray = half + half * np.tanh(half * values)
    return result


ACTIVATIONS: Mapping[str, Callable[[FloatArray], FloatArray]] = {
    "torch.nn.modules.linear.Identity": lambda values: values,
    "torch.nn.modules.activation.Tanh": lambda values: np.tanh(values),
    "torch.nn.modules.activation.ReLU": lambda values: np.maximum(values, 0),
    "torch.nn.modules.activation.Sigmoid": _sigmoid,
    "torch.nn.modules.activation.SiLU": lambda values: values * _sigmoid(values),
}


@dataclass(frozen=True, slots=True)
class Projection:
    """`activation(vectors @ weight.T + bias)`: from (n, in) to (n, out), all float32."""

    weight: FloatArray
    bias: FloatArray | None
    activation: Callable[[FloatArray], FloatArray]

    def __call__(self, vectors: FloatArray) -> FloatArray:
        """Project (n, in) to (n, out)."""
        values: FloatArray = vectors @ self.weight.T
        return self.activation(values if self.bias is None else values + self.bias)


def read_projections(directory: Path, settings: Mapping[str, object]) -> list[Projection]:
    """The layers in the folders that `settings["projections"]` lists, in order.

    Raises:
        UnsupportedModelError: An activation that we do not know, or weights that are not safetensors.
        ModelLoadError: A file is broken.
    """
    folders = settings.get("projections", ())
    assert isinstance(folders, tuple | list)
    return [_read_projection(directory / str(folder)) for folder in folders]


def _read_projection(folder: Path) -> Projection:
    from asyncembed.runtime.safetensors import read_tensors

    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot read {folder / 'config.json'}: {error}", model=str(folder.parent)) from error
    name = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if name not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"the activation {name} in {folder} is not supported; those that are: {', '.join(ACTIVATIONS)}",
            model=str(folder.parent),
        )
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UnsupportedModelError(
            f"the linear layer in {folder} has no model.safetensors; files of pickled Python are not read",
            model=str(folder.parent),
        )
    tensors = read_tensors(weights)
    bias = tensors["linear.bias"].astype(np.float32) if "linear.bias" in tensors else None
    return Projection(tensors["linear.weight"].astype(np.float32), bias, ACTIVATIONS[name])
