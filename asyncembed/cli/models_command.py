"""`asyncembed models`: what the catalogue has."""

from dataclasses import asdict
from typing import get_args

import click

from asyncembed.catalogue.spec import Family, ModelSpec
from asyncembed.cli.output import json_option, print_json, print_table


@click.command(short_help="List the models of the catalogue.")
@click.option("--family", type=click.Choice(get_args(Family)), help="Only models of this family.")
@click.option("--language", help="Only models for this language, as de or multilingual.")
@json_option("Everything that is known about each")
def models(family: Family | None, language: str | None, as_json: bool) -> None:
    """List the models of the catalogue: languages, limit in tokens, dimensions, size of the download, licence."""
    from asyncembed.catalogue.lookup import list_models

    specs = [spec for spec in list_models(family) if language is None or language.lower() in spec.languages]
    if as_json:
        print_json([asdict(spec) for spec in specs])
        return
    print_table(("NAME", "FAMILY", "LANGUAGES", "LIMIT", "DIM", "GB", "LICENSE"), [_row(spec) for spec in specs])


def _row(spec: ModelSpec) -> tuple[str, ...]:
    limit = spec.stated_limit or spec.max_length
    numbers = (limit or "", spec.dim or "", f"{spec.size_in_gb:g}" if spec.size_in_gb else "")
    return (spec.name, spec.family, ", ".join(spec.languages), *map(str, numbers), _licence(spec))


def _licence(spec: ModelSpec) -> str:
    """Its name, with a note where it does not leave all users free."""
    if "-nc" in spec.license:
        return f"{spec.license} (not for commercial use)"
    return f"{spec.license} (its terms of use apply)" if spec.license == "gemma" else spec.license
