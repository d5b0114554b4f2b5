"""The command `cache`, as its users call it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from asyncembed.cli.commands import main
from tests.cli.test_stored import write_repo
from tests.hub.server import HubServer, Repo

pytestmark = pytest.mark.posix


def run(root: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["cache", *arguments, "--cache-dir", str(root)])


def test_it_lists_what_is_there_under_the_names_of_the_catalogue(tmp_path: Path) -> None:
    write_repo(tmp_path, "Qdrant/bge-small-en", {"model.onnx": b"x" * 1500})
    shown = run(tmp_path)
    assert shown.exit_code == 0
    first, _, header, row, _, last = shown.stdout.splitlines()
    assert first.startswith(f"{tmp_path} (shared with other tools), ")
    assert header.split() == ["NAME", "WHAT", "SIZE", "USED", "WHERE"]
    assert row.startswith("Qdrant/bge-small-en (BAAI/bge-small-en)  model  1.5 kB  2")
    assert row.endswith("  models--Qdrant--bge-small-en")
    assert last == "1 model, 1.5 kB"


def test_an_empty_cache_is_none_at_all(tmp_path: Path) -> None:
    assert run(tmp_path / "none").stdout.endswith("\n\n0 models, 0 B\n")


def test_json_has_it_all(tmp_path: Path) -> None:
    write_repo(tmp_path, "Qdrant/bge-small-en")
    document = json.loads(run(tmp_path, "--json").stdout)
    assert document["hub"] == str(tmp_path)
    assert document["size_bytes"] == 1
    (stored,) = document["stored"]
    assert (stored["kind"], stored["models"]) == ("model", ["BAAI/bge-small-en"])


def test_clearing_asks_and_a_no_leaves_all_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_repo(tmp_path, "org/a")
    monkeypatch.setattr("asyncembed.cli.cache_command._is_terminal", lambda: True)
    refused = CliRunner().invoke(main, ["cache", "clear", "org/a", "--cache-dir", str(tmp_path)], input="n\n")
    assert refused.exit_code == 1
    assert folder.exists()
    taken = CliRunner().invoke(main, ["cache", "clear", "org/a", "--cache-dir", str(tmp_path)], input="y\n")
    assert taken.exit_code == 0
    assert not folder.exists()


def test_where_nobody_can_be_asked_nothing_is_deleted_without_yes(tmp_path: Path) -> None:
    folder = write_repo(tmp_path, "org/a")
    refused = run(tmp_path, "clear", "org/a")
    assert refused.exit_code == 2
    assert "say --yes" in refused.stderr
    assert run(tmp_path, "clear", "org/a", "--dry-run").exit_code == 0
    assert folder.exists()
    assert run(tmp_path, "clear", "org/a", "--yes").exit_code == 0
    assert not folder.exists()


def test_the_cache_may_be_named_before_or_behind_clear(tmp_path: Path) -> None:
    folder = write_repo(tmp_path, "org/a")
    done = CliRunner().invoke(main, ["cache", "--cache-dir", str(tmp_path), "clear", "org/a", "-y", "--json"])
    assert json.loads(done.stdout)["stored"][0]["path"] == str(folder)
    assert not folder.exists()


def test_a_model_that_is_not_there_is_told_and_nothing_else_is_deleted(tmp_path: Path) -> None:
    folder = write_repo(tmp_path, "org/a")
    done = run(tmp_path, "clear", "org/a", "org/b", "--yes")
    assert done.exit_code == 1
    assert "nothing of 'org/b'" in done.stderr
    assert folder.exists()


def test_to_clear_nothing_in_particular_is_wrong_use(tmp_path: Path) -> None:
    write_repo(tmp_path, "org/a")
    assert run(tmp_path, "clear", "--yes").exit_code == 2
    assert "is empty" in run(tmp_path, "clear", "", "--yes").stderr, "nameless are all graphs of local directories"
    assert run(tmp_path, "clear", "--made", "--yes").stdout.endswith("0 models, 0 B\n")


@pytest.mark.slow
def test_what_was_downloaded_is_there_and_can_be_cleared(tmp_path: Path) -> None:
    with HubServer() as hub:
        hub.repos["org/own"] = Repo({"config.json": b"{}", "model.onnx": b"x" * 5000}, large=frozenset({"model.onnx"}))
        home = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}

        def program(*arguments: str) -> Any:
            command = [sys.executable, "-m", "asyncembed", *arguments, "--json"]
            done = subprocess.run(command, env=home, capture_output=True, encoding="utf-8", check=False)
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        (downloaded,) = program("download", "org/own", "--pattern", "*")
        (stored,) = program("cache")["stored"]
        assert Path(downloaded["directory"]).is_relative_to(stored["path"])
        assert (stored["name"], stored["size_bytes"]) == ("org/own", 5002)
        assert program("cache", "clear", "org/own", "--yes")["size_bytes"] == 5002
        assert program("cache")["stored"] == []
