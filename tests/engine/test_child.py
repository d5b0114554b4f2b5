"""What runs inside a worker, called here without a process around it."""

import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from asyncembed.catalogue.spec import ModelSpec
from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, ModelInfo
from asyncembed.engine import child
from asyncembed.errors import EncodeError, InputError, ModelLoadError, UnsupportedModelError
from tests.support.encoders import ECHO, with_settings


def config_of(spec: ModelSpec) -> EncoderConfig:
    return EncoderConfig(spec=spec, directory=Path())


def loaded_host() -> child.Host:
    host = child.Host()
    assert isinstance(host.load(0, config_of(ECHO)), child.Loaded)
    return host


def test_loading_tells_what_the_encoder_knows_of_its_model() -> None:
    assert child.Host().load(0, config_of(ECHO)) == child.Loaded(ModelInfo(dim=3))


def test_a_model_is_loaded_once(tmp_path: Path) -> None:
    log = tmp_path / "loads"
    host, config = child.Host(), config_of(with_settings(load_log=str(log)))
    host.load(0, config)
    host.load(0, config)
    assert len(log.read_text("utf-8").splitlines()) == 1
    host.unload(0)
    host.load(0, config)
    assert len(log.read_text("utf-8").splitlines()) == 2


def test_a_foreign_error_of_loading_travels_as_text() -> None:
    answer = child.Host().load(0, config_of(with_settings(refuse="no such tensor")))
    assert isinstance(answer, child.Failed)
    assert isinstance(answer.error, ModelLoadError)
    assert str(answer.error) == "echo cannot be loaded: RuntimeError: no such tensor"
    assert answer.error.model == "echo"


def test_our_own_error_of_loading_travels_as_it_is() -> None:
    spec = ModelSpec(name="x", family="text", encoder="tests.support.encoders:Missing", sources=())
    answer = child.Host().load(0, config_of(spec))
    assert isinstance(answer, child.Failed)
    assert isinstance(answer.error, UnsupportedModelError)


def test_an_input_that_is_refused_leaves_the_others_their_results() -> None:
    answer = loaded_host().run(0, ["a", "bad", "abc"], Call())
    assert isinstance(answer, Encoded)
    assert list(answer.failures) == [1]
    assert [answer.results[i][0] for i in (0, 2)] == [1, 3]
    assert (answer.tokens, answer.padded_tokens) == (7, 9)


def test_an_encoder_that_raises_fails_the_batch_with_its_traceback() -> None:
    answer = loaded_host().run(0, ["a", "raise"], Call())
    assert isinstance(answer, child.Failed)
    assert isinstance(answer.error, EncodeError)
    assert "told to fail" in str(answer.error)
    assert "_obey" in (answer.error.worker_traceback or "")


def test_an_encoder_may_fail_a_batch_with_our_own_error() -> None:
    answer = loaded_host().run(0, ["raise-input"], Call())
    assert isinstance(answer, child.Failed)
    assert isinstance(answer.error, InputError)


def test_too_few_results_are_an_error_of_the_encoder() -> None:
    answer = loaded_host().run(0, ["a", "odd-count"], Call())
    assert isinstance(answer, child.Failed)
    assert "1 results for 2 inputs" in str(answer.error)


def test_tokens_of_too_few_inputs_are_an_error_of_the_encoder() -> None:
    answer = loaded_host().run(0, ["a", "odd-tokens"], Call())
    assert isinstance(answer, child.Failed)
    assert "tokens of 1 inputs for 2" in str(answer.error)


def test_an_unknown_model_is_an_error_and_no_crash() -> None:
    answer = child.Host().run(7, ["a"], Call())
    assert isinstance(answer, child.Failed)


def test_every_answer_survives_pickling() -> None:
    host = loaded_host()
    for answer in (
        host.load(0, config_of(ECHO)),
        host.load(1, config_of(with_settings(refuse="no"))),
        host.run(0, ["a", "bad"], Call()),
        host.run(0, ["raise"], Call()),
    ):
        assert type(pickle.loads(pickle.dumps(answer))) is type(answer)


@pytest.mark.parametrize(
    "name",
    [
        "exit",
        "raise-KeyboardInterrupt",
        "raise-GeneratorExit",
        "raise-MemoryError",
        "raise-RecursionError",
        "raise-own",
    ],
)
def test_whatever_an_input_raises_is_an_error_of_the_batch(name: str) -> None:
    answer = loaded_host().run(0, ["a", name], Call())
    assert isinstance(answer, child.Failed)
    assert isinstance(answer.error, EncodeError)
    assert pickle.loads(pickle.dumps(answer)).error.worker_traceback


@pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt"])
def test_whatever_loading_raises_is_an_error_of_the_model(name: str) -> None:
    answer = child.Host().load(0, config_of(with_settings(raises=name)))
    assert isinstance(answer, child.Failed)
    assert isinstance(answer.error, ModelLoadError)
    assert name in str(answer.error)


class PlainEncoder:
    """Somebody's own, without `info`; its answer is of a class that only a worker knows."""

    def __init__(self, config: EncoderConfig) -> None: ...

    def encode(self, inputs: Sequence[object], call: Call) -> object:
        return SimpleNamespace(results=inputs, failures={}, tokens=1, padded_tokens=1)


def test_an_encoder_without_info_has_that_of_a_model_of_which_nothing_is_known() -> None:
    spec = ModelSpec(name="x", family="text", encoder=f"{__name__}:PlainEncoder", sources=())
    assert child.Host().load(0, config_of(spec)) == child.Loaded(ModelInfo())


def test_only_our_own_classes_leave_a_worker() -> None:
    spec = ModelSpec(name="x", family="text", encoder=f"{__name__}:PlainEncoder", sources=())
    host = child.Host()
    host.load(0, config_of(spec))
    answer = host.run(0, ["a"], Call())
    assert isinstance(answer, child.Failed)
    assert "SimpleNamespace instead of Encoded" in str(answer.error)


def test_what_cannot_be_imported_ahead_is_told_only_when_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imported_ahead.py").touch()
    (tmp_path / "broken_ahead.py").write_text("raise RuntimeError", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    child.import_ahead(["no_such_module", "broken_ahead", "imported_ahead"])
    assert sys.modules.pop("imported_ahead").__name__ == "imported_ahead"
