import json
from pathlib import Path

import numpy as np
import pytest

from asyncembed.encoders.projection import ACTIVATIONS, read_projections
from asyncembed.errors import ModelLoadError, UnsupportedModelError
from tests.support.safetensors_files import write_tensors

WEIGHT = np.array([[1, 2], [0, -1], [3, 0]], dtype=np.float32)
BIAS = np.array([0.5, 0, -1], dtype=np.float32)
VECTORS = np.array([[1, 1], [2, -1]], dtype=np.float32)
# WEIGHT times each vector, plus BIAS, by hand.
PROJECTED = np.array([[3.5, -1, 2], [0.5, 1, 5]], dtype=np.float32)


IDENTITY = "torch.nn.modules.linear.Identity"


def write_layer(folder: Path, *, activation: str, bias: bool = True, **more: bool) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"activation_function": activation, **more}), encoding="utf-8")
    tensors = {"linear.weight": WEIGHT} | ({"linear.bias": BIAS} if bias else {})
    write_tensors(folder / "model.safetensors", tensors)


EXPECTED = {
    "Identity": PROJECTED,
    "Tanh": np.tanh(PROJECTED),
    "ReLU": np.array([[3.5, 0, 2], [0.5, 1, 5]]),
    "Sigmoid": 1 / (1 + np.exp(-PROJECTED)),
    "SiLU": PROJECTED / (1 + np.exp(-PROJECTED)),
    "GELU": PROJECTED * [[0.99976737, 0.15865525, 0.97724987], [0.69146246, 0.84134475, 0.99999971]],
    "LeakyReLU": np.array([[3.5, -0.01, 2], [0.5, 1, 5]]),
    "ELU": np.array([[3.5, np.exp(-1) - 1, 2], [0.5, 1, 5]]),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_linear_layer_and_its_activation(activation: str, tmp_path: Path) -> None:
    write_layer(tmp_path / "2_Dense", activation=activation)
    (layer,) = read_projections(tmp_path, ("2_Dense",))
    result = layer(VECTORS)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, EXPECTED[activation.rsplit(".", 1)[1]], rtol=1e-6)


def test_layers_come_in_order_and_may_lack_a_bias(tmp_path: Path) -> None:
    write_layer(tmp_path / "2_Dense", activation="torch.nn.modules.linear.Identity", bias=False)
    (layer,) = read_projections(tmp_path, ["2_Dense"])
    np.testing.assert_allclose(layer(VECTORS), PROJECTED - BIAS)
    assert read_projections(tmp_path, ()) == []


def test_a_layer_may_add_its_input(tmp_path: Path) -> None:
    write_layer(tmp_path / "1", activation=IDENTITY, use_residual=True)
    write_tensors(tmp_path / "1" / "model.safetensors", {"linear.weight": WEIGHT, "residual.weight": 2 * WEIGHT})
    write_layer(tmp_path / "2", activation=IDENTITY, use_residual=True)
    square = np.array([[1, 2], [0, -1]], dtype=np.float32)
    write_tensors(tmp_path / "2" / "model.safetensors", {"linear.weight": square})
    other, same = read_projections(tmp_path, ("1", "2"))
    np.testing.assert_allclose(other(VECTORS), 3 * (PROJECTED - BIAS))
    np.testing.assert_allclose(same(VECTORS), VECTORS @ square.T + VECTORS)


def test_a_layer_that_lacks_what_adds_its_input_says_so(tmp_path: Path) -> None:
    write_layer(tmp_path / "1", activation=IDENTITY, use_residual=True)
    with pytest.raises(ModelLoadError, match=r"residual\.weight"):
        read_projections(tmp_path, ("1",))


def test_what_is_missing_or_unknown_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        read_projections(tmp_path, ("absent",))
    write_layer(tmp_path / "1", activation="mine.Swoosh")
    with pytest.raises(UnsupportedModelError, match=r"mine\.Swoosh"):
        read_projections(tmp_path, ("1",))
    write_layer(tmp_path / "2", activation="torch.nn.modules.linear.Identity")
    (tmp_path / "2" / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModelError, match=r"model\.safetensors"):
        read_projections(tmp_path, ("2",))
