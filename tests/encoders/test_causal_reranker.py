"""Rerankers that are language models, against their authors' code.

See `tests/embedders/reference_language_models.py`.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncembed.catalogue.described import Overrides
from asyncembed.catalogue.pipeline import spec_from_directory
from asyncembed.encoders import build
from asyncembed.encoders.causal_reranker import CausalReranker
from asyncembed.encoders.encoder import Call, EncoderConfig
from asyncembed.encoders.settings import CausalRerankerSettings, read_settings
from asyncembed.errors import InputError, OptionError, UnsupportedModelError
from asyncembed.export.answers import read_answer
from asyncembed.export.graph_cache import ensure_graph

pytestmark = pytest.mark.slow

DATA = Path(__file__).parent.parent / "embedders" / "data"

TEMPLATES = {
    "qwen3_reranker": "qwen3-reranker",
    "mxbai_rerank": "mxbai-rerank-v2",
    "logit_score": None,
    "templated_classifier": None,
}


def reference(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((DATA / name / "reference.json").read_text("utf-8"))
    return values


def load(directory: Path, cache: Path, *, template: str | None = None, max_length: int | None = None) -> CausalReranker:
    spec = spec_from_directory(directory, family="cross_encoder", overrides=Overrides(template=template))
    settings = read_settings(CausalRerankerSettings, spec)
    head: Any = "scores" if settings.yes is None else read_answer(directory, settings.yes, settings.no)
    spec = replace(spec, model_file=str(ensure_graph(directory, head=head, cache_dir=cache)))
    encoder = build(EncoderConfig(spec=spec, directory=directory, max_length=max_length))
    assert isinstance(encoder, CausalReranker)
    return encoder


@pytest.mark.parametrize("name", TEMPLATES)
def test_scores_are_those_of_the_authors(name: str, tmp_path: Path) -> None:
    """With the default instruction and with one's own; the last pairs are over the limit."""
    expected = reference(name)
    encoder = load(DATA / name, tmp_path, template=TEMPLATES[name], max_length=expected["limit"])
    pairs = [tuple(pair) for pair in expected["pairs"]]
    for kind, instruction in (("plain", None), ("instructed", expected["instruction"])):
        encoded = encoder.encode(pairs, Call(mode="pair", instruction=instruction))
        np.testing.assert_allclose(encoded.results, expected[kind], atol=2e-5, rtol=0)
        counts, whole = (
            encoder.encode(pairs, Call(mode="count", instruction=instruction, truncated=truncated)).results
            for truncated in (True, False)
        )
        assert encoded.counts is not None
        assert list(map(abs, encoded.counts)) == counts
        assert [count < 0 for count in encoded.counts] == [count > expected["limit"] for count in whole]
        assert max(counts) == expected["limit"] < whole[-1]


@pytest.mark.parametrize("name", TEMPLATES)
def test_whole_pairs_are_counted_with_the_words_around_them(name: str, tmp_path: Path) -> None:
    encoder = load(DATA / name, tmp_path, template=TEMPLATES[name], max_length=reference(name)["limit"])
    cut, whole = (
        encoder.encode([("", ""), ("short", "long " * 2000)], Call(mode="count", truncated=truncated)).results
        for truncated in (True, False)
    )
    assert cut[0] == whole[0] >= encoder.info.special_tokens > 100
    assert cut[1] == encoder.info.max_length
    assert whole[1] > 2000


def test_a_pair_over_the_limit_fails_alone_where_none_may_be_cut(tmp_path: Path) -> None:
    encoder = load(DATA / "qwen3_reranker", tmp_path, template="qwen3-reranker", max_length=700)
    call = Call(mode="pair", long="error")
    encoded = encoder.encode([("a", "b"), ("a", "long " * 900), ("a", 3), ("a", "b")], call)
    assert {position: str(error) for position, error in encoded.failures.items()} == {
        1: 'longer than the model\'s limit of 700 tokens, and long="error"',
        2: "expected a string, got int",
    }
    assert all(isinstance(error, InputError) for error in encoded.failures.values())
    assert encoded.results[0] == encoded.results[3] != 0


