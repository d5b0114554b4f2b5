"""The command `doctor`, as its users call it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from asyncembed.cli import checkup
from asyncembed.cli.checkup import Finding
from asyncembed.cli.commands import main


@pytest.mark.slow
def test_on_this_machine_all_is_well(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "asyncembed", "doctor", "--offline", "--json", "--cache-dir", str(tmp_path)],
        env={**os.environ, "HF_TOKEN": "hf_secret"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    found = {finding["subject"]: finding for finding in json.loads(done.stdout)}
    assert (done.returncode, done.stderr) == (0, "")
    assert found["CPUExecutionProvider"]["state"] == "ok"
    assert "hf_secret" not in done.stdout


def test_what_does_not_work_is_a_1_and_comes_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [Finding("python", "ok", "3.11"), Finding("hub", "failed", "cannot be reached", "look at the proxy")]
    monkeypatch.setattr(checkup, "examine", lambda *_, **__: iter(findings))
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 1
    assert done.stdout == "ok    python: 3.11\nFAIL  hub: cannot be reached\n      > look at the proxy\n"
