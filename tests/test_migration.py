"""What users of fastembed and sentence-transformers write is taken, or answered with what to write here."""

import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import fastembed
import fastembed.rerank.cross_encoder
import numpy as np
import pytest
from fastembed.image.onnx_embedding import OnnxImageEmbedding
from fastembed.late_interaction.colbert import Colbert
from fastembed.late_interaction_multimodal.colpali import ColPali
from fastembed.rerank.cross_encoder.onnx_text_cross_encoder import OnnxTextCrossEncoder
from fastembed.sparse.bm25 import Bm25
from fastembed.sparse.bm42 import Bm42
from fastembed.sparse.minicoil import MiniCOIL
from fastembed.sparse.splade_pp import SpladePP
from fastembed.text.multitask_embedding import JinaEmbeddingV3
from fastembed.text.onnx_embedding import OnnxTextEmbedding
from fastembed.text.static_embedding import StaticTextEmbedding

import asyncembed
from asyncembed import (
    ImageEmbedding,
    LateInteractionMultimodalEmbedding,
    LateInteractionTextEmbedding,
    SparseTextEmbedding,
    TextCrossEncoder,
    TextEmbedding,
    WorkerPool,
    sync,
)
from asyncembed.errors import OptionError, StateError, UnknownModelError, UsageError
from asyncembed.migration import ATTRIBUTES, NAMES
from tests.support.encoders import ECHO
from tests.support.images import picture, write_image_model
from tests.support.late_interaction import write_late_interaction_model
from tests.support.models import write_model
from tests.support.multimodal import COLPALI_NAME, write_multimodal_model
from tests.support.sparse_models import RERANKER, SPLADE, TEXTS, write_reranker, write_splade

FASTEMBED: dict[type[Any], tuple[type[Any], ...]] = {
    TextEmbedding: (fastembed.TextEmbedding, OnnxTextEmbedding, JinaEmbeddingV3, StaticTextEmbedding),
    SparseTextEmbedding: (fastembed.SparseTextEmbedding, Bm25, Bm42, MiniCOIL, SpladePP),
    LateInteractionTextEmbedding: (fastembed.LateInteractionTextEmbedding, Colbert),
    ImageEmbedding: (fastembed.ImageEmbedding, OnnxImageEmbedding),
    LateInteractionMultimodalEmbedding: (fastembed.LateInteractionMultimodalEmbedding, ColPali),
    TextCrossEncoder: (fastembed.rerank.cross_encoder.TextCrossEncoder, OnnxTextCrossEncoder),
}
DENSE, COLBERT, CLIP = (
    "sentence-transformers/all-MiniLM-L6-v2",
    "colbert-ir/colbertv2.0",
    "Qdrant/clip-ViT-B-32-vision",
)
HIDDEN = {"__init__": ("local_files_only", "enable_cpu_mem_arena", "task_id"), "embed": ("task_id",)}
"""Keywords that fastembed takes out of its `**kwargs`."""

# sentence-transformers 6.2, earlier names included.
_LOADING = (
    "model_name_or_path modules device prompts default_prompt_name cache_folder trust_remote_code revision "
    "local_files_only token use_auth_token model_kwargs processor_kwargs tokenizer_kwargs config_kwargs "
    "model_card_data backend similarity_fn_name"
)
_ENCODING = "inputs sentences prompt_name prompt batch_size show_progress_bar device pool chunk_size task"
_DENSE = f"{_ENCODING} output_value precision convert_to_numpy convert_to_tensor normalize_embeddings truncate_dim"
_SPARSE = f"{_ENCODING} convert_to_tensor convert_to_sparse_tensor save_to_cpu max_active_dims"
_MATRICES = f"{_ENCODING} output_value convert_to_numpy normalize_embeddings token_pooling"
_RANKING = (
    "inputs sentences query documents prompt_name prompt batch_size show_progress_bar activation_fn activation_fct "
    "apply_softmax convert_to_numpy convert_to_tensor device pool chunk_size num_workers return_documents top_k"
)
_OLD = "automodel_args tokenizer_args config_args model_args classifier_dropout max_seq_length target_devices"
SENTENCE_TRANSFORMERS: dict[type[Any], dict[str, str]] = {
    TextEmbedding: {
        "__init__": f"{_LOADING} {_OLD} truncate_dim",
        "embed": f"{_DENSE} target_devices",
        "embed_query": _DENSE,
        "embed_documents": _DENSE,
        "query_embed": _DENSE,
        "passage_embed": _DENSE,
        "token_count": "texts sentences",
    },
    SparseTextEmbedding: {
        "__init__": f"{_LOADING} {_OLD} max_active_dims",
        "embed": _SPARSE,
        "embed_query": _SPARSE,
        "embed_documents": _SPARSE,
    },
    LateInteractionTextEmbedding: {
        "__init__": f"{_LOADING} {_OLD}",
        "embed": _MATRICES,
        "embed_query": _MATRICES,
        "embed_documents": _MATRICES,
    },
    ImageEmbedding: {"__init__": f"{_LOADING} truncate_dim", "embed": _DENSE, "embed_images": _DENSE},
    TextCrossEncoder: {
        "__init__": f"{_LOADING} {_OLD} num_labels max_length activation_fn default_activation_function "
        "keep_in_fp32_modules model_name cache_dir",
        "rerank": _RANKING,
        "rerank_pairs": _RANKING,
        "rank": _RANKING,
    },
}


