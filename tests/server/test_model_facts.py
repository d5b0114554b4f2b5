"""What a model's files say of it beside what it computes."""

import json
from pathlib import Path

import pytest

from asyncembed import TextCrossEncoder, TextEmbedding
from asyncembed.errors import StateError
from asyncembed.testing import fake_model
from tests.support.models import write_self_describing_model
from tests.support.sparse_models import RERANKER, write_reranker

pytestmark = pytest.mark.slow

REVISION = "0123456789abcdef0123456789abcdef01234567"


async def test_the_commit_is_told_by_the_folder_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    from asyncembed.server.model_facts import ModelFacts

    folder = write_self_describing_model(tmp_path / "models--org--name" / "snapshots" / REVISION)
    elsewhere = write_self_describing_model(tmp_path / "elsewhere")
    for directory, revision in ((folder, REVISION), (elsewhere, None)):
        async with TextEmbedding(directory, workers=0) as model:
            facts = ModelFacts(model)
            assert facts.revision == revision
            assert (facts.dtype, facts.dim, facts.precision) == ("float32", model.embedding_size, "fp32")


@pytest.mark.parametrize(("config", "label"), [({}, "LABEL_0"), ({"id2label": {"0": "relevant"}}, "relevant")])
async def test_the_score_of_a_reranker_has_the_name_in_its_files(
    tmp_path: Path, config: dict[str, object], label: str
) -> None:
    from asyncembed.server.model_facts import ModelFacts

    directory = write_reranker(tmp_path)
    known = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps({**known, **config}), encoding="utf-8")
    async with TextCrossEncoder(RERANKER, model_path=directory, workers=0) as model:
        assert await ModelFacts(model).label() == label


async def test_tokens_are_read_once_and_anew_after_the_model_was_opened_again(tmp_path: Path) -> None:
    from asyncembed.server.model_facts import ModelFacts

    model = TextEmbedding(write_self_describing_model(tmp_path), workers=0)
    facts = ModelFacts(model)
    async with model:
        first = await facts.ask_tokens(lambda tokens: tokens)
        assert await facts.ask_tokens(lambda tokens: tokens) is first
    async with model:
        assert await facts.ask_tokens(lambda tokens: tokens) is not first


async def test_a_model_without_files_has_no_tokens_and_one_that_is_closed_no_facts() -> None:
    from asyncembed.server.model_facts import ModelFacts
    from asyncembed.server.refusals import Refusal

    model = TextEmbedding(fake_model())
    facts = ModelFacts(model)
    with pytest.raises(StateError):
        _ = facts.revision
    async with model:
        with pytest.raises(Refusal, match="no tokens"):
            await facts.ask_tokens(lambda tokens: tokens)
