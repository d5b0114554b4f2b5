"""The dense encoder against fastembed on the same small directories, and where it goes further than that."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
from fastembed.text.custom_text_embedding import CustomTextEmbedding
from tokenizers import processors

from asyncembed.catalogue.lookup import require_model
from asyncembed.catalogue.spec import ModelSpec, Pooling
from asyncembed.encoders import build
from asyncembed.encoders.encoder import Call, Encoder, EncoderConfig
from asyncembed.encoders.tokenization import TextTokenizer
from asyncembed.errors import OptionError, UnsupportedModelError
from asyncembed.runtime.onnx import OnnxSession
from asyncembed.runtime.session import Array, SessionOptions
from tests.support.graphs import DIM
from tests.support.models import MODEL_FILE, TEXTS, spec_for, write_model
from tests.support.safetensors_files import write_tensors
from tests.support.tokenizers import byte_level_bpe, unigram

TOLERANCE = 1e-5

LEFT_PADDED: dict[str, Any] = {
    "tokenizer": byte_level_bpe(),
    "tokenizer_options": {"pad_token": "<pad>", "padding_side": "left"},
    "token_types": False,
}

# One model of the catalogue per implementation of fastembed, with a small directory of the right shape.
CATALOGUED: dict[str, dict[str, Any]] = {
    "BAAI/bge-small-en-v1.5": {},
    "jinaai/jina-clip-v1": {"outputs": ("text_embeds",), "token_types": False},
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2": {
        "tokenizer": unigram(),
        "tokenizer_options": {"pad_token": "<pad>"},
    },
    "sentence-transformers/all-MiniLM-L6-v2": {},
    "jinaai/jina-embeddings-v3": {"task_count": 5},
    "google/embeddinggemma-300m": {"outputs": ("last_hidden_state", "sentence_embedding")},
    "Qwen/Qwen3-Embedding-0.6B": LEFT_PADDED,
    "Qdrant/clip-ViT-B-32-text": {"outputs": ("text_embeds",)},
    "google/siglip2-base-patch16-224": {"outputs": ("last_hidden_state", "pooler_output"), "mask": False},
}


def encoder_for(spec: ModelSpec, directory: Path, **fields: Any) -> Encoder:
    return build(EncoderConfig(spec=spec, directory=directory, session=SessionOptions(device="cpu"), **fields))


def small_encoder(directory: Path, *, config: dict[str, Any] | None = None, **fields: Any) -> Encoder:
    return encoder_for(spec_for(directory, **fields), directory, **(config or {}))


def stacked(results: Iterable[Array]) -> Array:
    return np.stack(list(results))


def vectors(encoder: Encoder, texts: Sequence[object] = TEXTS, **call: Any) -> Array:
    encoded = encoder.encode(texts, Call(**call))
    assert not encoded.failures
    assert isinstance(encoded.results, np.ndarray)
    return encoded.results


def first_tokens(*, encoder_directory: Path, text: str, count: int) -> Array:
    """The sum of the first hidden states of `text`, straight from the graph."""
    tokenizer = TextTokenizer(encoder_directory)
    ids, mask = tokenizer.pad([encoding.ids for encoding in tokenizer.encode([text]).values])
    session = OnnxSession(encoder_directory / MODEL_FILE, SessionOptions(device="cpu"))
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids * 0}
    states = session.run(["last_hidden_state"], feeds)[0]
    total: Array = states[:, :count].sum(axis=1)
    return total


def one_by_one(encoder: Encoder, **call: Any) -> Array:
    return np.concatenate([vectors(encoder, [text], **call) for text in TEXTS])


@pytest.mark.slow
@pytest.mark.parametrize("name", CATALOGUED)
def test_vectors_are_those_of_fastembed_in_batches_and_alone(name: str, tmp_path: Path) -> None:
    catalogued = require_model(name, "text")
    assert catalogued.model_file is not None
    write_model(tmp_path, model_file=catalogued.model_file, **CATALOGUED[name])
    theirs = TextEmbedding(name, specific_model_path=str(tmp_path), cuda=False)
    fields = {field: getattr(catalogued, field) for field in ModelSpec.__dataclass_fields__} | {"dim": DIM}
    ours = encoder_for(ModelSpec(**fields), tmp_path)
    expected = stacked(theirs.embed(TEXTS))
    np.testing.assert_allclose(vectors(ours), expected, atol=TOLERANCE)
    np.testing.assert_allclose(one_by_one(ours), expected, atol=TOLERANCE)
    queries = stacked(theirs.query_embed(TEXTS))
    np.testing.assert_allclose(vectors(ours, mode="query"), queries, atol=TOLERANCE)
    passages = stacked(theirs.passage_embed(TEXTS))
    np.testing.assert_allclose(vectors(ours, mode="passage"), passages, atol=TOLERANCE)
    assert sum(ours.encode(TEXTS, Call(mode="count")).results) == theirs.token_count(list(TEXTS))


@pytest.fixture
def _no_custom_models_afterwards() -> Iterator[None]:
    yield
    CustomTextEmbedding.SUPPORTED_MODELS.clear()
    CustomTextEmbedding.POSTPROCESSING_MAPPING.clear()


@pytest.mark.slow
@pytest.mark.usefixtures("_no_custom_models_afterwards")
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("theirs", "ours", "graph"),
    [
        (PoolingType.CLS, "cls", {}),
        (PoolingType.MEAN, "mean", {"dtype": "float16"}),
        (PoolingType.LAST_TOKEN, "last_token", LEFT_PADDED),
        (PoolingType.DISABLED, "none", {"outputs": ("sentence_embedding",)}),
    ],
)
def test_custom_models_are_those_of_fastembed(
    theirs: PoolingType, ours: Pooling, graph: dict[str, Any], normalize: bool, tmp_path: Path
) -> None:
    write_model(tmp_path, **graph)
    TextEmbedding.add_custom_model(
        "tests/custom", theirs, normalize, ModelSource(hf="tests/custom"), DIM, model_file=MODEL_FILE
    )
    reference = TextEmbedding("tests/custom", specific_model_path=str(tmp_path), cuda=False)
    expected = stacked(reference.embed(TEXTS))
    encoder = small_encoder(tmp_path, pooling=ours, normalize=normalize)
    # Half precision has steps of 2^-10; fastembed rounds its result to them, we keep float32.
    tolerance = 2**-10 * np.abs(expected).max() if graph.get("dtype") == "float16" else TOLERANCE
    assert vectors(encoder).dtype == np.float32
    np.testing.assert_allclose(vectors(encoder), expected, atol=tolerance)
    np.testing.assert_allclose(one_by_one(encoder), expected, atol=tolerance)


def test_a_batch_equals_its_texts_one_by_one_for_every_pooling(tmp_path: Path) -> None:
    write_model(tmp_path, **LEFT_PADDED)
    poolings: list[Pooling] = ["cls", "mean", "max", "weighted_mean", "mean_sqrt_len", "last_token"]
    for pooling in poolings:
        encoder = small_encoder(tmp_path, pooling=pooling, config={"max_batch_tokens": 60})
        np.testing.assert_allclose(vectors(encoder), one_by_one(encoder), atol=TOLERANCE)


def test_a_graph_that_cannot_tell_padding_gets_none(tmp_path: Path) -> None:
    write_model(tmp_path, mask=False)
    encoder = small_encoder(tmp_path, pooling="last_token")
    np.testing.assert_allclose(vectors(encoder), one_by_one(encoder), atol=TOLERANCE)


def test_a_dynamically_quantised_graph_runs_its_texts_one_by_one(tmp_path: Path) -> None:
    write_model(tmp_path, dynamic_quantization=True)
    invariant = small_encoder(tmp_path, pooling="mean", normalize=True)
    np.testing.assert_array_equal(vectors(invariant), one_by_one(invariant))
    batched = small_encoder(tmp_path, pooling="mean", normalize=True, config={"batch_invariant": False})
    assert np.abs(vectors(batched) - one_by_one(batched)).max() > 1e-4


def test_a_dynamically_quantised_graph_gives_the_vectors_of_fastembed_one_by_one(tmp_path: Path) -> None:
    name = "nomic-ai/nomic-embed-text-v1.5-Q"
    catalogued = require_model(name, "text")
    assert catalogued.model_file is not None
    write_model(tmp_path, model_file=catalogued.model_file, dynamic_quantization=True)
    theirs = TextEmbedding(name, specific_model_path=str(tmp_path), cuda=False)
    ours = small_encoder(tmp_path, model_file=catalogued.model_file, pooling="mean")
    np.testing.assert_allclose(vectors(ours), stacked(theirs.embed(TEXTS, batch_size=1)), atol=TOLERANCE)


def test_an_empty_text_without_markers_still_has_a_vector(tmp_path: Path) -> None:
    tokenizer = byte_level_bpe()
    tokenizer.post_processor = processors.ByteLevel()
    write_model(tmp_path, tokenizer=tokenizer, tokenizer_options={"pad_token": "<pad>"})
    for pooling in ("mean", "last_token"):
        encoder = small_encoder(tmp_path, pooling=pooling)
        assert np.isfinite(vectors(encoder)).all()
        np.testing.assert_allclose(vectors(encoder), one_by_one(encoder), atol=TOLERANCE)


def test_results_own_their_memory_and_count_their_tokens(tmp_path: Path) -> None:
    write_model(tmp_path)
    encoded = small_encoder(tmp_path, pooling="cls").encode(TEXTS, Call())
    assert isinstance(encoded.results, np.ndarray)
    assert encoded.results.flags.c_contiguous
    assert encoded.results.flags.owndata
    assert encoded.tokens == 8 + 2 + 3 + 26 + 10 + 6 + 64
    assert encoded.padded_tokens >= encoded.tokens


def test_wrong_texts_fail_alone_and_leave_the_others_in_their_places(tmp_path: Path) -> None:
    write_model(tmp_path)
    encoder = small_encoder(tmp_path, pooling="mean")
    encoded = encoder.encode(["the", 5, "way", "a\udc00", "the " * 100], Call(long="error"))
    assert set(encoded.failures) == {1, 3, 4}
    assert isinstance(encoded.results, np.ndarray)
    assert encoded.results.shape == (5, DIM)
    np.testing.assert_allclose(encoded.results[[0, 2]], vectors(encoder, ["the", "way"]), atol=TOLERANCE)
    assert vectors(encoder, []).shape == (0, DIM)
    assert encoder.encode([None], Call()).failures.keys() == {0}


def test_what_cannot_be_tokenized_counts_nothing(tmp_path: Path) -> None:
    write_model(tmp_path)
    encoder = small_encoder(tmp_path, pooling="mean")
    assert encoder.encode(["", None, "the way"], Call(mode="count")).results == [2, 0, 4]


def test_a_prompt_comes_before_the_text_and_may_be_left_out_of_the_pooling(tmp_path: Path) -> None:
    write_model(tmp_path)
    encoder = small_encoder(tmp_path, pooling="mean")
    prompted = vectors(encoder, ["a day"], prompt="the way ")
    np.testing.assert_allclose(prompted, vectors(encoder, ["the way a day"]), atol=TOLERANCE)
    without = small_encoder(tmp_path, pooling="mean", settings={"include_prompt": False})
    # The mean over "the way a day" with its markers is that of 6 tokens; the first three of them do not count
    # now.
    np.testing.assert_allclose(
        vectors(without, ["a day"], prompt="the way ") * 3,
        vectors(encoder, ["the way a day"]) * 6
        - first_tokens(encoder_directory=tmp_path, text="the way a day", count=3),
        atol=TOLERANCE,
    )
    np.testing.assert_allclose(vectors(without, ["a day"]), vectors(encoder, ["a day"]), atol=TOLERANCE)


def test_fewer_dimensions_are_normalised_again(tmp_path: Path) -> None:
    write_model(tmp_path)
    encoder = small_encoder(tmp_path, pooling="mean", normalize=True)
    short = vectors(encoder, truncate_dim=3)
    full = vectors(encoder)[:, :3]
    np.testing.assert_allclose(short, full / np.linalg.norm(full, axis=1, keepdims=True), atol=TOLERANCE)
    assert short.flags.owndata
    with pytest.raises(OptionError, match="truncate_dim=9"):
        vectors(encoder, truncate_dim=9)


def test_half_precision_is_a_rounding(tmp_path: Path) -> None:
    write_model(tmp_path)
    encoder = small_encoder(tmp_path, pooling="mean")
    half = vectors(encoder, dtype="float16")
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, vectors(encoder).astype(np.float16))


@pytest.mark.parametrize("task", ["classification", 3])
def test_a_task_may_be_a_name_or_a_number(task: str | int, tmp_path: Path) -> None:
    write_model(tmp_path, task_count=5)
    settings = require_model("jinaai/jina-embeddings-v3", "text").settings
    encoder = small_encoder(tmp_path, pooling="mean", settings=settings)
    chosen = vectors(encoder, mode="query", task=task)
    np.testing.assert_array_equal(chosen, vectors(encoder, task=3))
    assert not np.allclose(chosen, vectors(encoder, mode="query"))
    with pytest.raises(OptionError, match=r"no task 'poetry'; it has 'retrieval\.query' \(0\)"):
        vectors(encoder, task="poetry")


def test_a_model_without_tasks_refuses_one(tmp_path: Path) -> None:
    write_model(tmp_path)
    with pytest.raises(OptionError, match="no tasks"):
        vectors(small_encoder(tmp_path, pooling="mean"), task=1)


@pytest.mark.parametrize(
    ("graph", "fields", "message"),
    [
        ({"extra_inputs": ("past_key_values",)}, {"pooling": "mean"}, "past_key_values"),
        ({}, {"pooling": "mean", "output": 1}, "no output 1, only last_hidden_state"),
        ({}, {"pooling": "mean", "output": "pooled"}, "no output 'pooled'"),
        ({}, {"pooling": "mean", "model_file": None}, "onnx_file="),
    ],
)
def test_a_graph_that_does_not_fit_is_refused_when_loaded(
    graph: dict[str, Any], fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_model(tmp_path, **graph)
    with pytest.raises(UnsupportedModelError, match=message):
        small_encoder(tmp_path, **fields)


@pytest.mark.parametrize(
    ("graph", "fields", "message"),
    [
        ({}, {"pooling": "none"}, "say pooling="),
        ({"outputs": ("text_embeds",)}, {"pooling": "mean"}, 'say pooling="none"'),
        ({}, {"pooling": "mean", "dim": 7}, "dim=7"),
    ],
)
def test_an_output_that_does_not_fit_is_refused(
    graph: dict[str, Any], fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_model(tmp_path, **graph)
    with pytest.raises(UnsupportedModelError, match=message):
        vectors(small_encoder(tmp_path, **fields))


BOTH: dict[str, Any] = {"outputs": ("last_hidden_state", "sentence_embedding")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("graph", "fields", "finished"),
    [
        (BOTH, {"takes_finished": "any"}, "sentence_embedding"),
        ({"outputs": ("sentence_embedding", "last_hidden_state")}, {"takes_finished": "any"}, "sentence_embedding"),
        ({"outputs": ("last_hidden_state", "text_embeds")}, {"takes_finished": "any"}, "text_embeds"),
        ({"outputs": ("pooler_output",)}, {"takes_finished": "any"}, "pooler_output"),
        # What served to train the model is no vector of a text.
        ({"outputs": ("last_hidden_state", "pooler_output")}, {"takes_finished": "any"}, None),
        ({}, {"takes_finished": "any"}, None),
        (BOTH, {}, None),
        ({"outputs": ("sentence_embedding", "last_hidden_state")}, {}, None),
    ],
)
def test_a_finished_vector_is_taken_where_the_repo_says_nothing_else(
    graph: dict[str, Any], fields: dict[str, Any], finished: str | None, tmp_path: Path
) -> None:
    write_model(tmp_path, **graph)
    encoder = small_encoder(tmp_path, pooling="last_token", is_catalogued=False, settings=fields)
    taken, how = (finished, "none") if finished else ("last_hidden_state", "last_token")
    expected = small_encoder(tmp_path, pooling=how, output=taken)
    np.testing.assert_allclose(vectors(encoder), vectors(expected), atol=TOLERANCE)


def test_what_the_repo_lists_after_a_finished_vector_is_not_done_again(tmp_path: Path) -> None:
    write_model(tmp_path, **BOTH)
    (tmp_path / "2_Dense").mkdir()
    write_tensors(tmp_path / "2_Dense/model.safetensors", {"linear.weight": np.eye(DIM, dtype=np.float32) * 2})
    (tmp_path / "2_Dense/config.json").write_text(
        '{"activation_function": "torch.nn.modules.linear.Identity"}', "utf-8"
    )
    settings = {"projections": ("2_Dense",)}
    finished = small_encoder(tmp_path, pooling="mean", settings=settings | {"takes_finished": "any"})
    computed = small_encoder(tmp_path, pooling="mean", settings=settings)
    np.testing.assert_allclose(vectors(finished) * 2, vectors(computed), atol=TOLERANCE)
    # A vector of another length is not what the repo's modules end with: it is computed as they say.
    with pytest.raises(UnsupportedModelError, match="dim=7"):
        small_encoder(tmp_path, pooling="mean", dim=7, settings=settings | {"takes_finished": "any"})


def test_an_output_that_is_named_is_taken_as_it_is_or_pooled(tmp_path: Path) -> None:
    write_model(tmp_path, outputs=("last_hidden_state", "text_embeds", "sentence_embedding"))
    settings = {"takes_finished": "named"}
    for output in ("text_embeds", 1):
        encoder = small_encoder(tmp_path, pooling="mean", output=output, settings=settings)
        expected = small_encoder(tmp_path, pooling="cls", output="last_hidden_state")
        np.testing.assert_allclose(vectors(encoder), vectors(expected), atol=TOLERANCE)
    states = small_encoder(tmp_path, pooling="mean", output="last_hidden_state", settings=settings)
    expected = small_encoder(tmp_path, pooling="none", output="sentence_embedding")
    np.testing.assert_allclose(vectors(states), vectors(expected), atol=TOLERANCE)


def test_graphs_with_position_ids_get_them(tmp_path: Path) -> None:
    write_model(tmp_path, extra_inputs=("position_ids",), **LEFT_PADDED)
    encoder = small_encoder(tmp_path, pooling="last_token")
    np.testing.assert_allclose(vectors(encoder), one_by_one(encoder), atol=TOLERANCE)


def test_an_unknown_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="no encoder is called 'nonsense'"):
        small_encoder(tmp_path, encoder="nonsense")


def test_a_long_text_taken_whole_is_the_mean_of_its_windows_by_their_tokens(tmp_path: Path) -> None:
    write_model(tmp_path)
    encoder = small_encoder(tmp_path, pooling="cls", normalize=True)
    plain = small_encoder(tmp_path, pooling="cls")
    words = [("the", "way", "a", "day")[place * place % 4] for place in range(2 * 62 + 10)]
    windows = [" ".join(words[start : start + 62]) for start in (0, 62, 124)]
    expected = np.average(vectors(plain, windows), axis=0, weights=[64, 64, 12])
    done = encoder.encode([TEXTS[0], " ".join(words), 5, TEXTS[0]], Call(long="mean"))
    assert isinstance(done.results, np.ndarray)
    np.testing.assert_allclose(done.results[1], expected / np.linalg.norm(expected), atol=TOLERANCE)
    np.testing.assert_array_equal(done.results[[0, 3]], vectors(encoder, [TEXTS[0]] * 2))
    assert set(done.failures) == {2}
    assert done.counts is not None
    assert done.counts[1] == 64 + 64 + 12


def test_each_window_of_a_long_text_has_its_prompt(tmp_path: Path) -> None:
    write_model(tmp_path)
    encoder = small_encoder(tmp_path, pooling="mean")
    whole = vectors(encoder, ["day " * 120], prompt="the way ", long="mean")
    windows = vectors(encoder, ["the way " + "day " * 60] * 2)
    np.testing.assert_allclose(whole, windows[:1], atol=TOLERANCE)
