"""The guides to each shape of life, under the real frameworks and servers, as their docstrings start them."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import nbformat
import psutil
import pytest
from nbclient import NotebookClient

from tests.support.graphs import DIM
from tests.support.models import write_self_describing_model
from tests.support.waiting import WAIT_SECONDS, worker_processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("MODEL", str(write_self_describing_model(tmp_path / "model")))
    monkeypatch.setenv("ASYNCEMBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8")
    return dict(os.environ)


def test_every_example_is_in_the_index() -> None:
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    programs = {path.name for path in EXAMPLES.iterdir() if path.suffix in {".py", ".ipynb", ".sh"}} - {"__init__.py"}
    assert set(re.findall(r"\]\(([\w.]+\.(?:py|ipynb|sh))\)", index)) == programs


# ---------------------------------------------------------------- programs


def run(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], env=environment, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=50
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def test_a_program_without_a_loop_searches_in_threads_while_it_ingests(environment: dict[str, str]) -> None:
    output = run(environment, "examples.sync_program", "-n", "30", "--threads", "2")
    assert re.search(r"^34 texts in \d+ batches by \d+ workers$", output, re.MULTILINE)
    assert len(re.findall(r"^  -?\d+\.\d\d  [\w.]+$", output, re.MULTILINE)) == 12


def test_one_engine_serves_threads_and_loops_of_any_kind(environment: dict[str, str]) -> None:
    output = run(environment, "examples.any_loop")
    assert output.count(f"{DIM} numbers") == 2
    assert output.count("2 vectors") == 2
    assert "threads: 4 vectors" in output
    assert "10 inputs in" in output


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.posix
def test_celery_tasks_embed_in_either_pool(pool: str, environment: dict[str, str]) -> None:
    output = run(environment, "examples.celery_tasks", "--pool", pool)
    assert output.count(f"{DIM} numbers for: ") == 4
    assert ("a process of the pool" if pool == "prefork" else "this process") in output


# ---------------------------------------------------------------- a notebook


def test_a_notebook_may_be_run_again_and_leaves_no_worker(environment: dict[str, str]) -> None:
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    assert not any(cell.get("outputs") for cell in notebook.cells), "store it without outputs"
    client = NotebookClient(notebook, resources={"metadata": {"path": str(EXAMPLES)}}, timeout=30)
    before = set(worker_processes())
    with client.setup_kernel(env=environment):
        counts = []
        for _ in range(3):
            for index, cell in enumerate(notebook.cells):
                if "unload" not in cell.source:
                    client.execute_cell(cell, index)
            counts.append(len(set(worker_processes()) - before))
        # Kernel and workers, whatever was run again; and one more once a query has met an ingest.
        assert max(counts) <= min(counts) + 1, counts
        assert counts[0] > 1
        processes = set(worker_processes()) - before
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive


# ---------------------------------------------------------------- servers


@contextmanager
def served(environment: dict[str, str], directory: Path, *command: str) -> Iterator[httpx.Client]:
    """A server that listens where it likes; when it has ended, nothing of it is left."""
    log = directory / "log"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", *command], env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        with httpx.Client(base_url=address(log), timeout=WAIT_SECONDS, trust_env=False) as client:
            yield client
        processes = worker_processes(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_SECONDS) in (0, -signal.SIGINT)
        _, alive = psutil.wait_procs(processes, timeout=10)
        assert not alive
        assert "Traceback" not in log.read_text(encoding="utf-8"), log.read_text(encoding="utf-8")
    finally:
        for left in worker_processes(process.pid):
            left.kill()
        process.kill()
        process.wait()


def address(log: Path) -> str:
    """Where the server says that it listens."""
    end = monotonic() + WAIT_SECONDS
    while not (found := re.search(r"http://127\.0\.0\.1:[1-9]\d*", log.read_text(encoding="utf-8"))):
        assert monotonic() < end, log.read_text(encoding="utf-8")
        sleep(0.02)
    return found[0]


DJANGO = [
    pytest.param(["uvicorn", "--lifespan", "off", "--port", "0", "examples.web_django:asgi"], id="uvicorn"),
    pytest.param(
        [
            "gunicorn",
            "--preload",
            "--threads",
            "8",
            "--no-control-socket",
            "-b",
            "127.0.0.1:0",
            "examples.web_django:wsgi",
        ],
        marks=pytest.mark.posix,
        id="gunicorn",
    ),
    pytest.param(["examples.web_django", "runserver", "--noreload", "0"], id="wsgiref"),
]


@pytest.mark.parametrize("command", DJANGO)
def test_django_views_of_both_kinds_share_a_model(command: list[str], environment: Any, tmp_path: Path) -> None:
    with served(environment, tmp_path, *command) as client:

        def one(number: int) -> int:
            if number % 2:
                return len(client.get("/query", params={"text": f"number {number}"}).json())
            return len(client.post("/documents", content=json.dumps([f"number {number}"])).json()[0])

        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(one, range(32))) == {DIM}
        assert client.get("/stats").json()["computed"] == 32
        refused = client.post("/documents", content=json.dumps(["fine", 42]))
        assert refused.status_code == 422
        assert refused.json()["detail"] == "input 1: expected a str, got int"


def test_hooks_open_a_model_and_a_request_exchanges_it(environment: dict[str, str], tmp_path: Path) -> None:
    other = write_self_describing_model(tmp_path / "other", dim=DIM * 2)
    with served(environment, tmp_path, "uvicorn", "--port", "0", "examples.hooks:app") as client:
        assert len(client.get("/query", params={"text": "one"}).json()) == DIM
        assert client.post("/model", json={"name": str(tmp_path / "missing")}).status_code == 400
        assert len(client.get("/query", params={"text": "one"}).json()) == DIM
        assert client.post("/model", json={"name": str(other)}).status_code == 200
        assert len(client.get("/query", params={"text": "one"}).json()) == DIM * 2
