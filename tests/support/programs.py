"""Running real Python programs that use the package, as their users start them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[2]
ELSEWHERE = ROOT / "tests/support/elsewhere"
PROGRAM_SECONDS = 60

HowRun = Literal["script", "stdin", "-c", "-m", "-m asyncio"]


def start(
    source: str,
    directory: Path,
    *arguments: str,
    how: HowRun = "script",
    new_session: bool = False,
    elsewhere: bool = False,
) -> subprocess.Popen[str]:
    """Start `source` as a program, in `directory`; it can import this package and the tests' support.

    With `elsewhere` the package finds what it would find on Windows, see `tests/support/elsewhere`.
    """
    folders = [str(ROOT), *([str(ELSEWHERE)] if elsewhere else []), os.environ.get("PYTHONPATH", "")]
    path = directory / "program.py"
    path.write_text(source, "utf-8")
    command = {
        "script": [str(path)],
        "stdin": ["-"],
        "-c": ["-c", source],
        "-m": ["-m", "program"],
        "-m asyncio": ["-m", "asyncio"],
    }[how]
    process = subprocess.Popen(
        [sys.executable, "-W", "error", *command, *arguments],
        cwd=directory,
        # No empty folder among them, which means the one that the program runs in: it may be gone.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=new_session,
    )
    assert process.stdin is not None
    if how in ("stdin", "-m asyncio"):
        process.stdin.write(source)
        process.stdin.close()
        process.stdin = None
    return process


def run(
    source: str, directory: Path, *arguments: str, how: HowRun = "script", elsewhere: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run `source` as a program until it ends."""
    process = start(source, directory, *arguments, how=how, elsewhere=elsewhere)
    output, errors = process.communicate(timeout=PROGRAM_SECONDS)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)
