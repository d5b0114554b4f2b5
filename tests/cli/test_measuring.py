"""What bench measures: that it measures what it says, never how fast that is."""

import os
import sys
from typing import Any

import pytest

from asyncembed import (
    ImageEmbedding,
    LateInteractionMultimodalEmbedding,
    LateInteractionTextEmbedding,
    SparseTextEmbedding,
    TextCrossEncoder,
    TextEmbedding,
    WorkerPool,
)
from asyncembed.cli.measuring import QUERIES_ALONE, measure, memory_of, percentile, workload
from asyncembed.embedders.base import Embedder
from asyncembed.errors import InputError, OptionError
from asyncembed.testing import Fakes, fake_model
from tests.support.waiting import nothing_left_behind

FAMILIES: list[tuple[type[Embedder], str, str]] = [
    (TextEmbedding, "texts", "embed_query"),
    (SparseTextEmbedding, "texts", "embed_query"),
    (LateInteractionTextEmbedding, "texts", "embed_query"),
    (ImageEmbedding, "images", "embed_image"),
    (LateInteractionMultimodalEmbedding, "images", "embed_text"),
    (TextCrossEncoder, "pairs", "rank of 10"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "unit", "query"), FAMILIES, ids=lambda value: getattr(value, "__name__", ""))
async def test_every_family_is_measured(kind: type[Embedder], unit: str, query: str) -> None:
    pool = WorkerPool(workers=0)
    async with nothing_left_behind():
        found = await measure(kind(fake_model(kind.family), pool=pool), pool, 0.2)
    assert (found.unit, found.query) == (unit, query)
    assert found.model == f"fake-{kind.family}"
    assert found.alone.per_second > 0
    assert found.with_queries.per_second > 0
    assert len(found.latency_alone) == QUERIES_ALONE
    assert found.latency_in_ingest
    assert 0 <= found.alone.padding_share < 1
    assert "in this process" in found.description


@pytest.mark.slow
async def test_texts_of_ones_own_are_what_is_computed() -> None:
    """One of them fails, and so it was among those computed."""
    fakes = Fakes(failures={"mine": InputError("it came")})
    pool = WorkerPool(workers=0)
    with pytest.raises(InputError, match="it came"):
        await measure(TextEmbedding(fake_model(fakes=fakes), pool=pool), pool, 0.2, ["fine", "mine"])


def test_a_model_of_images_takes_no_texts() -> None:
    with pytest.raises(OptionError, match="takes images"):
        workload(ImageEmbedding(fake_model("image")), ["a text"])


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1), (1, 1), (50, 50), (50.5, 51), (99, 99), (99.5, 100), (100, 100)]
)
def test_a_percentile_is_one_of_the_values(percent: float, expected: float) -> None:
    assert percentile(range(100, 0, -1), percent) == expected
    assert percentile([7], percent) == 7


def test_of_nothing_there_is_no_percentile() -> None:
    assert percentile([], 50) == 0


@pytest.mark.posix
def test_memory_that_is_taken_is_seen_where_the_system_says_so() -> None:
    before = memory_of(["self"])
    if not sys.platform.startswith("linux"):
        assert before is None
        return
    taken: Any = bytearray(b"x") * (64 * 2**20)
    after = memory_of([str(os.getpid())])
    assert before is not None
    assert after is not None
    assert after - before > 60 * 2**20
    assert len(taken) > 0


def test_of_processes_that_are_gone_nothing_is_known() -> None:
    assert memory_of(["4194305"]) is None