def of_fastembed() -> Iterator[tuple[type[Any], str, str]]:
    for ours, theirs in FASTEMBED.items():
        for kind in theirs:
            for name, method in inspect.getmembers(kind, inspect.isfunction):
                if (name == "__init__" or not name.startswith("_")) and hasattr(ours, name):
                    taken = [*inspect.signature(method).parameters][1:]
                    for keyword in (*taken, *HIDDEN.get(name, ())):
                        if keyword not in ("args", "kwargs"):
                            yield ours, name, keyword


def of_sentence_transformers() -> Iterator[tuple[type[Any], str, str]]:
    for ours, methods in SENTENCE_TRANSFORMERS.items():
        for name, keywords in methods.items():
            for keyword in keywords.split():
                yield ours, name, keyword


ALL = sorted({*of_fastembed(), *of_sentence_transformers()}, key=lambda case: (case[0].__name__, *case[1:]))


async def refusal(kind: type[Any], method: str, keyword: str) -> str:
    """What the keyword is answered with; empty if it is taken."""
    try:
        if method == "__init__":
            kind(**{"model_name": "a/b"} | {keyword: "auto" if keyword == "device" else None})
            return ""
        result = getattr(kind("a/b"), method)("a text", **{keyword: None})
        if inspect.isawaitable(result):
            await result
    except OptionError as error:
        return str(error) if "unknown keyword" in str(error) else ""
    except (StateError, TypeError):  # of what comes after the keywords: not open; a query without documents
        return ""
    raise AssertionError("it cannot work, as it is not open")


def test_the_other_libraries_were_read() -> None:
    assert (TextEmbedding, "embed", "batch_size") in ALL
    assert (TextEmbedding, "__init__", "mmap") in ALL
    assert (SparseTextEmbedding, "__init__", "enable_cpu_mem_arena") in ALL
    assert (LateInteractionTextEmbedding, "token_count", "batch_size") in ALL
    assert len(ALL) > 250


async def test_every_keyword_of_the_other_libraries_is_taken_or_answered() -> None:
    unanswered = []
    answers = set()
    for kind, method, keyword in ALL:
        answer = await refusal(kind, method, keyword)
        if answer:
            answers.add(answer)
            if "known are" in answer or "did you mean" in answer:
                unanswered.append(f"{kind.__name__}.{method}({keyword}=): {answer}")
    assert not unanswered
    assert len(answers) > 40


@pytest.mark.parametrize(
    ("method", "keyword", "answer"),
    [
        ("embed", "batch_size", r"max_batch_size= and max_batch_tokens= .* stream\.batches\(n\)"),
        ("embed", "parallel", "workers="),
        ("embed", "precision", 'output="int8"'),
        ("embed", "device", "device= of the constructor"),
        ("embed", "normalize", "^embed has no keyword 'normalize': the constructor takes it"),
        ("embed", "prompts_name", "did you mean 'prompt_name'"),
        ("query_embed", "query", "comes first, without a keyword"),
        ("passage_embed", "texts", "comes first, without a keyword"),
        ("embed_query", "normalize_embeddings", "normalize= of the constructor"),
        ("token_count", "batch_size", "max_batch_size="),
    ],
)
async def test_a_call_says_what_to_use_instead(method: str, keyword: str, answer: str) -> None:
    with pytest.raises(OptionError, match=answer):
        result = getattr(TextEmbedding(), method)("text", **{keyword: 3})
        await result


def test_a_second_argument_is_no_batch_size() -> None:
    model: Any = TextEmbedding()
    with pytest.raises(OptionError, match=r"embed takes no further argument .* got 256 .*max_batch_size="):
        model.embed(["a text"], 256)
    kind: Any = TextEmbedding
    with pytest.raises(OptionError, match="TextEmbedding takes no further argument without its name; got '/cache'"):
        kind("a/model", "/cache")


