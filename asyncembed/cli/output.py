"""What commands print: a table for people, or with `--json` a JSON document (for many results, one on each line)."""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def json_option(what: str) -> Callable[[CommandT], CommandT]:
    """The option `--json`, which the command gets as `as_json`; `what` says what it prints then."""
    return click.option("--json", "as_json", is_flag=True, help=f"{what}, as JSON.")


def print_json(value: object) -> None:
    """A JSON document of its own, over several lines; what JSON does not know is printed as text."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def print_json_line(value: object) -> None:
    """One of many JSON documents, on a line."""
    click.echo(json.dumps(value, ensure_ascii=False, default=str))


def size_in_words(count: int) -> str:
    """A number of bytes, as disks are measured: 1 MB is a million."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as what is in them."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
