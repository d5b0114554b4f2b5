"""What commands print: a table for people, or with `--json` a JSON document (for many results, one on each line)."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What has a terminal do something, or show a text in another order, all but tabs and the ends of lines; and half a
character, which has no bytes: an escape in JSON, or a name of a file that is no text, brings it in."""

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def visible(text: str) -> str:
    """A text for a terminal: what comes out of a file is seen there, and nothing that it says is done."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def say(text: str, *, err: bool = False) -> None:
    """Print a line in which names of files and models, and what these say, may be."""
    click.echo(visible(text), err=err)


def json_option(what: str) -> Callable[[CommandT], CommandT]:
    """The option `--json`, which the command gets as `as_json`; `what` says what it prints then."""
    return click.option("--json", "as_json", is_flag=True, help=f"{what}, as JSON.")


def print_json(value: object) -> None:
    """A JSON document of its own, over several lines; what JSON does not know is printed as text."""
    text = json.dumps(value, indent=1, ensure_ascii=False, default=str)
    click.echo(_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text))  # which is the same in JSON


def size_in_words(count: int) -> str:
    """A number of bytes, as disks are measured: 1 MB is a million."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as what is in them."""
    lines = [[visible(cell).replace("\n", r"\n") for cell in line] for line in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
