"""The switch: by the environment, by a block, and which of several counts."""

from pathlib import Path

import pytest

from asyncembed.faking import Fakes, current_fakes, switch_off, switch_on
from tests.support import programs


def test_models_are_themselves_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASYNCEMBED_FAKE", raising=False)
    assert current_fakes() is None
    for value in ("", "0", "false", "No", " off "):
        monkeypatch.setenv("ASYNCEMBED_FAKE", value)
        assert current_fakes() is None
    for value in ("1", "true", "yes"):
        monkeypatch.setenv("ASYNCEMBED_FAKE", value)
        assert isinstance(current_fakes(), Fakes)


def test_the_latest_switch_counts_whichever_ends_first() -> None:
    first, second = Fakes(), Fakes()
    switch_on(first)
    switch_on(second)
    assert current_fakes() is second
    switch_off(first)
    assert current_fakes() is second
    switch_off(second)
    assert current_fakes() is None


PROGRAM = """
import logging, sys
import anyio
from asyncembed import SparseTextEmbedding, TextEmbedding, WorkerPool, sync

logging.basicConfig(level="WARNING", stream=sys.stdout)

async def main():
    async with WorkerPool(workers=2) as pool, TextEmbedding("nobody/knows-it", pool=pool) as model:
        print((await model.embed_query("a")).shape, pool.worker_pids())
    async with SparseTextEmbedding("Qdrant/bm25") as model:
        print(len(await model.embed_query("two words")))
    print((await TextEmbedding("nobody/knows-it").on_any_loop().embed_query("a")).shape)

anyio.run(main)
with sync.TextEmbedding("nobody/knows-it") as model:
    print(model.embed_query("a").shape)
print("onnxruntime" in sys.modules)
"""


@pytest.mark.slow
def test_the_environment_makes_all_models_of_a_program_fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNCEMBED_FAKE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nothing-is-made-here"))
    done = programs.run(PROGRAM, tmp_path)
    assert done.returncode == 0, done.stderr
    warning, *lines = done.stdout.splitlines()
    assert warning.startswith("WARNING:asyncembed:models are fakes")
    assert lines == ["(384,) []", "2", "(384,)", "(384,)", "False"]
    assert not (tmp_path / "nothing-is-made-here").exists()
