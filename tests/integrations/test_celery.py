"""Celery's own workers, whose processes, threads and ends are theirs."""

import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import psutil
import pytest
from celery import Celery

import asyncembed.integrations.celery
from asyncembed import sync
from asyncembed.engine.cores import available_cores
from asyncembed.errors import EncodeError, InputError, OptionError, OverloadedError
from asyncembed.integrations.celery import EmbeddingTask
from asyncembed.testing import Fakes, fake_models
from tests.support import snippets
from tests.support.programs import ROOT
from tests.support.waiting import worker_processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.posix]

NAME = "BAAI/bge-small-en-v1.5"
WAIT_SECONDS = 60.0


# ---------------------------------------------------------------- without a worker


@pytest.fixture
def fakes() -> Iterator[Fakes]:
    with fake_models() as switched_on:
        yield switched_on


@pytest.fixture
def app() -> Celery:
    return Celery("program", broker="memory://", backend="cache+memory://", set_as_current=False)


def task_of(app: Celery, function: Callable[..., Any], **options: Any) -> Any:
    made = app.task(base=EmbeddingTask, bind=True, shared=False, **{"model": sync.TextEmbedding(NAME), **options})(
        function
    )
    app.finalize()
    return made


def embed(self: Any, texts: list[str]) -> Any:
    return self.model.embed_documents(texts)


def test_results_become_lists(app: Celery, fakes: Fakes) -> None:
    """As they are called, and as a worker calls them: `apply` does as that does."""
    vectors = task_of(app, embed, name="vectors")
    with sync.TextEmbedding(NAME) as model:
        expected = model.embed_documents(["cats", "dogs"]).tolist()
    assert vectors(["cats", "dogs"]) == vectors.apply((["cats", "dogs"],)).get() == expected


def test_sparse_vectors_become_dicts_of_lists(app: Celery, fakes: Fakes) -> None:
    sparse = sync.SparseTextEmbedding("Qdrant/bm25")
    terms = task_of(app, embed, name="terms", model=sparse)
    (found,) = terms.apply((["cats sleep"],)).get()
    expected = sparse.embed_documents(["cats sleep"])[0]
    assert found == {"indices": expected.indices.tolist(), "values": expected.values.tolist()}


def test_what_is_no_array_stays(app: Celery, fakes: Fakes) -> None:
    given = {"id": 3, "score": np.float32(0.5), "vectors": [np.zeros(2)], "name": "x", "none": None}

    def mixed(self: Any) -> Any:
        return given

    assert task_of(app, mixed)() == {"id": 3, "score": 0.5, "vectors": [[0.0, 0.0]], "name": "x", "none": None}


def test_an_input_that_fails_is_told_to_the_sender(app: Celery, fakes: Fakes) -> None:
    """Raised, or in the place of its result; what travels of an error is its class and message."""

    def embed_all(self: Any, texts: list[Any]) -> Any:
        return self.model.embed(texts, on_error="return").collect()

    texts = ["cats", None, "half \ud800"]
    raising, returning = task_of(app, embed, name="raising"), task_of(app, embed_all, name="returning")
    with pytest.raises(InputError, match="^input 1: expected a str") as caught:
        raising.apply((texts,)).get()
    backend: Any = app.backend
    arrived = backend.exception_to_python(backend.prepare_exception(caught.value, "json"))
    assert type(arrived) is InputError
    assert str(arrived) == "input 1: expected a str, got NoneType"
    vector, *failed = returning.apply((texts,)).get()
    assert len(vector) == 384
    assert [one.keys() for one in failed] == [{"error"}] * 2
    assert [one["error"][:8] for one in failed] == ["input 1:", "input 2:"]
    with pytest.raises(InputError) as direct:
        raising(texts)
    assert direct.value.index == 1


@pytest.mark.parametrize("wrong", [NAME, object(), asyncembed.TextEmbedding(NAME)])
def test_a_model_of_another_kind_is_refused(wrong: Any, app: Celery) -> None:
    with pytest.raises(OptionError, match="of asyncembed.sync"):
        task_of(app, embed, model=wrong)


def test_what_may_pass_is_tried_again_and_a_bad_input_is_not(app: Celery, fakes: Fakes) -> None:
    calls = []

    def fail(self: Any, error: Exception) -> None:
        calls.append(error)
        raise error

    failing = task_of(app, fail, name="failing", retry_backoff=False, default_retry_delay=0)
    for error, count in [(OverloadedError("busy"), 4), (InputError("no text"), 1), (EncodeError("no number"), 1)]:
        calls.clear()
        with pytest.raises(type(error)):
            failing.apply((error,)).get()
        assert len(calls) == count


def test_the_snippet_of_the_readme_is_a_task(app: Celery, fakes: Fakes) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    names = {"app": app, "EmbeddingTask": EmbeddingTask, "model": sync.TextEmbedding(NAME)}
    decorate = eval(snippets.of_integration(readme, "celery"), names)
    assert np.shape(decorate(embed)(["cats", "dogs"])) == (2, 384)


# ---------------------------------------------------------------- with one


