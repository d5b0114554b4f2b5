"""The group of all commands: what the shell sees of them, as programs of their own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import asyncembed
from asyncembed.cli import commands
from asyncembed.cli.commands import CommandGroup, main
from asyncembed.errors import OptionError, UnknownModelError

PROGRAMS = {
    "module": [sys.executable, "-m", "asyncembed"],
    "program": [str(Path(sys.executable).with_name("asyncembed"))],
}


def run(*arguments: str, how: str = "module") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAMS[how], *arguments], capture_output=True, encoding="utf-8", check=False)


@pytest.mark.slow
@pytest.mark.parametrize("how", PROGRAMS)
def test_both_ways_in_are_the_same(how: str) -> None:
    shown = run("--help", how=how)
    assert shown.returncode == 0
    assert shown.stdout.startswith("Usage: asyncembed [OPTIONS] COMMAND")
    assert run("--version", how=how).stdout == f"asyncembed, version {asyncembed.__version__}\n"


def test_every_command_says_what_it_does() -> None:
    shown = CliRunner().invoke(main, ["-h"]).output
    assert "..." not in shown.partition("Commands:")[2]
    for name in commands.MODULES:
        assert re.search(rf"\n  {name} .*\.\n", shown), "a whole sentence"
        assert CliRunner().invoke(main, [name, "--help"]).output.startswith(f"Usage: main {name} ")


@pytest.mark.slow
def test_help_loads_nothing_heavy() -> None:
    source = "import sys\nfrom asyncembed.cli.commands import main\ntry: main(['--help'])\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, encoding="utf-8", check=False)
    heavy = {"numpy", "anyio", "httpx", "huggingface_hub", "onnxruntime", "fastapi", "uvicorn", "pyarrow", "tqdm"}
    assert not heavy & set(done.stdout.splitlines()[-1].split()), done.stderr


@pytest.mark.parametrize("arguments", [["nosuch"], ["download"], ["models", "--family", "nosuch"], ["models", "--no"]])
def test_wrong_use_is_a_2(arguments: list[str]) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert "Usage: " in done.stderr


@pytest.fixture
def group() -> click.Group:
    """The group with a command that fails as its argument says."""
    failures = {
        "option": OptionError("workers must be at least 0"),
        "model": UnknownModelError("no model 'x'"),
        "disk": OSError(28, "No space left on device", "out.jsonl"),
        "ctrl-c": KeyboardInterrupt(),
    }

    @click.command()
    @click.argument("how")
    def fail(how: str) -> None:
        raise failures[how]

    class WithFailures(CommandGroup):
        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            return fail if cmd_name == "fail" else None

    return WithFailures("main")


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("option", 2, "Error: workers must be at least 0"),
        ("model", 1, "Error: no model 'x'"),
        ("disk", 1, "Error: [Errno 28] No space left on device: 'out.jsonl'"),
        ("ctrl-c", 130, "Interrupted."),
    ],
)
def test_what_goes_wrong_is_a_sentence_and_a_code(how: str, code: int, said: str, group: click.Group) -> None:
    done = CliRunner().invoke(group, ["fail", how])
    assert (done.exit_code, done.stdout) == (code, "")
    assert done.stderr.splitlines()[-1] == said


@pytest.mark.slow
@pytest.mark.posix
@pytest.mark.parametrize("arguments", [["models"], ["models", "--json"]])
def test_a_reader_that_goes_away_sees_no_traceback(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with subprocess.Popen(
        [*PROGRAMS["module"], *arguments], stdout=writing, stderr=subprocess.PIPE, encoding="utf-8"
    ) as child:
        os.close(writing)
        _, errors = child.communicate(timeout=15)
    assert (child.returncode, errors) == (1, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("asyncembed doc", {"doctor"}),
        ("asyncembed cache --js", {"--json"}),
        ("asyncembed bench sentence-transformers/all-minilm", {"sentence-transformers/all-MiniLM-L6-v2"}),
        ("asyncembed download qdrant/bm", {"Qdrant/bm25", "Qdrant/bm42-all-minilm-l6-v2-attentions"}),
        ("asyncembed cache clear qdrant/bm2", {"Qdrant/bm25"}),
    ],
)
def test_a_shell_completes_commands_options_and_models(typed: str, completed: set[str]) -> None:
    words = typed.split()
    asked = {"_ASYNCEMBED_COMPLETE": "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        PROGRAMS["program"], env={**os.environ, **asked}, capture_output=True, encoding="utf-8", check=False
    )
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == completed, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_that_completes_is_made_by_the_program_itself(shell: str) -> None:
    asked = {**os.environ, "_ASYNCEMBED_COMPLETE": f"{shell}_source"}
    done = subprocess.run(PROGRAMS["program"], env=asked, capture_output=True, encoding="utf-8", check=False)
    assert "_ASYNCEMBED_COMPLETE" in done.stdout, done.stderr


def test_the_catalogue_tells_what_one_chooses_a_model_by() -> None:
    listed = CliRunner().invoke(main, ["models", "--language", "DE"]).stdout.splitlines()
    assert listed[0].split() == ["NAME", "FAMILY", "LANGUAGES", "LIMIT", "DIM", "GB", "LICENSE"]
    assert [line.split() for line in listed[1:]] == [
        ["jinaai/jina-embeddings-v2-base-de", "text", "de,", "en", "8192", "768", "0.64", "apache-2.0"]
    ]
    rows = CliRunner().invoke(main, ["models"]).stdout
    assert "cc-by-nc-4.0 (not for commercial use)" in rows
    assert "gemma (its terms of use apply)" in rows


def test_json_is_json() -> None:
    specs = json.loads(CliRunner().invoke(main, ["models", "--json", "--family", "sparse"]).stdout)
    assert {spec["family"] for spec in specs} == {"sparse"}
