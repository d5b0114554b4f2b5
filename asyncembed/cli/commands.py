"""The group of all commands: where each stands, and what the shell hears of what goes wrong.

Exit codes: 0 all is well, 1 it failed, 2 it was called wrongly, 130 it was interrupted. What a command finds out goes
to stdout (see `output`), all else to stderr. A command raises errors of this package or of the system as they are: the
group says them in a sentence.
"""

import errno
from importlib import import_module
from typing import Any

import click

from asyncembed import __version__
from asyncembed.cli.output import visible
from asyncembed.errors import AsyncEmbedError, OptionError

MODULES = {
    "bench": "bench_command",
    "cache": "cache_command",
    "doctor": "doctor_command",
    "download": "download_command",
    "embed": "embed_command",
    "models": "models_command",
    "rerank": "rerank_command",
    "search": "search_command",
    "serve": "serve_command",
}
"""The name of a command → the module of `asyncembed.cli` that has it, as a variable of the same name.

A module is imported for its own command only (and all of them for `--help`), and it imports what is heavy inside the
command.
"""

INTERRUPTED = 130
"""As shells have it for a program that Ctrl-C has ended."""


class CommandGroup(click.Group):
    """Commands that are imported when they are called for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (the signature is click's)
        return sorted(MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in MODULES:
            return None
        command = getattr(import_module(f"asyncembed.cli.{MODULES[cmd_name]}"), cmd_name)
        assert isinstance(command, click.Command), f"{cmd_name} is what its module has by this name"
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(INTERRUPTED)
        except OptionError as error:
            raise click.UsageError(visible(str(error))) from error
        except AsyncEmbedError as error:
            raise click.ClickException(visible(str(error))) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever read our output has gone: click ends without a word
                raise
            raise click.ClickException(visible(str(error))) from error


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Local embedding models: use them from the shell, download them, and see which there are."""
