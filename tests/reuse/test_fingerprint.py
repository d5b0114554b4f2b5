"""Which bytes make a model's vectors: the same wherever they lie, another one when any of them changes."""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import asyncembed.sync
from asyncembed import ImageEmbedding, TextCrossEncoder, TextEmbedding
from asyncembed.encoders.encoder import Call, EncoderConfig
from asyncembed.errors import StateError
from asyncembed.reuse.fingerprint import call_words, fingerprint_of, model_digest
from asyncembed.runtime.session import SessionOptions
from asyncembed.testing import fake_model
from tests.support.models import spec_for, write_model, write_self_describing_model


def digest(directory: Path, cache: Path, **fields: Any) -> str:
    return model_digest(EncoderConfig(spec=spec_for(directory, **fields), directory=directory), cache)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def test_it_is_the_same_wherever_the_files_lie_and_whatever_the_model_is_called(written: Path, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(written, tmp_path / "elsewhere")
    (elsewhere / "README.md").write_text("of another tool", "utf-8")
    assert digest(written, tmp_path / "a") == digest(elsewhere, tmp_path / "b", name="other/name", description="new")


def change_graph(directory: Path) -> None:
    write_model(directory, seed=1)


def change_tokenizer(directory: Path) -> None:
    path = directory / "tokenizer.json"
    path.write_text(path.read_text("utf-8").replace('"##', '"@@', 1), "utf-8")


@pytest.mark.parametrize("change", [change_graph, change_tokenizer])
def test_a_changed_file_is_seen(written: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    before = digest(written, tmp_path)
    change(written)
    assert digest(written, tmp_path) != before


OTHERS: Mapping[str, Mapping[str, Any]] = {
    "pooling": {"pooling": "mean"},
    "normalisation": {"normalize": True},
    "prompts": {"prompts": {"query": "query: "}},
    "limit": {"max_length": 7},
    "settings": {"settings": {"folder": ""}},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_what_is_done_with_the_files_is_seen(written: Path, tmp_path: Path, other: Mapping[str, Any]) -> None:
    assert digest(written, tmp_path, **other) != digest(written, tmp_path)


def test_computing_in_bfloat16_is_seen(written: Path, tmp_path: Path) -> None:
    """Of the same file: OpenVINO's `precision="bf16"`."""
    config = EncoderConfig(spec=spec_for(written), directory=written)
    seen = {
        model_digest(replace(config, session=SessionOptions(runtime="openvino", bfloat16=is_coarse)), tmp_path)
        for is_coarse in (False, True)
    }
    assert len(seen) == 2
    assert model_digest(config, tmp_path) in seen


@pytest.mark.posix
def test_a_large_file_of_the_hubs_cache_is_known_by_its_name(written: Path, tmp_path: Path) -> None:
    """Its bytes were verified when they came; here they are others, so that reading them would show."""
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("0" * 40)
    blobs = tmp_path / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    snapshot.parent.mkdir()
    shutil.copytree(written, snapshot)
    seen = []
    for content, name in ((b"one", "a" * 64), (b"other", "a" * 64), (b"other", "b" * 64), (b"one", "a" * 40)):
        (blobs / name).write_bytes(content)
        graph = snapshot / "onnx" / "model.onnx"
        graph.unlink()
        graph.symlink_to(os.path.relpath(blobs / name, graph.parent))
        seen.append(digest(snapshot, tmp_path / "known"))
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3


def test_a_call_is_told_by_what_it_asks_besides() -> None:
    assert call_words(Call()) == ""
    assert call_words(Call(mode="query", prompt="say: ")) == "mode='query' prompt='say: '"
    assert fingerprint_of("digest", [Call(mode="query")]) != fingerprint_of("digest", [Call(mode="passage")])


async def test_an_open_model_has_one(tmp_path: Path) -> None:
    directory = write_self_describing_model(tmp_path / "model")
    with pytest.raises(StateError):
        _ = TextEmbedding(directory).fingerprint
    seen: dict[str, str] = {}
    others: dict[str, dict[str, Any]] = {
        "plain": {},
        "again": {"max_batch_size": 3, "deduplicate": False},
        "cached": {"cache": tmp_path / "cache"},
        "prompts": {"prompts": {"query": "say: "}},
        "shorter": {"truncate_dim": 4},
        "half": {"dtype": "float16"},
        "cut": {"max_length": 8},
        "pooling": {"pooling": "cls"},
    }
    for name, options in others.items():
        async with TextEmbedding(directory, workers=0, cache_dir=tmp_path / "hub", **options) as model:
            seen[name] = model.fingerprint
    assert all(len(one) == 20 and int(one, 16) for one in seen.values())
    assert seen["plain"] == seen["again"] == seen["cached"]
    assert len(set(seen.values())) == len(seen) - 2


async def test_a_limit_that_is_said_counts_where_it_is_another_one(tmp_path: Path) -> None:
    directory = write_self_describing_model(tmp_path / "model")
    (directory / "sentence_bert_config.json").write_text('{"max_seq_length": 12}', encoding="utf-8")
    seen: list[str] = []
    for limit in (None, 12, 11):
        async with TextEmbedding(directory, workers=0, cache_dir=tmp_path / "hub", max_length=limit) as model:
            seen.append(model.fingerprint)
    assert seen[0] == seen[1] != seen[2]


async def test_fakes_have_one_each() -> None:
    async with (
        TextEmbedding(fake_model(dim=4)) as model,
        TextEmbedding(fake_model(dim=4)) as other,
        TextEmbedding(fake_model(dim=5)) as larger,
        ImageEmbedding(fake_model("image")) as images,
        TextCrossEncoder(fake_model("cross_encoder")) as reranker,
    ):
        assert model.fingerprint == other.fingerprint
        assert len({model.fingerprint, larger.fingerprint, images.fingerprint, reranker.fingerprint}) == 4


def test_programs_without_a_loop_ask_for_it_as_well() -> None:
    with asyncembed.sync.TextEmbedding(fake_model(dim=4)) as model:
        assert len(model.fingerprint) == 20


async def test_a_lazy_model_has_one_when_it_is_loaded(tmp_path: Path) -> None:
    async with TextEmbedding(fake_model(dim=4), lazy=True, cache=tmp_path / "cache") as model:
        with pytest.raises(StateError, match="first call"):
            _ = model.fingerprint
        await model.embed_query("text")
        assert len(model.fingerprint) == 20
        await model.embed_query("text")
        assert model.stats().cache_hits == 1
