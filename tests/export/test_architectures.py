from pathlib import Path

import pytest

from asyncembed.errors import ModelLoadError, UnsupportedModelError
from asyncembed.export import ensure_graph, is_exportable
from asyncembed.export.architectures import ARCHITECTURES
from tests.export.conftest import DATA, Variant


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta", "camembert", "distilbert", "mpnet", "electra"])
def test_known_architectures_are_exportable(name: str) -> None:
    assert name in ARCHITECTURES
    assert is_exportable(DATA / name)


@pytest.mark.parametrize("name", ["modernbert", "t5", "", None, 3, ["bert"]])
def test_an_unknown_architecture_is_named_beside_the_known_ones(name: object, variant: Variant, tmp_path: Path) -> None:
    directory = variant("bert", model_type=name)
    with pytest.raises(UnsupportedModelError) as caught:
        ensure_graph(directory, cache_dir=tmp_path / "cache")
    assert repr(name) in str(caught.value)
    assert all(known in str(caught.value) for known in ARCHITECTURES)
    assert not is_exportable(directory)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00"])
def test_a_broken_config_is_a_load_error(text: str, variant: Variant, tmp_path: Path) -> None:
    directory = variant("bert")
    (directory / "config.json").write_text(text)
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        ensure_graph(directory, cache_dir=tmp_path / "cache")
    assert not is_exportable(directory)


def test_an_empty_directory_is_not_exportable(tmp_path: Path) -> None:
    assert not is_exportable(tmp_path)
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        ensure_graph(tmp_path, cache_dir=tmp_path / "cache")


def test_a_directory_without_safetensors_is_refused(variant: Variant, tmp_path: Path) -> None:
    directory = variant("bert")
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match=r"model\.safetensors"):
        ensure_graph(directory, cache_dir=tmp_path / "cache")
    assert not is_exportable(directory)
