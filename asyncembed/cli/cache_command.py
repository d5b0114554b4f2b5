"""`asyncembed cache`: what is where and how large, and how to be rid of it."""

import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from asyncembed.cli.model_options import cache_dir_option, model_names
from asyncembed.cli.output import json_option, print_json, print_table, say, size_in_words

if TYPE_CHECKING:
    from asyncembed.cli.stored import Places, Stored


@click.group(invoke_without_command=True, short_help="List what the caches hold, or clear some of it.")
@cache_dir_option
@json_option("Everything that is there")
@click.pass_context
def cache(context: click.Context, cache_dir: Path | None, as_json: bool) -> None:
    """List what the caches hold: models, and what was made of them.

    The cache is huggingface_hub's own, so that there may be models of other tools in it. Exported graphs are ONNX
    graphs that were built from a model's weights.
    """
    if context.invoked_subcommand is not None:
        context.obj = cache_dir
        return
    from asyncembed.cli.stored import Places, look_into

    places = Places.of(cache_dir)
    stored = look_into(places)
    if as_json:
        print_json(_as_document(places, stored))
        return
    say(f"{places.hub} (shared with other tools), {places.own}\n")
    _print_stored(places, stored)


@cache.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=model_names)
@click.option("--made", is_flag=True, help="What was made here: exported graphs, links, unfinished downloads.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@cache_dir_option
@json_option("What was deleted")
@click.pass_obj
def clear(
    outer_dir: Path | None,
    names: tuple[str, ...],
    made: bool,
    yes: bool,
    dry_run: bool,
    cache_dir: Path | None,
    as_json: bool,
) -> None:
    """Delete models with all that was made of them, after a question.

    NAME is a model of the catalogue, or a repo as `cache` lists it. --made takes what can be made again from what is
    on this disk, of all models.
    """
    from asyncembed.cli.stored import Places, chosen, delete, look_into

    if not names and not made:
        raise click.UsageError("name the models to delete, or say --made")
    if "" in names:  # as of a variable that is not set; nameless are all graphs of local directories
        raise click.UsageError("one of the names is empty: name the models to delete")
    places = Places.of(cache_dir or outer_dir)
    stored = look_into(places)
    what = chosen(stored, names, made_here=made)
    for name in names:
        if not chosen(what, [name], made_here=False):
            raise click.ClickException(
                f"nothing of {name!r} is in {places.hub}, or it is being downloaded; "
                "`asyncembed cache` says what is there"
            )
    if not as_json:
        _print_stored(places, what)
    if what and not dry_run:
        if not yes:
            _ask()
        delete(what)
    if as_json:
        print_json(_as_document(places, what))


def _ask() -> None:
    if not _is_terminal():
        raise click.UsageError("nobody can be asked here whether that may be deleted: say --yes")
    click.confirm("Delete this?", abort=True, err=True)


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _as_document(places: "Places", stored: "list[Stored]") -> dict[str, object]:
    from asyncembed.cli.stored import names_of

    return {
        "hub": places.hub,
        "own": places.own,
        "size_bytes": sum(each.size_bytes for each in stored),
        "stored": [asdict(each) | {"models": names_of(each.name)} for each in stored],
    }


def _print_stored(places: "Places", stored: "list[Stored]") -> None:
    rows = [
        (_named(each), each.kind, size_in_words(each.size_bytes), _day(each.used_at), _shown(each, places))
        for each in stored
    ]
    if rows:
        print_table(("NAME", "WHAT", "SIZE", "USED", "WHERE"), rows)
        click.echo()
    click.echo(_in_words(stored))


def _named(stored: "Stored") -> str:
    """The repo, and what its models are called where that is something else."""
    from asyncembed.cli.stored import names_of

    others = [name for name in names_of(stored.name) if name.lower() != stored.name.lower()]
    return f"{stored.name or '?'} ({', '.join(others)})" if others else stored.name or "?"


def _shown(each: "Stored", places: "Places") -> str:
    for root in (places.own, places.hub):
        if each.path.is_relative_to(root):
            return each.path.relative_to(root).as_posix()
    return str(each.path)


def _in_words(stored: "list[Stored]") -> str:
    models = sum(each.kind == "model" for each in stored)
    number = "1 model" if models == 1 else f"{models} models"
    return f"{number}, {size_in_words(sum(each.size_bytes for each in stored))}"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=UTC).astimezone().strftime("%Y-%m-%d") if seconds else ""