@pytest.mark.parametrize(
    ("device", "answer"),
    [
        ("cuda:1", r'device="cuda", device_ids=\[1\]'),
        (0, r'device="cuda", device_ids=\[0\]'),
        ("gpu", 'device="cuda"'),
        ("mps", r"providers=\['CoreMLExecutionProvider', 'CPUExecutionProvider'\]"),
        (["cuda:0", "cuda:1"], "device_ids="),
        (True, "device must be one of 'auto', 'cpu', 'cuda'; got True"),
        ("xpu", "device must be one of"),
    ],
)
def test_the_ways_of_torch_to_name_a_device(device: Any, answer: str) -> None:
    with pytest.raises(OptionError, match=answer):
        TextEmbedding("a/b", device=device)


@pytest.mark.parametrize(
    ("precision", "answer"),
    [("binary", 'output="binary"'), ("ubinary", 'output="binary"'), ("float32", 'precision="fp32"'), (8, "a text")],
)
def test_the_words_of_others_for_precisions(precision: Any, answer: str) -> None:
    with pytest.raises(OptionError, match=answer):
        TextEmbedding("a/b", precision=precision)


@pytest.mark.parametrize("name", sorted(ATTRIBUTES))
def test_methods_of_others_say_what_to_call(name: str) -> None:
    model = TextCrossEncoder("a/b") if name == "predict" else SparseTextEmbedding("a/b")
    assert not hasattr(model, name)
    with pytest.raises(AttributeError, match=f"has no attribute '{name}': .") as caught:
        getattr(model, name)
    assert caught.value.name == name


@pytest.mark.parametrize("model", [TextEmbedding("a/b"), TextEmbedding("a/b").on_any_loop(), sync.TextEmbedding("a/b")])
def test_what_others_set_by_an_assignment_is_not_taken_in_silence(model: Any) -> None:
    for name in ("max_seq_length", "prompts", "default_prompt_name", "truncate_dim", "tokenizer", "device"):
        with pytest.raises(
            AttributeError, match=f"takes no '{name}' by an assignment: .*constructor|workers"
        ) as caught:
            setattr(model, name, 200)
        assert caught.value.name == name


def test_a_subclass_calls_its_own_attributes_what_it_likes() -> None:
    class Mine(SparseTextEmbedding):
        def __init__(self) -> None:
            self.device = "here"
            super().__init__("a/b")

    assert Mine().device == "here"


def test_a_pool_answers_alike() -> None:
    anything: Any = WorkerPool
    with pytest.raises(OptionError, match="workers= of the constructor"):
        anything(parallel=2)
    with pytest.raises(OptionError, match="did you mean 'threads'"):
        anything(threds=2)


@pytest.mark.parametrize("module", [asyncembed, sync])
def test_a_class_of_others_says_what_to_import_instead(module: ModuleType) -> None:
    for name, answer in NAMES.items():
        with pytest.raises(ImportError, match=f"cannot import name '{name}' .*: here it is {re.escape(answer)}"):
            exec(f"from {module.__name__} import {name}")
        for ours in re.findall("[A-Z][A-Za-z]+Em[a-z]+|TextCrossEncoder|HubOrigin|cosine|top_k", answer):
            assert hasattr(asyncembed, ours)
    assert not hasattr(module, "Embedding")
    with pytest.raises(ImportError, match=r"cannot import name 'Embedding' from 'asyncembed[.a-z]*' \(.*py\)$"):
        exec(f"from {module.__name__} import Embedding")


def test_a_misspelt_method_is_an_ordinary_error() -> None:
    with pytest.raises(AttributeError, match="^TextEmbedding has no attribute 'embd'$"):
        getattr(TextEmbedding(), "embd")  # noqa: B009 (a type checker would see it)


async def test_what_is_asynchronous_says_how_it_is_used() -> None:
    async with TextEmbedding(ECHO, workers=0) as model:
        for stream in (model.embed(["#1"]), model.embed(["#1"]).batches(2)):
            anything: Any = stream
            for use in (list, iter, next, np.asarray, np.array):
                with pytest.raises(UsageError, match=r"`async for .*await stream\.collect\(\)`"):
                    use(anything)
            with pytest.raises(UsageError, match=r"await stream\.collect\(\)"):
                await anything
            assert anything
            await anything.aclose()
        assert len(await model.embed(model.embed(["#1"]), key=lambda vector: f"#{int(vector[0])}").collect()) == 1
    for kind in (model, WorkerPool(workers=0)):
        opened: Any = kind
        with pytest.raises(UsageError, match="async with"), opened:
            pass
        with pytest.raises(UsageError, match="async with"):
            await opened


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("all-MiniLM-L6-v2", "did you mean sentence-transformers/all-MiniLM-L6-v2"),
        ("BGE-small-en-v1.5", "did you mean BAAI/bge-small-en-v1.5"),
        ("all-distilroberta-v1", "sentence-transformers/all-distilroberta-v1 is what sentence-transformers would take"),
    ],
)
async def test_a_name_without_its_organisation_suggests_the_full_one(name: str, answer: str) -> None:
    with pytest.raises(UnknownModelError, match=answer):
        async with TextEmbedding(name, workers=0, local_files_only=True):
            pass


