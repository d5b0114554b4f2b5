"""`asyncembed embed` that is killed: at every step on a file, and at random moments, several times over."""

import json
import os
import random
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import posix, programs
from tests.support.killing import KILL, kill
from tests.support.waiting import worker_processes

pytestmark = pytest.mark.slow

KINDS = ("jsonl", "parquet", "npy")

EMBEDS = """
import sys
from asyncembed.cli import embedding_run
from asyncembed.cli.commands import main
from asyncembed.errors import EncodeError
from asyncembed.testing import fake_models

embedding_run.WRITTEN_AT_ONCE = 16
embedding_run.COMMIT_SECONDS = float(sys.argv[1])
with fake_models(dim=8, seconds=float(sys.argv[2]), failures={"broken": EncodeError("no vector")}):
    main(["embed", "org/model", *sys.argv[3:]], prog_name="asyncembed")
"""

KILLED_AT_EACH_STEP = """
import json, os, signal, sys, warnings
from pathlib import Path
from asyncembed.cli import embedding_run
from asyncembed.cli.commands import main
from asyncembed.errors import EncodeError
from asyncembed.testing import fake_models
# What each child would import by itself.
import anyio._backends._asyncio, anyio.from_thread, asyncio, getpass, importlib.metadata, numpy, orjson, pyarrow.parquet
import asyncembed.catalogue.pipeline, asyncembed.cli.embed_command, asyncembed.encoders.hashed
import asyncembed.encoders.registry, asyncembed.hub.model_files, asyncembed.loading
from asyncembed.catalogue.lookup import find_model

name = sys.argv[1]
embedding_run.WRITTEN_AT_ONCE = 3
embedding_run.COMMIT_SECONDS = 0.0
steps = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree", "shutil.copyfile"}
failures = {"broken": EncodeError("no vector")}

def embed(*arguments):
    with fake_models(dim=8, failures=failures):
        main(["embed", "org/model", "in.txt", "-o", name, "--on-error", "failed.jsonl", "--quiet", *arguments])

def child(kill_at, *arguments):
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event in steps and any(part in str(arguments[0]) for part in (name, "failed.jsonl")):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    embed(*arguments)

find_model("org/model", "text")  # reads the catalogue, once for all
warnings.simplefilter("ignore", DeprecationWarning)  # of forks in programs with threads, which this has not
for kill_at in range(1, 200):
    for path in Path().glob("out*"):
        path.unlink()
    Path("failed.jsonl").unlink(missing_ok=True)
    was_killed = child(kill_at) == signal.SIGKILL
    if was_killed:
        status = child(0, "--resume")
        assert status == 0, status
    found = {path.name: path.read_bytes().hex() for path in Path().iterdir() if path.name != "program.py"}
    print(json.dumps(found), flush=True)
    if not was_killed:
        break
"""


def texts_of(count: int) -> list[str]:
    return [f"text {number}" if number % 7 else f"broken {number}" for number in range(count)]


def vectors_of(texts: list[str]) -> Any:
    from asyncembed.sync import TextEmbedding
    from asyncembed.testing import fake_models

    with fake_models(dim=8), TextEmbedding("org/model") as model:
        return model.passage_embed(texts).collect()


def check(path: Path, texts: list[str]) -> None:
    """That every text that has a vector is there once, in order."""
    failed = [json.loads(line) for line in path.with_name("failed.jsonl").read_text("utf-8").splitlines()]
    assert [record["failure"]["index"] for record in failed] == list(range(0, len(texts), 7))
    texts = [text for text in texts if "broken" not in text]
    if path.suffix == ".npy":
        written = np.load(path)
    elif path.suffix == ".jsonl":
        records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        assert [record["text"] for record in records] == texts
        written = np.array([record["embedding"] for record in records], np.float32)
    else:
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        assert table["text"].to_pylist() == texts
        written = np.array(table["embedding"].to_pylist(), np.float32)
    assert (written == vectors_of(texts)).all()


@pytest.mark.posix
@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_any_step_on_a_file_loses_and_doubles_nothing(kind: str, tmp_path: Path) -> None:
    texts = texts_of(8)
    (tmp_path / "in.txt").write_text("\n".join(texts), encoding="utf-8")
    done = programs.run(KILLED_AT_EACH_STEP, tmp_path, f"out.{kind}")
    assert done.returncode == 0, done.stderr
    results = done.stdout.splitlines()
    assert len(results) > 15
    last = json.loads(results[-1])
    for result in results:
        assert json.loads(result) == last
    check(tmp_path / f"out.{kind}", texts)


