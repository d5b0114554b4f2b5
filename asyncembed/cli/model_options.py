"""The options of every command that opens models, out of those of `asyncembed.Options`: which files, and how to run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

DEVICES = ("auto", "cpu", "cuda")
RUNTIMES = ("onnxruntime", "openvino")
"""Those of `runtime.session`, which imports numpy: too much for a `--help`."""


def cache_dir_option(command: CommandT) -> CommandT:
    """`cache_dir`, also of commands that open none."""
    option = click.option("--cache-dir", type=click.Path(path_type=Path), help="Cache instead of huggingface_hub's.")
    return option(command)


_FILES: "tuple[Callable[[Any], Any], ...]" = (
    click.option("--revision", help="Branch, tag or commit on the hub."),
    cache_dir_option,
    click.option("--local-files-only", is_flag=True, help="Ask no network; fail if something is missing."),
    click.option(
        "--precision", help="fp32, fp16, int8, uint8, q4, q4f16 or bnb4: which ONNX file; int8 is made of the weights."
    ),
    click.option("--onnx-file", help="The ONNX file to take, as a path inside the repo."),
)

_COMPUTING = (
    click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True),
    click.option("--runtime", type=click.Choice(RUNTIMES), default="onnxruntime", show_default=True),
    click.option("--max-length", type=int, help="Most tokens of a text; what is longer is cut."),
    click.option("--max-batch-tokens", type=int, help="Most tokens, padding included, computed at once."),
    click.option("--max-batch-size", type=int, help="Most texts computed at once."),
)

_WORKERS = (
    click.option("--workers", type=int, help="Worker processes; 0: a thread of this one. By default as cores allow."),
    click.option("--threads", type=int, help="Threads of each worker. By default the cores are shared out."),
)


def model_options(command: CommandT) -> CommandT:
    """Options that are keywords of all embedders: `revision`, `cache_dir`, `device`, ..., not those of the workers.

    The token for the hub is none of them, as other users can read a command line: it is in HF_TOKEN.
    """
    return _with(command, (*_FILES, *_COMPUTING))


def cache_option(command: CommandT) -> CommandT:
    """`cache`, of commands that may have computed the same texts before."""
    option = click.option(
        "--cache",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Keep results in this file, and find them there.",
    )
    return option(command)


def model_names(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:  # noqa: ARG001
    """What a shell completes a model's name with: those of the catalogue that begin so, whatever their letter case."""
    from asyncembed.catalogue.lookup import list_models

    return sorted({spec.name for spec in list_models() if spec.name.lower().startswith(begun.lower())})


def worker_options(command: CommandT) -> CommandT:
    """`workers` and `threads`: keywords of embedders without a pool, and of a `WorkerPool`."""
    return _with(command, _WORKERS)


def _with(command: CommandT, options: tuple[Callable[[CommandT], CommandT], ...]) -> CommandT:
    for option in reversed(options):
        command = option(command)
    return command
