"""Keywords are declared for type checkers, for programs and for readers: these tests hold the three together."""

import inspect
import re
from dataclasses import fields
from typing import Any

import pytest

from asyncembed import Options, WorkerPool
from asyncembed.embedders import base, cross_encoder, image, text
from asyncembed.engine.pool import PoolKeywords, PoolOptions, engine_of
from asyncembed.errors import OptionError
from asyncembed.options import OptionKeywords, is_path_on_windows


def documented(text: str | None, heading: str) -> set[str]:
    """The names that a section of a docstring explains."""
    _, _, section = (text or "").partition(f"{heading}:\n")
    return set(re.findall(r"^ {4}(?: {4})?(\w+): ", section.partition("\n\n")[0], re.MULTILINE))


@pytest.mark.parametrize(("keywords", "values"), [(OptionKeywords, Options), (PoolKeywords, PoolOptions)])
def test_type_checkers_and_programs_know_the_same_keywords(keywords: Any, values: Any) -> None:
    declared = {one.name: one.type for one in fields(values)}
    assert set(keywords.__annotations__) == set(declared)
    for name, note in keywords.__annotations__.items():
        assert getattr(note, "__forward_arg__", note) == declared[name], name


def test_every_keyword_is_explained_once() -> None:
    of_the_pool = set(PoolKeywords.__annotations__)
    assert documented(WorkerPool.__doc__, "Args") == of_the_pool
    assert documented(Options.__doc__, "Attributes") == set(OptionKeywords.__annotations__) - of_the_pool


def test_the_path_of_a_graph_may_be_one_of_windows() -> None:
    assert Options(onnx_file=r"onnx\model.onnx") == Options(onnx_file="onnx/model.onnx")


@pytest.mark.parametrize("keywords", [base.StreamKeywords, text.TextCall], ids=lambda keywords: str(keywords.__name__))
def test_every_keyword_of_a_call_is_explained(keywords: Any) -> None:
    assert documented(keywords.__doc__, "Keys") == set(keywords.__annotations__)


@pytest.mark.parametrize(
    ("every", "results", "errors"),
    [
        (base.StreamKeywords, base.StreamCall, base.ReturningCall),
        (text.TextStreamKeywords, text.TextStreamCall, text.TextReturningCall),
        (cross_encoder.RerankKeywords, cross_encoder.RerankStreamCall, cross_encoder.RerankReturningCall),
    ],
    ids=["calls", "texts", "pairs"],
)
def test_a_call_takes_what_its_overloads_take(every: Any, results: Any, errors: Any) -> None:
    taken = set(every.__annotations__) - {"key"}
    assert set(results.__annotations__) == set(errors.__annotations__) == taken


def test_image_keywords_are_those_of_the_constructor() -> None:
    own = set(image.ImageKeywords.__annotations__) - set(OptionKeywords.__annotations__)
    parameters = inspect.signature(image.ImageEmbedder.__init__).parameters.values()
    assert own == {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}
    assert own < documented(image.ImageEmbedder.__doc__, "Args")


@pytest.mark.parametrize(
    ("keywords", "reason"),
    [
        ({"runtime": "tensorrt"}, "runtime must be one of 'onnxruntime', 'openvino'"),
        ({"runtime": "openvino", "device": "cuda"}, "computes on the CPU"),
        ({"runtime": "openvino", "providers": ["cpu"]}, "computes on the CPU"),
        ({"precision": "bf16"}, 'say runtime="openvino" as well'),
    ],
)
def test_a_runtime_that_cannot_do_it_is_refused(keywords: Any, reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        Options(**keywords)


def test_bfloat16_is_a_way_to_compute_and_no_file() -> None:
    options = Options(runtime="openvino", precision="bf16")
    assert options.file_precision is None
    assert options.session_options().bfloat16
    assert not Options(runtime="openvino", precision="fp16").session_options().bfloat16


@pytest.mark.parametrize(
    ("keywords", "demands_cuda", "precision"),
    [
        ({}, False, None),
        ({"device": "cpu"}, False, None),
        ({"device": "cuda"}, True, "fp16"),
        ({"device": "cuda", "precision": "fp32"}, True, None),
        ({"device": "cuda", "onnx_file": "model.onnx"}, True, None),
        ({"providers": ["CUDAExecutionProvider", "cpu"]}, True, "fp16"),
        ({"providers": [("cuda", {"device_id": 1})]}, True, "fp16"),
        ({"providers": ["cpu", "cuda"]}, False, None),
    ],
)
def test_half_precision_is_preferred_where_cuda_computes_and_nobody_says_otherwise(
    keywords: Any, demands_cuda: bool, precision: str | None
) -> None:
    options = Options(**keywords)
    assert (options.demands_cuda, options.preferred_precision) == (demands_cuda, precision)


@pytest.mark.parametrize(
    ("keywords", "workers", "devices"),
    [
        ({}, 2, (0, 0)),
        ({"device_ids": [0, 2]}, 4, (0, 2, 0, 2)),
        ({"device_ids": [0, 2], "workers": 2}, 2, (0, 2)),
        ({"workers": 1}, 1, ()),
        ({"workers": 0}, 1, ()),
    ],
)
def test_a_device_has_two_workers_unless_their_number_is_said(
    keywords: Any, workers: int, devices: tuple[int, ...]
) -> None:
    plan = engine_of(WorkerPool(**Options(device="cuda", **keywords).pool_keywords())).plan
    assert (plan.workers, plan.device_ids) == (workers, devices)
    assert Options(device="cpu").pool_keywords().get("device_ids") is None


def test_what_a_pool_decides_is_not_said_beside_it() -> None:
    pool = WorkerPool(workers=1)
    assert Options(pool=pool, batch_timeout=Options().batch_timeout).pool is pool
    for keywords in ({"workers": 2}, {"batch_timeout": None}, {"device_ids": [0]}):
        anything: Any = keywords
        with pytest.raises(OptionError, match=f"{next(iter(keywords))}: with pool=, give this to the WorkerPool"):
            Options(pool=pool, **anything)


def test_a_token_is_not_shown() -> None:
    assert "hf_secret" not in repr(Options(token="hf_secret"))


@pytest.mark.parametrize(
    ("name", "is_path"),
    [("C:\\models\\bge", True), ("C:models", True), ("d:/models/bge", True), ("models\\bge", True),
     ("\\\\server\\share\\bge", True), ("BAAI/bge-small-en-v1.5", False), ("bge", False)],
)  # fmt: skip
def test_drives_and_backslashes_make_a_path_on_windows(name: str, is_path: bool) -> None:
    assert is_path_on_windows(name) == is_path
