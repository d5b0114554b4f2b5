"""`asyncembed models`: what the catalogue has."""

from dataclasses import asdict
from typing import get_args

import click

from asyncembed.catalogue.spec import Family
from asyncembed.cli.output import json_option, print_json, print_table


@click.command()
@click.option("--family", type=click.Choice(get_args(Family)), help="Only models of this family.")
@json_option("Everything that is known about each")
def models(family: Family | None, as_json: bool) -> None:
    """List the models of the catalogue."""
    from asyncembed.catalogue.lookup import list_models

    specs = list_models(family)
    if as_json:
        print_json([asdict(spec) for spec in specs])
        return
    rows = [
        (spec.name, spec.family, str(spec.dim or ""), f"{spec.size_in_gb:g}" if spec.size_in_gb else "", spec.license)
        for spec in specs
    ]
    print_table(("NAME", "FAMILY", "DIM", "GB", "LICENSE"), rows)
