"""What holds for the graphs of all families: one planner, the budget of what came up, graphs made for one shape."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncembed.encoders import build, text_graph
from asyncembed.encoders.encoder import Call, EncoderConfig
from asyncembed.encoders.settings import GraphSettings
from asyncembed.encoders.text_graph import (
    ACCELERATOR_RUN_OVERHEAD_TOKENS,
    CPU_RUN_OVERHEAD_TOKENS,
    MicroBatch,
    Planner,
    TextGraph,
)
from asyncembed.encoders.tokenization import TextTokenizer
from asyncembed.errors import OptionError, UnsupportedModelError
from asyncembed.runtime.session import SessionOptions
from tests.support.images import encoded, picture, write_image_model
from tests.support.late_interaction import write_late_interaction_model
from tests.support.models import TEXTS, spec_for, write_model
from tests.support.multimodal import COLPALI_NAME, NAMES, write_multimodal_model
from tests.support.sparse_models import (
    BM42,
    IF_SPLADE,
    MINICOIL,
    RERANKER,
    SPLADE,
    catalogued,
    write_bm42,
    write_if_splade,
    write_minicoil,
    write_reranker,
    write_splade,
)
from tests.support.tokenizers import byte_level_bpe

# A provider that every onnxruntime has, that is not the CPU's, and that leaves all the work to it.
ELSEWHERE = SessionOptions(providers=(("AzureExecutionProvider", ()), ("CPUExecutionProvider", ())))
FIXED_LENGTH = 40


def load(spec: Any, directory: Path, **fields: Any) -> Any:
    return build(EncoderConfig(spec=spec, directory=directory, **fields))


def dense(directory: Path, **graph: Any) -> Any:
    return spec_for(write_model(directory, **graph), pooling="mean")


def left_padded(directory: Path, **graph: Any) -> Any:
    options = {"pad_token": "<pad>", "padding_side": "left"}
    write_model(directory, tokenizer=byte_level_bpe(), tokenizer_options=options, **graph)
    return spec_for(directory, pooling="last_token")


def late_interaction(directory: Path, **graph: Any) -> Any:
    return write_late_interaction_model(directory, "colbert-ir/colbertv2.0", **graph)


def sparse(name: str, write: Callable[..., Path]) -> Callable[..., Any]:
    def make(directory: Path, **graph: Any) -> Any:
        write(directory, **graph)
        return catalogued(name)

    return make


def reranker(directory: Path, **graph: Any) -> Any:
    write_reranker(directory, **graph)
    return catalogued(RERANKER, "cross_encoder")


TEXT_FAMILIES: dict[str, Callable[..., Any]] = {
    "dense": dense,
    "dense, padded on the left": left_padded,
    "late interaction": late_interaction,
    "splade": sparse(SPLADE, write_splade),
    "inference-free splade": sparse(IF_SPLADE, write_if_splade),
    "bm42": sparse(BM42, write_bm42),
    "minicoil": sparse(MINICOIL, write_minicoil),
    "reranker": reranker,
}


def results_of(encoder: Any, name: str, texts: Any = TEXTS) -> list[Any]:
    """The results as plain arrays, whatever the family."""
    if name == "reranker":
        return [np.array(score) for score in encoder.encode([(text, "the way") for text in texts], Call()).results]
    results = encoder.encode(texts, Call(mode="passage")).results
    return [getattr(result, "values", result) for result in results]


def assert_same(results: list[Any], expected: list[Any]) -> None:
    for result, right in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, right, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXT_FAMILIES)
def test_what_came_up_decides_the_budget_of_every_family(name: str, tmp_path: Path) -> None:
    spec = TEXT_FAMILIES[name](tmp_path)
    budgets = {"max_batch_tokens": 300, "accelerated_batch_tokens": 9000}
    on_cpu = load(spec, tmp_path, session=SessionOptions(device="cpu"), **budgets)
    results = results_of(on_cpu, name)
    elsewhere = load(spec, tmp_path, session=ELSEWHERE, **budgets)
    assert_same(results_of(elsewhere, name), results)
    # What is computed elsewhere is measured, within the bound of what may be.
    assert 0 < elsewhere.info.max_batch_tokens <= 9000
    assert elsewhere._graph.planner.max_tokens <= elsewhere.info.max_batch_tokens
    assert on_cpu.info.max_batch_tokens in (None, 300)
    assert on_cpu._graph.planner.max_tokens <= 300
    assert on_cpu._graph.planner.run_overhead_tokens == CPU_RUN_OVERHEAD_TOKENS


@pytest.mark.slow
def test_a_budget_that_was_asked_for_is_kept_elsewhere(tmp_path: Path) -> None:
    encoder = load(dense(tmp_path), tmp_path, session=ELSEWHERE, max_batch_tokens=300, accelerated_batch_tokens=None)
    assert encoder.info.max_batch_tokens == encoder._graph.planner.max_tokens == 300


class Watched(TextGraph):
    """A graph that says what was run."""

    seconds_for_a_new_shape = 0.0

    def run_text(self, ids: Any, mask: Any, **extra: Any) -> Any:
        shapes: list[tuple[int, ...]] = getattr(self, "shapes", [])
        if ids.shape not in shapes:
            sleep(self.seconds_for_a_new_shape)
        self.shapes: list[tuple[int, ...]] = [*shapes, ids.shape]
        assert mask.all()
        return super().run_text(ids, mask, **extra)


class Compiling(Watched):
    """One that is made for each shape anew, as TensorRT does it."""

    seconds_for_a_new_shape = 0.02


@pytest.mark.slow
def test_what_computes_elsewhere_is_measured_by_runs_of_one_text_and_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = dense(tmp_path)
    config = EncoderConfig(spec=spec, directory=tmp_path, session=ELSEWHERE, accelerated_batch_tokens=1024)
    graph = Watched(config, GraphSettings(), TextTokenizer(tmp_path))
    length, counts = graph.tokenizer.limit, sorted({shape[0] for shape in graph.shapes})
    assert {shape[1] for shape in graph.shapes} == {length}
    assert counts == [1, 2, 4, 8, 16][: len(counts)]
    assert len(counts) > 1
    assert graph.planner.max_tokens == graph.info.max_batch_tokens
    assert graph.planner.max_tokens in [count * length for count in counts]
    on_cpu = Watched(replace(config, session=SessionOptions(device="cpu")), GraphSettings(), TextTokenizer(tmp_path))
    assert not hasattr(on_cpu, "shapes"), "nothing is run there"
    monkeypatch.setattr(text_graph, "_COMPILING_SECONDS", 0.01)
    compiling = Compiling(config, GraphSettings(), TextTokenizer(tmp_path))
    assert {shape[0] for shape in compiling.shapes} == {1, 2}, "it is not compiled for more"
    assert compiling.planner.max_tokens == compiling.info.max_batch_tokens == 1024
    assert compiling.planner.run_overhead_tokens == ACCELERATOR_RUN_OVERHEAD_TOKENS


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_multimodal_models_are_planned_as_all_others(name: str, tmp_path: Path) -> None:
    spec = write_multimodal_model(tmp_path, name, dynamic_quantization=True)
    budgets = {"max_batch_tokens": 5000, "accelerated_batch_tokens": 9000}
    encoder = load(spec, tmp_path, session=SessionOptions(device="cpu"), **budgets)
    elsewhere = load(spec, tmp_path, session=ELSEWHERE, **budgets)
    assert elsewhere.info.max_batch_tokens == 9000
    assert elsewhere._graph.planner.run_overhead_tokens == ACCELERATOR_RUN_OVERHEAD_TOKENS
    images = [encoded(picture(*size), "PNG") for size in ((64, 200), (90, 90), (64, 200), (90, 91))]
    for inputs, mode in ((TEXTS, "query"), (images, "image")):
        call = Call(mode=mode)  # type: ignore[arg-type]
        together = encoder.encode(inputs, call).results
        alone = [encoder.encode([value], call).results[0] for value in inputs]
        for result, right in zip(together, alone, strict=True):
            np.testing.assert_array_equal(result, right)
        # And without being asked to be careful they do depend on their neighbours, so the above shows something.
        batched = load(spec, tmp_path, batch_invariant=False, **budgets).encode(inputs, call).results
        assert any(not np.array_equal(result, right) for result, right in zip(batched, alone, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [(None, FIXED_LENGTH), (3, None), (3, FIXED_LENGTH), (1, FIXED_LENGTH)])
@pytest.mark.parametrize("name", TEXT_FAMILIES)
def test_a_graph_made_for_one_shape_gives_the_results_of_one_for_any(
    name: str, fixed: tuple[int | None, int | None], tmp_path: Path
) -> None:
    spec = TEXT_FAMILIES[name](tmp_path / "any")
    limit = FIXED_LENGTH if fixed[1] else None
    expected = results_of(load(spec, tmp_path / "any", max_length=limit), name)
    spec = TEXT_FAMILIES[name](tmp_path / "fixed", fixed=fixed)
    encoder = load(spec, tmp_path / "fixed", max_batch_tokens=64)
    assert_same(results_of(encoder, name), expected)
    if limit:
        encoder.encode([("the", "way")] if name == "reranker" else ["the"], Call())
        assert (encoder._graph.fixed_length, encoder._graph.session.input_shape("input_ids")) == (limit, fixed)


def test_a_graph_of_one_length_lowers_the_limit_and_refuses_a_higher_one(tmp_path: Path) -> None:
    spec = dense(tmp_path, fixed=(None, FIXED_LENGTH))
    assert load(spec, tmp_path).info.max_length == FIXED_LENGTH
    assert load(spec, tmp_path, max_length=12).info.max_length == 12
    with pytest.raises(OptionError, match="max_length=41 is more than the 40 tokens that the graph was made for"):
        load(spec, tmp_path, max_length=41)


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXT_FAMILIES)
def test_no_family_computes_more_tokens_than_the_model_has_positions(name: str, tmp_path: Path) -> None:
    spec = TEXT_FAMILIES[name](tmp_path)
    # Enough for the queries of late interaction models.
    config = {"model_type": "xlm-roberta", "max_position_embeddings": 42}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for spec_limit in (None, 42, 512):
        encoder = load(replace(spec, max_length=spec_limit), tmp_path)
        text = "the way " * 100
        encoded = encoder.encode([(text, text)] if name == "reranker" else [text], Call(mode="passage"))
        assert encoded.tokens == encoder.info.max_length == 40


def test_graphs_of_one_shape_that_cannot_run_say_so_in_a_sentence(tmp_path: Path) -> None:
    spec = dense(tmp_path / "no mask", fixed=(None, FIXED_LENGTH), mask=False)
    with pytest.raises(UnsupportedModelError, match=r"exactly 40 tokens and no attention_mask.*export it"):
        load(spec, tmp_path / "no mask")
    spec = write_multimodal_model(tmp_path / "both", COLPALI_NAME, fixed=(None, FIXED_LENGTH))
    with pytest.raises(UnsupportedModelError, match="exactly 40 tokens, but texts and images"):
        load(spec, tmp_path / "both")
    spec = late_interaction(tmp_path / "queries", fixed=(None, 20))
    with pytest.raises(UnsupportedModelError, match=r"exactly 20 tokens, but a query of this model has at least 3\d"):
        load(spec, tmp_path / "queries")


def test_a_graph_of_one_length_without_a_mask_runs_where_the_model_pads_to_its_limit(tmp_path: Path) -> None:
    settings = {"pad_to_limit": True}
    for name, fixed in (("any", None), ("fixed", 64)):
        write_model(tmp_path / name, mask=False, outputs=("pooler_output",), fixed=(None, fixed))
    texts = ["the way", "of it"]
    vectors = [
        load(spec_for(tmp_path / name, settings=settings), tmp_path / name).encode(texts, Call()).results
        for name in ("any", "fixed")
    ]
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_multimodal_graphs_of_one_batch_size_run(name: str, tmp_path: Path) -> None:
    images = [encoded(picture(*size), "PNG") for size in ((64, 200), (90, 90), (64, 200), (64, 200), (64, 200))]
    specs = {fixed: write_multimodal_model(tmp_path / str(fixed), name, fixed=(fixed, None)) for fixed in (None, 3)}
    for inputs, mode in ((TEXTS, "query"), (images, "image")):
        call = Call(mode=mode)  # type: ignore[arg-type]
        expected, results = (
            load(spec, tmp_path / str(fixed)).encode(inputs, call).results for fixed, spec in specs.items()
        )
        assert_same(list(results), list(expected))


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [(1, 224), (4, None), (2, 224)])
def test_image_graphs_of_one_shape_run(fixed: tuple[int | None, int | None], tmp_path: Path) -> None:
    images = [encoded(picture(*size), "PNG") for size in ((64, 200), (90, 90), (300, 227), (90, 90), (31, 40))]
    expected = load(write_image_model(tmp_path / "any"), tmp_path / "any").encode(images, Call()).results
    spec = write_image_model(tmp_path / "fixed", fixed=fixed)
    for threads in (1, 2):
        encoder = load(spec, tmp_path / "fixed", session=SessionOptions(threads=threads))
        np.testing.assert_allclose(encoder.encode(images, Call()).results, expected, atol=1e-6)


def test_an_image_graph_of_another_size_says_so_in_a_sentence(tmp_path: Path) -> None:
    spec = write_image_model(tmp_path, fixed=(None, 336))
    with pytest.raises(UnsupportedModelError, match=r"images of shape \(3, 336, 336\) only.*makes them 224x224"):
        load(spec, tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"do_resize": false}', encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match="as large as they come"):
        load(spec, tmp_path)


def test_a_graph_of_one_batch_size_runs_as_seldom_as_it_can(tmp_path: Path) -> None:
    """Each run costs the whole batch, so that padding is cheaper than another run."""
    spec = dense(tmp_path, fixed=(4, None))
    config = EncoderConfig(spec=spec, directory=tmp_path, max_batch_tokens=32)
    graph = TextGraph(config, GraphSettings(), TextTokenizer(tmp_path))
    assert [len(run.rows) for run in graph.runs([[5] * length for length in (60, 2, 2, 2)])] == [4]
    assert len(graph.runs([[5] * 60] * 9)) == 3


# ---------------------------------------------------------------- which inputs run together

LENGTHS = st.lists(st.integers(1, 60), max_size=40)


@given(LENGTHS, st.integers(1, 200), st.one_of(st.none(), st.integers(1, 10)), st.integers(0, 50))
def test_every_input_runs_once_and_within_the_bounds(
    lengths: list[int], max_tokens: int, max_size: int | None, overhead: int
) -> None:
    runs = Planner(max_tokens=max_tokens, max_size=max_size, run_overhead_tokens=overhead).plan(lengths)
    assert sorted(itertools.chain.from_iterable(run.rows for run in runs)) == list(range(len(lengths)))
    for run in runs:
        assert run.length == max(lengths[row] for row in run.rows)
        assert len(run.rows) == 1 or run.length * len(run.rows) <= max_tokens
        assert max_size is None or len(run.rows) <= max_size


@given(st.lists(st.integers(1, 30), max_size=7), st.integers(1, 80), st.integers(0, 40))
def test_no_other_cut_costs_less(lengths: list[int], max_tokens: int, overhead: int) -> None:
    runs = Planner(max_tokens=max_tokens, run_overhead_tokens=overhead).plan(lengths)
    ordered = sorted(lengths, reverse=True)

    def least(remaining: list[int]) -> int:
        if not remaining:
            return 0
        return min(
            overhead + remaining[0] * count + least(remaining[count:])
            for count in range(1, len(remaining) + 1)
            if count == 1 or remaining[0] * count <= max_tokens
        )

    assert sum(overhead + run.length * len(run.rows) for run in runs) == least(ordered)


def test_an_input_over_the_budget_runs_alone() -> None:
    assert Planner(max_tokens=100).plan([3, 900, 3]) == [
        MicroBatch((1,), 900),
        MicroBatch((0, 2), 3),
    ]


def test_inputs_of_one_length_keep_their_order_and_fill_the_budget() -> None:
    runs = Planner(max_tokens=20).plan([10] * 5)
    assert [row for run in runs for row in run.rows] == [0, 1, 2, 3, 4]
    assert len(runs) == 3


@pytest.mark.parametrize(("overhead", "count"), [(0, 3), (1000, 1)])
def test_a_costly_run_is_worth_some_padding(overhead: int, count: int) -> None:
    assert len(Planner(max_tokens=100, run_overhead_tokens=overhead).plan([10, 11, 12])) == count


def test_long_inputs_run_by_what_they_cost() -> None:
    """On an accelerator two texts of 8,192 tokens would be within the budget by their tokens."""
    planner = Planner(max_tokens=16384, run_overhead_tokens=1024, attention_tokens=3072)
    assert [run.rows for run in planner.plan([8192, 8192])] == [(0,), (1,)]
    assert [run.rows for run in planner.plan([4096, 3900, 4096])] == [(0, 2), (1,)]
    assert len(planner.plan([512] * 32)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "expected"), [({"hidden_size": 384}, 1536), ({"text_config": {"d_model": 64}}, 256), (None, None)]
)
def test_what_attention_costs_is_told_by_the_width_of_the_model(
    config: dict[str, Any] | None, expected: int | None, tmp_path: Path
) -> None:
    spec = dense(tmp_path)
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    encoder = load(spec, tmp_path)
    assert encoder.info.attention_tokens == encoder._graph.planner.attention_tokens == expected
