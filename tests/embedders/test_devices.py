"""Where a model computes, as its user sees it."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncembed.embedders.text import TextEmbedding
from asyncembed.encoders.encoder import Call
from asyncembed.options import MAX_BATCH_TOKENS, MAX_BATCH_TOKENS_ACCELERATED
from tests.support.models import spec_for, write_model
from tests.support.packages import pretend_gpu_package

pytestmark = pytest.mark.slow

ELSEWHERE = ["AzureExecutionProvider", "CPUExecutionProvider"]
"""A provider that every onnxruntime has, that is not the CPU's, and that leaves all the work to it."""


def budget(model: TextEmbedding) -> int:
    """Tokens that the engine puts into one batch."""
    return model._require_open().model.batch_key(Call()).max_batch_tokens


@pytest.mark.parametrize("workers", [0, 2])
async def test_a_gpu_package_without_a_gpu_is_one_warning_and_no_large_batches(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend_gpu_package(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    spec = spec_for(write_model(tmp_path / "model"), pooling="mean")
    with caplog.at_level(logging.WARNING, "asyncembed"):
        async with TextEmbedding(spec, workers=workers) as model:
            await model.embed_query("the way")
            assert budget(model) == MAX_BATCH_TOKENS
    (record,) = caplog.records
    assert "onnxruntime-gpu is installed, but" in record.message


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"device": "cpu"}, MAX_BATCH_TOKENS),
        ({"providers": ELSEWHERE, "max_batch_tokens": 300}, 300),
        ({"device": "cpu", "max_batch_tokens": 300}, 300),
    ],
)
async def test_what_came_up_in_the_workers_decides_the_token_budget(
    options: dict[str, Any], expected: int, tmp_path: Path
) -> None:
    spec = spec_for(write_model(tmp_path), pooling="mean")
    async with TextEmbedding(spec, workers=1, **options) as model:
        assert budget(model) == expected


async def test_what_came_up_elsewhere_is_measured_for_the_token_budget(tmp_path: Path) -> None:
    spec = spec_for(write_model(tmp_path), pooling="mean")
    async with TextEmbedding(spec, workers=1, providers=ELSEWHERE) as model:
        assert 0 < budget(model) <= MAX_BATCH_TOKENS_ACCELERATED
        alone = await model.embed_query("the way")
        vectors = await model.embed_documents(["the way", "a way"] * 40)
        np.testing.assert_allclose(vectors[0], alone, atol=1e-5)