@pytest.mark.slow
@pytest.mark.parametrize("form", ["path", "text", "model_path", "home"])
async def test_a_relative_path_stays_valid_when_the_working_directory_changes(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    write_model(tmp_path / "m", dim=384)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    keywords: Any = {"workers": 1, "pooling": "cls", "normalize": True, "max_length": 64}
    if form == "model_path":
        keywords |= {
            "model_name": "sentence-transformers/all-MiniLM-L6-v2",
            "model_path": "m",
            "onnx_file": "onnx/model.onnx",
        }
    else:
        keywords["model_name"] = {"path": Path("m"), "text": "./m", "home": "~/m"}[form]
    model = TextEmbedding(**keywords)
    os.chdir(tmp_path / "elsewhere")
    async with model:
        assert len(await model.embed_query("the day")) == 384
        assert model.model_name == os.fspath(keywords["model_name"])


def _search(library: ModuleType, reranker: type[Any], path: str, directory: Path, **options: Any) -> list[Any]:
    """Hybrid search as fastembed's documentation has it: dense and sparse candidates, ColBERT, and a reranker."""
    dense = library.TextEmbedding(DENSE, **{path: str(directory / "dense")}, **options)
    sparse = library.SparseTextEmbedding(model_name=SPLADE, **{path: str(directory / "sparse")}, **options)
    late = library.LateInteractionTextEmbedding(COLBERT, **{path: str(directory / "late")}, **options)
    judge = reranker(model_name=RERANKER, **{path: str(directory / "judge")}, **options)
    query, documents = "how can you write it?", [text for text in TEXTS if text]
    near = np.array(list(dense.embed(documents))) @ next(iter(dense.query_embed(query)))
    terms = next(iter(sparse.query_embed(query))).as_dict()
    common = [
        sum(value * terms.get(index, 0.0) for index, value in vector.as_dict().items())
        for vector in sparse.embed(text for text in documents)
    ]
    candidates = sorted({int(near.argmax()), int(np.argmax(common))} | {2, 3, 4})
    matrix = next(iter(late.query_embed(query)))
    found = [documents[position] for position in candidates]
    maxsim = [np.max(np.dot(matrix, one.T), axis=1).sum() for one in late.embed(found)]
    return [near, common, candidates, maxsim, list(judge.rerank(query, found))]


def _see(library: ModuleType, path: str, directory: Path, **options: Any) -> list[Any]:
    """Images, and pages that are found by questions, as fastembed's documentation has it."""
    files = [str(file) for file in sorted(directory.glob("*.png"))]
    images = library.ImageEmbedding(CLIP, **{path: str(directory / "images")}, **options)
    pages = library.LateInteractionMultimodalEmbedding(COLPALI_NAME, **{path: str(directory / "pages")}, **options)
    question = next(iter(pages.embed_text("what is it?")))
    matrices = list(pages.embed_image(files))
    return [list(images.embed(files)), matrices, [np.max(question @ one.T, axis=1).sum() for one in matrices]]


@pytest.mark.slow
def test_programs_of_fastembeds_compute_the_same_after_their_import_is_exchanged(tmp_path: Path) -> None:
    """With `model_path=` for its `specific_model_path=`, and nothing else."""
    write_model(tmp_path / "dense", model_file="model.onnx", dim=384)
    write_splade(tmp_path / "sparse")
    write_late_interaction_model(tmp_path / "late", COLBERT, dim=128)
    write_reranker(tmp_path / "judge")
    write_image_model(tmp_path / "images", CLIP)
    write_multimodal_model(tmp_path / "pages", COLPALI_NAME)
    for number in range(2):
        picture(40 + number, 50, seed=number).save(tmp_path / f"{number}.png")
    theirs = _search(fastembed, fastembed.rerank.cross_encoder.TextCrossEncoder, "specific_model_path", tmp_path)
    ours = _search(sync, sync.TextCrossEncoder, "model_path", tmp_path, workers=0)
    theirs += _see(fastembed, "specific_model_path", tmp_path)
    ours += _see(sync, "model_path", tmp_path, workers=0)
    for wanted, given in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-5)


def test_every_public_class_is_compared() -> None:
    classes = {name for name in asyncembed.__all__ if name.endswith(("Embedding", "Encoder"))} - {
        "SparseEmbedding",
        "HybridEmbedding",
        "HybridTextEmbedding",
        "Encoder",
    }
    assert classes == {kind.__name__ for kind in FASTEMBED}
