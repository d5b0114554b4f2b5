"""What doctor finds on this machine, and on ones that lack something."""

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from asyncembed import __version__
from asyncembed.cli import checkup
from asyncembed.cli.checkup import Finding
from asyncembed.engine.worker import ProcessWorker
from asyncembed.errors import WorkersImpossible
from tests.hub.server import HubServer, Repo


def only(findings: Iterator[Finding], subject: str) -> Finding:
    (found,) = [finding for finding in findings if finding.subject == subject]
    return found


def test_versions_are_those_of_what_runs_here() -> None:
    assert only(checkup.versions(), "asyncembed").text.startswith(f"{__version__} in ")
    assert "numpy 2" in only(checkup.versions(), "packages").text


def test_two_runtimes_over_each_other_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "_version", lambda package: "1.32.0")
    found = only(checkup.versions(), "onnxruntime")
    assert found.state == "warning"
    assert "pip uninstall onnxruntime onnxruntime-gpu" in found.advice


@pytest.mark.parametrize(("quota", "state"), [(0.5, "warning"), (2.0, "ok")])
def test_a_quota_is_told_and_less_than_a_core_is_a_warning(
    quota: float, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkup, "cpu_quota", lambda: quota)
    found = only(checkup.processor(), "cores")
    assert found.state == state
    assert f"the container's limit is {quota:g}" in found.text


def test_a_gpu_that_nothing_uses_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(checkup.graphics(tmp_path / "absent")) == []
    for number, text in enumerate(("Model: \t\t NVIDIA H100\nIRQ: 5\n", "Model: NVIDIA L4\n")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "information").write_text(text, "utf-8")
    (found,) = checkup.graphics(tmp_path)
    assert (found.state, found.text) == ("note", "NVIDIA H100, NVIDIA L4; what is installed computes on the CPU")
    assert "asyncembed[gpu]" in found.advice
    monkeypatch.setattr(checkup, "_version", lambda package: "1.32.0")
    assert list(checkup.graphics(tmp_path)) == [Finding("gpu", "ok", "NVIDIA H100, NVIDIA L4")]


def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "_memory_of_linux", lambda: (16 * 10**9, 8 * 10**9))
    assert list(checkup.memory()) == [Finding("memory", "ok", "8.0 GB free of 16.0 GB")]
    monkeypatch.setattr(checkup, "memory_limit", lambda: 512e6)
    (found,) = checkup.memory()
    assert (found.state, found.text) == ("warning", "8.0 GB free of 16.0 GB; the container's limit is 512.0 MB")


@pytest.mark.posix
@pytest.mark.parametrize(
    ("is_writable", "free", "state"), [(True, 2**30, "ok"), (True, 0, "warning"), (False, 0, "failed")]
)
def test_the_place_of_semaphores_is_looked_at_where_there_is_one(
    is_writable: bool, free: int, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: is_writable)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=2**30, free=free))
    found = [finding.state for finding in checkup.shared_memory()]
    assert found == ([state] if sys.platform.startswith("linux") else [])


@pytest.mark.posix
def test_a_cache_that_is_not_there_can_be_made(tmp_path: Path) -> None:
    found = only(checkup.cache(tmp_path / "a" / "b"), "hub cache")
    assert found.state == "ok"
    assert f"{tmp_path / 'a' / 'b'} (not there yet)" in found.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.posix
def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    found = only(checkup.cache(tmp_path), "hub cache")
    assert found.state == "warning"
    assert "cannot be written (Read-only file system)" in found.text


def test_a_file_in_the_place_of_the_cache_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = only(checkup.cache(tmp_path / "file" / "hub"), "hub cache")
    assert found.state == "failed"
    assert "HF_HOME" in found.advice


def test_a_look_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    assert {finding.subject for finding in checkup.cache(tmp_path)} == {"hub cache", "own cache", "links"}
    assert list(tmp_path.iterdir()) == []


def test_of_the_environment_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:secret@mirror.example/hub")
    monkeypatch.setenv("ASYNCEMBED_FAKE", "1")
    text = only(checkup.environment(), "environment").text
    assert "HF_ENDPOINT=https://mirror.example/hub" in text
    assert "secret" not in text
    assert only(checkup.environment(), "fakes").state == "warning"


def test_offline_no_network_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "proxy_addresses", lambda: ["http://me:secret@proxy.example:3128"])
    assert list(checkup.hub(network=False)) == [
        Finding("proxy", "note", "http://proxy.example:3128"),
        Finding("hub", "note", f"{constants.ENDPOINT} is not asked, as --offline says"),
    ]


def test_a_look_that_fails_is_a_finding_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def faint() -> Iterator[Finding]:
        raise ZeroDivisionError("nobody foresaw this")

    def never() -> Iterator[Finding]:
        return iter(())

    monkeypatch.setattr(checkup, "memory", faint)
    monkeypatch.setattr(checkup, "worker", never)
    found = {finding.subject: finding for finding in checkup.examine(network=False)}
    assert found["faint"].text == "could not be looked at: ZeroDivisionError: nobody foresaw this"
    assert {"python", "cpu", "hub cache", "hub"} <= found.keys()


# ---------------------------------------------------------------- with processes and sockets


@pytest.mark.slow
def test_a_worker_starts_and_both_runtimes_compute_in_it() -> None:
    assert [(finding.subject, finding.state) for finding in checkup.worker()] == [
        ("worker process", "ok"),
        ("CPUExecutionProvider", "ok"),
        ("OpenVINO", "ok"),
    ]


def test_where_there_can_be_no_workers_threads_are_the_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise WorkersImpossible("no semaphores")

    monkeypatch.setattr(ProcessWorker, "start", refuse)
    (found,) = checkup.worker()
    assert (found.state, found.text) == ("failed", "no semaphores")
    assert "workers=0" in found.advice


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        yield server


@pytest.mark.slow
def test_a_hub_that_answers_is_well(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    found = only(checkup.hub(network=True), "hub")
    assert found.state == "ok"
    assert found.text.endswith(f"but has no {checkup.KNOWN_REPO}, asked without a token")
    hub.repos[checkup.KNOWN_REPO] = Repo({"config.json": b"{}"})
    hub.known_tokens = {"hf_known"}
    monkeypatch.setenv("HF_TOKEN", "hf_known")
    assert only(checkup.hub(network=True), "hub").text.endswith("and takes the token")


@pytest.mark.slow
def test_a_token_that_the_hub_does_not_know_is_a_failure(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.known_tokens = {"hf_known"}
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    found = only(checkup.hub(network=True), "hub")
    assert found.state == "failed"
    assert "hf_unknown" not in found.text


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_a_failure_and_no_line_of_the_log(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert only(checkup.hub(network=True), "hub").state == "failed"
    assert not caplog.records
