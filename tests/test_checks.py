"""No option gets past the door with a value that cannot work: whatever it is, the error is an `OptionError`."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncembed import (
    HybridTextEmbedding,
    ImageEmbedding,
    LateInteractionMultimodalEmbedding,
    LateInteractionTextEmbedding,
    Muvera,
    Options,
    SparseTextEmbedding,
    TextCrossEncoder,
    TextEmbedding,
    WorkerPool,
)
from asyncembed.checks import (
    check_bool,
    check_choice,
    check_count,
    check_number,
    check_path,
    check_seconds,
    check_text,
    check_words,
    keywords_of,
)
from asyncembed.errors import NotCachedError, OptionError, UnknownModelError
from tests.support.encoders import ECHO

CLASSES: tuple[Any, ...] = (
    TextEmbedding,
    SparseTextEmbedding,
    LateInteractionTextEmbedding,
    HybridTextEmbedding,
    ImageEmbedding,
    LateInteractionMultimodalEmbedding,
    TextCrossEncoder,
)


class Strange:
    """Equal to nothing, of no use as anything, and without a `repr` that helps."""

    __hash__ = None  # type: ignore[assignment]


def constructor_keywords() -> Iterator[tuple[Any, str]]:
    for kind in CLASSES:
        for keyword in keywords_of(kind.__init__):
            if keyword != "model_name":
                yield kind, keyword


@pytest.mark.parametrize(("kind", "keyword"), list(constructor_keywords()))
def test_no_constructor_takes_what_it_cannot_use(kind: Any, keyword: str) -> None:
    for value in (Strange(), np.array([1.0, 2.0]), -1.5, {"a": 1}, b"x", [Strange()]):
        with pytest.raises(OptionError, match=keyword):
            kind("a/b", **{keyword: value})


@pytest.mark.parametrize(
    ("kind", "keywords"),
    [
        (TextEmbedding, {"workers": "2"}),
        (TextEmbedding, {"workers": True}),
        (TextEmbedding, {"threads": 0}),
        (TextEmbedding, {"batch_timeout": "5"}),
        (TextEmbedding, {"batch_timeout": math.nan}),
        (TextEmbedding, {"batch_timeout": True}),
        (TextEmbedding, {"device_ids": "01"}),
        (TextEmbedding, {"device_ids": [None]}),
        (TextEmbedding, {"local_files_only": "false"}),
        (TextEmbedding, {"batch_invariant": 0}),
        (TextEmbedding, {"long": "yes"}),
        (TextEmbedding, {"truncate_dim": 0}),
        (TextEmbedding, {"normalize": 1}),
        (TextEmbedding, {"cache_dir": ""}),
        (TextEmbedding, {"model_path": b"models"}),
        (TextEmbedding, {"revision": ""}),
        (TextEmbedding, {"revision": "a\0"}),
        (TextEmbedding, {"cache_dir": "a\0"}),
        (TextEmbedding, {"token": 5}),
        (TextEmbedding, {"output": "int8", "int8_ranges": [1, 2]}),
        (TextEmbedding, {"output": "int8", "int8_ranges": [[1, 2], [0, 1]]}),
        (TextEmbedding, {"output": "int8", "int8_ranges": [[math.nan], [1]]}),
        (SparseTextEmbedding, {"k": "1.2"}),
        (SparseTextEmbedding, {"b": 1.5}),
        (SparseTextEmbedding, {"avg_len": 0}),
        (SparseTextEmbedding, {"token_max_length": 2.5}),
        (SparseTextEmbedding, {"disable_stemmer": "no"}),
        (SparseTextEmbedding, {"stopwords": "the"}),
        (SparseTextEmbedding, {"stopwords": [1]}),
        (SparseTextEmbedding, {"stemmer": "english"}),
        (SparseTextEmbedding, {"alpha": -1}),
        (SparseTextEmbedding, {"max_active_dims": 0}),
        (SparseTextEmbedding, {"max_active_dims": 2.5}),
        (SparseTextEmbedding, {"pruning": 1.1}),
        (SparseTextEmbedding, {"pruning": "0.1"}),
        (LateInteractionTextEmbedding, {"long": None}),
        (HybridTextEmbedding, {"outputs": "dense"}),
        (HybridTextEmbedding, {"outputs": ["dense", "colour"]}),
        (HybridTextEmbedding, {"outputs": []}),
        (HybridTextEmbedding, {"long": None}),
        (TextCrossEncoder, {"long": 1}),
        (TextCrossEncoder, {"activation": None}),
        (ImageEmbedding, {"fast_decode": "false"}),
        (ImageEmbedding, {"apply_orientation": 1}),
        (ImageEmbedding, {"allow_private_urls": "false"}),
        (ImageEmbedding, {"url_timeout": "5"}),
        (ImageEmbedding, {"max_url_bytes": 1e6}),
        (ImageEmbedding, {"normalize": "yes"}),
        (LateInteractionMultimodalEmbedding, {"long": "yes"}),
    ],
)
def test_a_value_of_another_type_is_not_taken_for_one(kind: Any, keywords: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=[*keywords][-1]):
        kind("a/b", **keywords)


def test_a_token_is_in_no_message() -> None:
    for token in (b"hf_secret", ["hf_secret"], "hf_secret\n", "hf secret", "hf_secrét", "hf_secret\udc80"):
        with pytest.raises(OptionError) as caught:
            Options(token=token)  # type: ignore[arg-type]
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["", "a\0b", Path("a\0b"), b"a/b", 3, None, ["a/b"], "https://hub.example/a/b"], ids=repr
)
def test_what_can_be_no_name_is_refused(name: Any) -> None:
    for kind in CLASSES:
        with pytest.raises(OptionError, match="model_name"):
            kind(name)


LONG = "x" * 5000


@pytest.mark.parametrize(
    "name", [LONG, f"a/{LONG}", f"./{LONG}", Path(LONG), "\udc80", "a/\udc80", "./\udc80", "a//b", " "]
)
async def test_any_other_name_is_one_that_nobody_has(name: str | Path, tmp_path: Path) -> None:
    with pytest.raises((UnknownModelError, OptionError, NotCachedError)):
        async with TextEmbedding(name, workers=0, cache_dir=tmp_path, local_files_only=True):
            pytest.fail("there is no such model")
    with pytest.raises(UnknownModelError, match="no directory"):
        async with TextEmbedding("a/b", model_path=LONG, workers=0):
            pytest.fail("there is no such directory")


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("key", "text"),
        ("priority", "high"),
        ("ordered", "false"),
        ("on_error", "ignore"),
        ("prompt", 3),
        ("prompt_name", ["query"]),
        ("task", 1.5),
        ("long", "no"),
        ("truncate_dim", "64"),
    ],
)
@pytest.mark.parametrize("method", ["embed", "query_embed", "passage_embed"])
async def test_no_call_takes_what_it_cannot_use(method: str, keyword: str, value: Any) -> None:
    async with TextEmbedding(ECHO, workers=0) as model:
        with pytest.raises(OptionError, match=keyword):
            getattr(model, method)(["#1"], **{keyword: value})


async def test_few_inputs_are_checked_alike() -> None:
    async with TextEmbedding(ECHO, workers=0) as model:
        anything: Any = model
        with pytest.raises(OptionError, match="truncate_dim"):
            await anything.embed_query("#1", truncate_dim=-1)
        with pytest.raises(OptionError, match="prompt_name"):
            await anything.embed_documents(["#1"], prompt_name=3)
        with pytest.raises(OptionError, match="size"):
            anything.embed(["#1"]).batches("8")


def test_pools_and_encodings_are_checked_alike() -> None:
    pools: list[dict[str, Any]] = [
        {"workers": 1.0},
        {"interactive_workers": "1"},
        {"device_ids": 0},
        {"batch_timeout": 0},
    ]
    for keywords in pools:
        with pytest.raises(OptionError, match=next(iter(keywords))):
            WorkerPool(**keywords)
    encodings: list[dict[str, Any]] = [{"dim": "96"}, {"dim": 96, "k_sim": 2.5}, {"dim": 96, "random_seed": "x"}]
    for keywords in encodings:
        with pytest.raises(OptionError, match=[*keywords][-1]):
            Muvera(**keywords)


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": ""},
        {"model": None},
        {"model_file": 3},
        {"additional_files": "model.onnx_data"},
        {"additional_files": [Path("x")]},
        {"sources": 5},
        {"dim": None},
        {"normalization": "yes"},
        {"output_name": 0},
        {"pooling": "median"},
        {"kind": "dense"},
        {"sparse_head": 3},
        {"late_interaction_head": ""},
        {"query_length": 0},
        {"skiplist_words": "the"},
    ],
    ids=str,
)
def test_a_model_of_ones_own_is_checked_alike(wrong: dict[str, Any]) -> None:
    dense = {"pooling": "mean", "normalization": True, "dim": 3}
    kinds: list[tuple[Any, dict[str, Any]]] = [
        (TextEmbedding, dense),
        (SparseTextEmbedding, {"kind": "splade"}),
        (HybridTextEmbedding, {"sparse_head": "a.pt", "late_interaction_head": None}),
        (TextCrossEncoder, {}),
        (LateInteractionTextEmbedding, {"dim": 3, "normalization": True, "query_length": 32, "skiplist_words": ()}),
        (ImageEmbedding, {**dense, "pooling": "none", "output_name": None}),
        (LateInteractionMultimodalEmbedding, {"dim": 3, "kind": "colpali"}),
    ]
    for kind, more in kinds:
        known = {
            "model": "mine/checked",
            "sources": "mine/checked",
            "model_file": "m.onnx",
            "additional_files": [],
            **more,
        }
        if known.keys() >= wrong.keys():
            anything: Any = kind
            with pytest.raises(OptionError, match="source" if "sources" in wrong else next(iter(wrong))):
                anything.add_custom_model(**known | wrong)


def test_what_can_work_is_taken() -> None:
    for value in (True, False):
        check_bool("x", value)
    check_bool("x", None, may_be_none=True)
    check_choice("x", None, (None, "a"))
    check_count("x", 0, minimum=0)
    check_number("x", 0, minimum=0, maximum=1)
    check_seconds("x", math.inf)
    check_seconds("x", None, may_be_none=True)
    check_text("x", "", may_be_empty=True)
    check_path("x", ".")
    assert check_words("x", iter(["a", "b"])) == ("a", "b")
    assert check_words("x", None) is None


@pytest.mark.parametrize("choice", [np.array(["a", "b"]), ["a"], 1, True, "A"], ids=repr)
def test_a_choice_is_one_of_its_words(choice: Any) -> None:
    with pytest.raises(OptionError, match="must be one of"):
        check_choice("x", choice, ("a", "b"))