def test_sigmoid_maps_a_score_to_the_probability_of_the_answer(tmp_path: Path) -> None:
    encoder = load(DATA / "logit_score", tmp_path)
    (score,) = encoder.encode([("a", "b")], Call(mode="pair")).results
    (probability,) = encoder.encode([("a", "b")], Call(mode="pair", activation="sigmoid")).results
    assert probability == pytest.approx(1 / (1 + np.exp(-score)), rel=1e-5)


@pytest.mark.parametrize("name", ["qwen3_reranker", "mxbai_rerank"])
def test_a_limit_without_room_for_a_pair_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"max_length=64 leaves no room for a pair: the words around it take \d+ tok"):
        load(DATA / name, tmp_path, template=TEMPLATES[name], max_length=64)


def test_a_graph_that_gives_all_logits_is_asked_for_those_of_the_last_token(tmp_path: Path) -> None:
    """As the graphs are that others have exported for writing texts."""
    directory = tmp_path / "repo"
    shutil.copytree(DATA / "qwen3_reranker", directory)
    write_logits_graph(directory)
    spec = spec_from_directory(directory, family="cross_encoder", overrides=Overrides(template="qwen3-reranker"))
    assert spec.model_file == "onnx/model.onnx"
    expected = reference("qwen3_reranker")
    encoder = build(EncoderConfig(spec=spec, directory=directory, max_length=700))
    encoded = encoder.encode([tuple(pair) for pair in expected["pairs"]], Call(mode="pair"))
    np.testing.assert_allclose(encoded.results, expected["plain"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("token", [-1, 10**6, "no such token"])
def test_an_answer_that_the_graph_has_no_logit_of_is_refused(token: int | str, tmp_path: Path) -> None:
    """Counted from the end, it would be another token's."""
    directory = tmp_path / "repo"
    shutil.copytree(DATA / "qwen3_reranker", directory)
    write_logits_graph(directory)
    spec = spec_from_directory(directory, family="cross_encoder", overrides=Overrides(template="qwen3-reranker"))
    for name in ("yes", "no"):
        asked = replace(spec, settings={**spec.settings, name: token})
        with pytest.raises(UnsupportedModelError, match=f"none of {token!r}, by which its score is told"):
            build(EncoderConfig(spec=asked, directory=directory, max_length=700))


@pytest.mark.parametrize("token", [-1, 2**31, 10**400, 1.5, "yes", True, [1]])
def test_a_module_whose_answer_is_no_id_is_refused(token: object, tmp_path: Path) -> None:
    directory = tmp_path / "repo"
    shutil.copytree(DATA / "logit_score", directory)
    (path,) = directory.glob("*/config.json")
    for name in ("true_token_id", "false_token_id"):
        said = {"true_token_id": 5, "false_token_id": 6, name: token}
        path.write_text(json.dumps(said), "utf-8")
        with pytest.raises(UnsupportedModelError, match="no usable true_token_id and false_token_id"):
            spec_from_directory(directory, family="cross_encoder")


def write_logits_graph(directory: Path) -> None:
    """The graph of the hidden states with the matrix of words after it."""
    import onnx

    from asyncembed.runtime.safetensors import read_tensors

    model = onnx.load(ensure_graph(directory, cache_dir=directory.parent / "cache"))
    words = read_tensors(directory / "model.safetensors")["model.embed_tokens.weight"]
    graph = model.graph
    graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(words.T), "words"))
    graph.node.append(onnx.helper.make_node("MatMul", ["last_hidden_state", "words"], ["logits"]))
    del graph.output[:]
    graph.output.append(onnx.helper.make_tensor_value_info("logits", 1, ["batch", "tokens", len(words)]))
    (directory / "onnx").mkdir()
    onnx.save(model, directory / "onnx" / "model.onnx")
