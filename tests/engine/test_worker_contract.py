"""What the engine counts on in every implementation of `Worker`."""

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, ModelInfo
from asyncembed.engine import child
from asyncembed.engine.worker import ProcessWorker, ThreadWorker, Worker, WorkerGone
from asyncembed.errors import EncodeError, InputError, ModelLoadError, UnsupportedModelError
from tests.support.encoders import ECHO, with_settings

if TYPE_CHECKING:
    from concurrent.futures import Future

pytestmark = pytest.mark.slow

CONFIG = EncoderConfig(spec=ECHO, directory=Path())
ANSWER_SECONDS = 15

Make = Callable[[], Worker]
MAKE: dict[str, Make] = {"process": lambda: ProcessWorker(threads=1), "thread": ThreadWorker}


@pytest.fixture(params=MAKE)
def make(request: pytest.FixtureRequest) -> Make:
    """Makes workers of one kind after the other."""
    return MAKE[request.param]


@pytest.fixture
def worker(make: Make) -> Iterator[Worker]:
    """A worker that has said its first word, and has the model 0."""
    worker = make()
    worker.start().result(ANSWER_SECONDS)
    worker.load(0, CONFIG).result(ANSWER_SECONDS)
    yield worker
    worker.kill()
    worker.stop()


def lengths(answer: "Future[Encoded | child.Failed]") -> list[int]:
    computed = answer.result(ANSWER_SECONDS)
    assert isinstance(computed, Encoded)
    return [int(row[0]) for row in computed.results]


def error_of(answer: "Future[child.Loaded | child.Failed] | Future[Encoded | child.Failed]") -> Exception:
    failed = answer.result(ANSWER_SECONDS)
    assert isinstance(failed, child.Failed)
    return failed.error


def test_its_first_word_says_which_process_it_is(make: Make) -> None:
    worker = make()
    assert worker.start().result(ANSWER_SECONDS) == child.Hello(worker.pid or os.getpid())
    worker.stop()


def test_a_model_says_what_it_is_and_loads_once(worker: Worker, tmp_path: Path) -> None:
    config = replace(CONFIG, spec=with_settings(load_log=str(tmp_path / "loads")))
    for _ in range(2):
        assert worker.load(1, config).result(ANSWER_SECONDS) == child.Loaded(ModelInfo(dim=3))
    assert len((tmp_path / "loads").read_text("utf-8").splitlines()) == 1


def test_models_that_cannot_be_loaded_are_answers(worker: Worker) -> None:
    refused = error_of(worker.load(1, replace(CONFIG, spec=with_settings(refuse="not today"))))
    assert isinstance(refused, ModelLoadError)
    assert "not today" in str(refused)
    unknown = error_of(worker.load(1, replace(CONFIG, spec=replace(ECHO, encoder="nosuch"))))
    assert isinstance(unknown, UnsupportedModelError)
    assert lengths(worker.run(0, ["abc"], Call())) == [3]


def test_batches_are_answered_each_with_its_own(worker: Worker) -> None:
    answers = [worker.run(0, ["x" * (1 + number), "ab"], Call()) for number in range(20)]
    assert [lengths(answer) for answer in answers] == [[1 + number, 2] for number in range(20)]


def test_a_refused_input_leaves_its_batch_alone(worker: Worker) -> None:
    answer = worker.run(0, ["a", "bad", "abc"], Call())
    assert lengths(answer) == [1, 3, 3]
    computed = answer.result()
    assert isinstance(computed, Encoded)
    assert {position: type(error) for position, error in computed.failures.items()} == {1: InputError}
    assert (computed.tokens, computed.padded_tokens) == (7, 9)


@pytest.mark.parametrize(
    ("text", "kind"), [("raise", EncodeError), ("raise-input", InputError), ("odd-count", EncodeError)]
)
def test_a_batch_that_fails_is_an_answer_in_our_words(worker: Worker, text: str, kind: type[Exception]) -> None:
    assert type(error_of(worker.run(0, ["a", text], Call()))) is kind
    assert lengths(worker.run(0, ["abc"], Call())) == [3]


def test_a_dropped_model_is_no_longer_there(worker: Worker) -> None:
    worker.unload(0)
    worker.unload(7)  # never was there
    assert isinstance(error_of(worker.run(0, ["a"], Call())), EncodeError)
    assert worker.load(0, CONFIG).result(ANSWER_SECONDS) == child.Loaded(ModelInfo(dim=3))
    assert lengths(worker.run(0, ["abc"], Call())) == [3]


def test_only_a_process_can_die_and_shows_it(worker: Worker) -> None:
    assert (worker.pid is None) == (worker.death_fd is None)
    worker.kill()
    if worker.death_fd is not None:
        assert connection.wait([worker.death_fd], ANSWER_SECONDS)


def test_stopping_leaves_neither_process_nor_thread(make: Make) -> None:
    threads = threading.active_count()
    worker = make()
    worker.start().result(ANSWER_SECONDS)
    pid = worker.pid
    worker.stop()
    assert threading.active_count() == threads
    assert pid is None or not psutil.pid_exists(pid)


def test_stopping_waits_no_longer_than_the_grace_for_a_batch_that_hangs(worker: Worker, gate: Path) -> None:
    answer = worker.run(0, [f"wait:{gate}"], Call())
    pid = worker.pid
    worker.stop()
    assert answer.done() == (pid is not None)
    assert pid is None or not psutil.pid_exists(pid)


def test_it_can_be_ended_at_any_time_and_as_often_as_one_likes(make: Make) -> None:
    for start in (False, True):
        worker = make()
        if start:
            worker.start().result(ANSWER_SECONDS)
        for end in (worker.kill, worker.stop, worker.kill, worker.stop):
            end()


def test_a_worker_that_was_stopped_refuses_calls(worker: Worker) -> None:
    worker.stop()
    with pytest.raises(WorkerGone):
        worker.run(0, ["a"], Call())
    with pytest.raises(WorkerGone):
        worker.load(1, CONFIG)
    worker.unload(0)  # no news to anybody
