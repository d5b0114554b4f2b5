"""`asyncembed doctor`: whether everything that models need is here, and works."""

from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import click

from asyncembed.cli.model_options import cache_dir_option
from asyncembed.cli.output import json_option, print_json, visible

if TYPE_CHECKING:
    from asyncembed.cli.checkup import Finding

_MARKS = {"ok": "ok  ", "note": "note", "warning": "WARN", "failed": "FAIL"}
_COLOURS = {"ok": "green", "note": "blue", "warning": "yellow", "failed": "red"}


@click.command(short_help="Look whether everything that models need is here.")
@cache_dir_option
@click.option("--offline", is_flag=True, help="Ask no network.")
@json_option("All that was found")
@click.pass_context
def doctor(context: click.Context, cache_dir: Path | None, offline: bool, as_json: bool) -> None:
    """Look whether everything that models need is here and works; 1 is the exit code if something does not.

    Versions, CPU and its limits, memory, worker processes, execution providers, caches, the hub: what it prints is what
    a bug report should have in it. It shows no token and no password.
    """
    from asyncembed.cli.checkup import examine

    found = []
    for finding in examine(cache_dir, network=not offline):
        found.append(finding)
        if not as_json:
            _print(finding)
    if as_json:
        print_json([asdict(finding) for finding in found])
    if any(finding.state == "failed" for finding in found):
        context.exit(1)


def _print(finding: "Finding") -> None:
    mark = click.style(_MARKS[finding.state], fg=_COLOURS[finding.state])
    click.echo(f"{mark}  {visible(f'{finding.subject}: {finding.text}')}")
    if finding.advice:
        click.echo(fill(visible(finding.advice), 120, initial_indent="      > ", subsequent_indent="        "))
