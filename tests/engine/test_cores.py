"""The signs of sibling servers, and what is left of the cores."""

import os
import sys
from math import inf
from pathlib import Path

import psutil
import pytest

from asyncembed.engine import cores as cores_module
from asyncembed.engine.cores import available_cores, available_memory, server_processes, share_cores
from tests.support import programs


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (["/usr/bin/uvicorn", "app:app", "--workers", "4"], 4),
        (["/usr/bin/uvicorn", "--workers=3", "app:app"], 3),
        (["/lib/uvicorn/__main__.py", "app:app", "--workers", "2"], 2),
        (["/usr/bin/gunicorn", "-w", "5", "app:app"], 5),
        (["/usr/bin/gunicorn", "-w5", "app:app"], 5),
        (["granian.exe", "--workers", "2"], 2),
        (["/usr/bin/uvicorn", "app:app"], 1),
        (["/usr/bin/uvicorn", "--workers"], 1),
        (["/usr/bin/uvicorn", "--workers", "many"], 1),
        (["train.py", "--workers", "8"], 1),
        ([], 1),
    ],
)
def test_the_command_line_of_a_server_tells_how_many_there_are(
    arguments: list[str], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    monkeypatch.setattr(sys, "argv", arguments)
    assert server_processes() == count


def test_web_concurrency_goes_before_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["uvicorn", "--workers", "4"])
    monkeypatch.setenv("WEB_CONCURRENCY", "2")
    assert server_processes() == 2
    monkeypatch.setenv("WEB_CONCURRENCY", str(10 * (os.cpu_count() or 1)))
    assert available_cores() == 1
    monkeypatch.setenv("WEB_CONCURRENCY", "auto")
    assert server_processes() == 1


def test_processes_that_were_told_of_their_siblings_share_the_cores() -> None:
    cores = available_cores()
    try:
        share_cores(2)
        assert available_cores() == max(1, cores // 2)
        share_cores(10 * cores)
        assert available_cores() == 1
    finally:
        share_cores(1)


@pytest.mark.slow
def test_a_server_process_that_does_not_know_its_siblings_says_how_to_tell_it(tmp_path: Path) -> None:
    """As those of `uvicorn.run("app:app", workers=4)`."""
    source = """
import multiprocessing, os, sys, types
def serve():
    import logging
    logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s", stream=sys.stdout)
    sys.modules["uvicorn"] = types.ModuleType("uvicorn")
    from asyncembed.engine.cores import available_cores
    available_cores()
if __name__ == "__main__":
    os.environ.pop("WEB_CONCURRENCY", None)
    process = multiprocessing.get_context("spawn").Process(target=serve)
    process.start()
    process.join()
"""
    done = programs.run(source, tmp_path)
    assert done.stdout.startswith("asyncembed this looks like one of several server processes: set WEB_CONCURRENCY")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(("quota", "is_tight"), [(1.0, True), (3.5, True), (4.0, False), (6.0, False), (inf, False)])
def test_a_quota_is_tight_if_it_is_less_than_there_is_and_small(
    quota: float, is_tight: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores_module, "cpu_quota", lambda: quota)
    monkeypatch.setattr(cores_module, "_cores", lambda: 8)
    assert cores_module.has_tight_quota() is is_tight
    monkeypatch.setattr(cores_module, "_cores", lambda: 1)
    assert not cores_module.has_tight_quota()


def test_memory_is_shared_out_among_servers_as_cores_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program"])
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    alone = available_memory()
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    assert available_memory() == alone / 4
    if hasattr(os, "sysconf"):
        assert 0 < alone <= psutil.virtual_memory().total