PROGRAM = """
import os, time
import celery
from dataclasses import replace
from asyncembed.integrations.celery import EmbeddingTask
from asyncembed.sync import TextEmbedding
from tests.support.encoders import ECHO

app = celery.Celery("program", broker="filesystem://", backend="file://results")
app.conf.broker_transport_options = {
    "data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control", "store_processed": False,
    "polling_interval": 0.05,  # a second otherwise, for each task
}
app.conf.broker_connection_retry_on_startup = True
model = TextEmbedding(replace(ECHO, settings={"load_log": "loads"}))


@app.task(base=EmbeddingTask, bind=True, model=model)
def embed(self, texts):
    return {"vectors": self.model.embed_documents(texts), "process": os.getpid()}


@app.task(base=EmbeddingTask, bind=True, model=model, soft_time_limit=1)
def embed_soon(self, texts):
    try:
        return self.model.embed_documents(texts)
    except celery.exceptions.SoftTimeLimitExceeded:
        return "too slow"
"""


class Worker:
    """A worker of Celery's in a directory of its own."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        (directory / "program.py").write_text(PROGRAM, encoding="utf-8")
        for name in ("queue", "results", "control"):
            (directory / name).mkdir()
        self.environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{directory}"}
        self._output = (directory / "output").open("w", encoding="utf-8")
        command = ["celery", "-A", "program", "worker", "--loglevel=INFO", "--without-mingle", "--without-gossip"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command, *options],
            cwd=directory,
            env=self.environment,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        end = monotonic() + WAIT_SECONDS
        while " ready." not in self.output():
            assert monotonic() < end, self.output()
            sleep(0.05)

    def output(self) -> str:
        return (self.directory / "output").read_text(encoding="utf-8")

    def ask(self, expression: str) -> Any:
        """What a client of this program gets: the value of an expression, as its own process prints it."""
        done = subprocess.run(
            [sys.executable, "-c", f"import program, celery\nprint(repr({expression}))"],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            encoding="utf-8",
            timeout=WAIT_SECONDS,
        )
        assert done.returncode == 0, done.stderr + self.output()
        return eval(done.stdout)

    def loads(self) -> list[list[int]]:
        """Process and threads of each loading of the model."""
        lines = (self.directory / "loads").read_text(encoding="utf-8").splitlines()
        return [[int(line.split()[0]), int(line.split()[2])] for line in lines]

    def end(self) -> None:
        """Warm shutdown; nothing of it is left."""
        processes = worker_processes(self.process.pid)
        self.process.terminate()
        assert self.process.wait(WAIT_SECONDS) == 0
        _, alive = psutil.wait_procs(processes, timeout=5)
        assert not alive
        assert "Traceback" not in self.output(), self.output()

    def kill(self) -> None:
        for process in worker_processes(self.process.pid):
            process.kill()
        self.process.kill()
        self.process.wait()
        self._output.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def start(*options: str) -> Worker:
        workers.append(Worker(tmp_path, *options))
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()


SIX = "[one.get(interval=0.05, timeout=50) for one in [program.embed.delay(['four', 'fifth']) for _ in range(6)]]"


def test_processes_of_the_prefork_pool_compute_by_themselves_with_their_share_of_the_cores(
    start: Callable[..., Worker],
) -> None:
    worker = start("--pool=prefork", "--concurrency=2")
    for answer in worker.ask(SIX):
        assert [vector[:2] for vector in answer["vectors"]] == [[4.0, answer["process"]], [5.0, answer["process"]]]
    assert {threads for _, threads in worker.loads()} == {max(1, available_cores() // 2)}
    worker.end()


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_other_pools_have_worker_processes_which_end_with_them(pool: str, start: Callable[..., Worker]) -> None:
    worker = start(f"--pool={pool}", "--concurrency=4")
    computed = {vector[1] for answer in worker.ask(SIX) for vector in answer["vectors"]}
    loaded = {process for process, _ in worker.loads()}
    assert computed <= loaded
    assert worker.process.pid not in loaded
    assert len(loaded) == available_cores()
    worker.end()


def test_a_bad_input_is_its_senders_error(start: Callable[..., Worker]) -> None:
    worker = start("--pool=prefork", "--concurrency=1")
    caught = worker.ask(
        "type(program.embed.delay(['good', 'bad']).get(interval=0.05, timeout=50, propagate=False)).__name__"
    )
    assert caught == "InputError"
    assert "retry" not in worker.output().lower()
    worker.end()


def test_a_soft_time_limit_ends_the_wait(start: Callable[..., Worker], tmp_path: Path) -> None:
    worker = start("--pool=prefork", "--concurrency=1")
    assert worker.ask(f"program.embed_soon.delay(['wait:{tmp_path}/go']).get(interval=0.05, timeout=50)") == "too slow"
    (tmp_path / "go").touch()
    assert len(worker.ask("program.embed.delay(['four']).get(interval=0.05, timeout=50)")["vectors"]) == 1
    worker.end()


def test_the_example_of_the_module_comes_to_what_it_says(fakes: Fakes, capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = snippets.fenced(inspect.getdoc(asyncembed.integrations.celery) or "")
    exec(snippets.as_program(snippet, "asyncembed.integrations.celery"), {})
    snippets.assert_printed(capsys.readouterr().out, snippet)
