"""`asyncembed download`: models onto this disk."""

from functools import partial
from typing import Any

import click

from asyncembed.cli.model_options import cache_dir_option, model_names
from asyncembed.cli.output import json_option, print_json


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=model_names)
@click.option("--revision", help="Branch, tag or commit on the hub.")
@cache_dir_option
@click.option("--pattern", "patterns", multiple=True, help="Take the files that match instead; may be repeated.")
@click.option("--local-files-only", is_flag=True, help="Ask no network; fail if something is missing.")
@click.option("--token", help="Access token for the hub; better kept in HF_TOKEN.")
@click.option("--refresh", is_flag=True, help="Ask where the branch is now, instead of using the cached commit.")
@click.option("--verify", is_flag=True, help="Also read what is in the cache already, and replace what is damaged.")
@click.option("--quiet", is_flag=True, help="Show no progress bar.")
@json_option("The directory of each name")
def download(names: tuple[str, ...], patterns: tuple[str, ...], quiet: bool, as_json: bool, **access: Any) -> None:
    """Download models, and print the directory of each.

    NAME is a model of the catalogue (see `models`) or a repo of the hub. What is interrupted goes on from where it was
    when it is called again.
    """
    import anyio

    from asyncembed.hub import HubAccess
    from asyncembed.hub.model_files import download_models

    hub = HubAccess(progress=False if quiet else None, **access)
    found = anyio.run(partial(download_models, names, hub, patterns=patterns or None))
    if as_json:
        print_json([{"name": name, "directory": str(directory)} for name, directory in zip(names, found, strict=True)])
    else:
        for directory in found:
            click.echo(directory)