@pytest.mark.posix
@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
def test_kills_at_random_moments_lose_and_double_nothing(kind: str, tmp_path: Path) -> None:
    """Whatever is said of a broken line, and whether the file is named from here or from the root."""
    texts = texts_of(800)
    source = tmp_path / "in.txt"
    source.write_bytes("\n".join(texts).encode().replace(b"broken 14", b"broken \xff14"))
    output = tmp_path / f"out.{kind}"
    chance = random.Random(kind)
    options = ("--on-error", "failed.jsonl", "--resume", "--json", "--max-batch-size", "8")
    kills = 0
    for attempt in count():
        named = source.name if attempt % 2 else str(source)
        program = programs.start(EMBEDS, tmp_path, "0.02", "0.02", named, "-o", output.name, *options)
        journal = tmp_path / f"out.{kind}.partial/journal"
        before = journal.stat().st_size if journal.exists() else 0
        if attempt < 4:
            while program.poll() is None and not (journal.exists() and journal.stat().st_size > before):
                time.sleep(0.002)
            time.sleep(chance.uniform(0.0, 0.15))
            kills += program.poll() is None
            program.kill()
        said, errors = program.communicate(timeout=30)
        if program.returncode == 0:
            break
        assert program.returncode == -KILL, errors
        assert not output.exists()
    assert kills >= 3
    check(output, texts)
    assert json.loads(said)["resumed_after"] > 0


@pytest.mark.posix
def test_ctrl_c_keeps_what_is_done_and_is_a_130(tmp_path: Path) -> None:
    texts = texts_of(3000)
    (tmp_path / "in.txt").write_text("\n".join(texts), encoding="utf-8")
    arguments = ("in.txt", "-o", "out.jsonl", "--on-error=failed.jsonl", "--resume")
    program = programs.start(EMBEDS, tmp_path, "0.05", "0.02", *arguments, new_session=True)
    journal = tmp_path / "out.jsonl.partial/journal"
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 3):
        time.sleep(0.005)
    posix.press_ctrl_c(program.pid)
    _, errors = program.communicate(timeout=15)
    assert program.returncode == 130, errors
    assert errors.splitlines()[-1] == "Interrupted."
    assert "--resume goes on with them" in errors
    assert "Traceback" not in errors
    done = programs.run(EMBEDS, tmp_path, "1", "0", *arguments)
    assert done.returncode == 0, done.stderr
    check(tmp_path / "out.jsonl", texts)


@pytest.mark.posix
def test_workers_of_a_killed_one_end_too(tmp_path: Path) -> None:
    import psutil

    from tests.support.models import write_self_describing_model

    model = write_self_describing_model(tmp_path / "model", dim=8)
    (tmp_path / "in.txt").write_text("\n".join(["a text"] * 200_000), encoding="utf-8")
    source = "import sys\nfrom asyncembed.cli.commands import main\nmain(sys.argv[1:])"
    arguments = ("embed", str(model), "in.txt", "-o", "out.npy", "--workers=2", "--max-length=64")
    program = programs.start(source, tmp_path, *arguments)
    journal = tmp_path / "out.npy.partial/journal"
    while not journal.exists():
        assert program.poll() is None, program.communicate()
        time.sleep(0.01)
    workers = worker_processes(program.pid)
    assert len(workers) == 2
    kill(program.pid)
    program.communicate()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive


def test_nobody_waits_for_records_that_come_later(tmp_path: Path) -> None:
    """A source that trickles: what came is written before there is a batch of it."""
    program = programs.start(EMBEDS, tmp_path, "0.1", "0", "-o", "out.jsonl")
    assert program.stdin is not None
    program.stdin.write("one\n")
    program.stdin.flush()
    journal = tmp_path / "out.jsonl.partial/journal"
    while not (journal.exists() and b'"written": 1' in journal.read_bytes()):
        assert program.poll() is None, program.communicate()
        time.sleep(0.01)
    _, errors = program.communicate("two\n", timeout=15)
    assert program.returncode == 0, errors
    assert len((tmp_path / "out.jsonl").read_text("utf-8").splitlines()) == 2


@pytest.mark.posix
@pytest.mark.parametrize(("arguments", "has_bar"), [((), True), (("--quiet",), False)])
def test_a_terminal_gets_a_bar(arguments: tuple[str, ...], has_bar: bool, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("\n".join(["a text"] * 50), encoding="utf-8")
    (tmp_path / "program.py").write_text(EMBEDS, encoding="utf-8")
    command = [sys.executable, "program.py", "1", "0", "in.txt", "-o", "out.npy", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(programs.ROOT)}
    shown = posix.shown_in_terminal(command, cwd=tmp_path, env=environment)
    assert (b"50/50" in shown) == (b"out.npy: 50 records" in shown) == has_bar


@pytest.mark.posix
def test_a_reader_that_goes_away_ends_it_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("\n".join(["a text"] * 100_000), encoding="utf-8")
    with programs.start(EMBEDS, tmp_path, "1", "0", "in.txt") as program:
        assert program.stdout is not None
        assert program.stderr is not None
        assert program.stdout.readline().startswith('{"text": "a text", "embedding": [')
        program.stdout.close()
        errors = program.stderr.read()
    assert program.returncode == 1
    assert errors.count("\n") == 1, errors  # that models are fakes


@pytest.mark.posix
def test_where_there_is_no_more_room_is_said(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("\n".join(texts_of(300)), encoding="utf-8")
    embed = "asyncembed embed --workers 0 BAAI/bge-small-en-v1.5 in.txt -o out.jsonl"
    command = f"ulimit -f 64 && exec {sys.executable} -m {embed}"
    environment = {**os.environ, "ASYNCEMBED_FAKE": "1"}
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "Error: [Errno 27] File too large: 'out.jsonl'"
