"""The shell's way in: `python -m asyncembed download NAME...` and `python -m asyncembed models`."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import anyio
import click

from asyncembed import __version__
from asyncembed.catalogue.spec import Family
from asyncembed.errors import AsyncEmbedError

if TYPE_CHECKING:
    from asyncembed.catalogue.spec import ModelSpec


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Local embedding models: download them, and see which there are."""


@main.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Cache instead of huggingface_hub's.")
@click.option("--pattern", "patterns", multiple=True, help="Take the files that match instead; may be repeated.")
@click.option("--local-files-only", is_flag=True, help="Ask no network; fail if something is missing.")
@click.option("--token", help="Access token for the hub; better kept in HF_TOKEN.")
@click.option("--refresh", is_flag=True, help="Ask where the branch is now, instead of using the cached commit.")
@click.option("--verify", is_flag=True, help="Also read what is in the cache already, and replace what is damaged.")
@click.option("--quiet", is_flag=True, help="Show no progress bar.")
def download(names: tuple[str, ...], patterns: tuple[str, ...], quiet: bool, **access: Any) -> None:
    """Download models, and print the directory of each.

    NAME is a model of the catalogue (see `models`) or a repo of the hub. What is interrupted goes on from where it was
    when it is called again.
    """
    from asyncembed.hub import HubAccess
    from asyncembed.hub.model_files import download_models

    hub = HubAccess(progress=False if quiet else None, **access)
    try:
        found = anyio.run(partial(download_models, names, hub, patterns=patterns or None))
    except AsyncEmbedError as error:
        raise click.ClickException(str(error)) from error
    for directory in found:
        click.echo(directory)


@main.command()
@click.option("--family", type=click.Choice(get_args(Family)), help="Only models of this family.")
@click.option("--json", "as_json", is_flag=True, help="Everything that is known about each, as JSON.")
def models(family: Family | None, as_json: bool) -> None:
    """List the models of the catalogue."""
    from asyncembed.catalogue.lookup import list_models

    specs = list_models(family)
    if as_json:
        click.echo(json.dumps([asdict(spec) for spec in specs], indent=1, default=str))
    else:
        click.echo(_table(specs))


def _table(specs: "list[ModelSpec]") -> str:
    rows = [("NAME", "FAMILY", "DIM", "GB", "LICENSE")]
    rows += [
        (spec.name, spec.family, str(spec.dim or ""), f"{spec.size_in_gb:g}" if spec.size_in_gb else "", spec.license)
        for spec in specs
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


if __name__ == "__main__":
    main(prog_name="python -m asyncembed")
