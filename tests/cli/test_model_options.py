"""The options of commands that open models are keywords of the embedders."""

from typing import Any, get_args

import click
from click.testing import CliRunner

from asyncembed import Options
from asyncembed.cli.model_options import DEVICES, RUNTIMES, model_options, worker_options
from asyncembed.runtime.session import Device, Runtime


def test_the_devices_and_runtimes_are_those_that_there_are() -> None:
    assert get_args(Device) == DEVICES
    assert get_args(Runtime) == RUNTIMES


def test_each_is_a_keyword_and_has_its_default() -> None:
    given: list[dict[str, Any]] = []

    @click.command()
    @model_options
    @worker_options
    def command(**options: Any) -> None:
        given.append(options)

    done = CliRunner().invoke(command, [])
    assert done.exit_code == 0, done.output
    assert Options.from_keywords(given[0]) == Options()  # type: ignore[arg-type]
    CliRunner().invoke(command, ["--workers=2", "--max-length=64", "--device=cpu", "--cache-dir=there"])
    assert Options.from_keywords(given[1]) == Options(workers=2, max_length=64, device="cpu", cache_dir="there")  # type: ignore[arg-type]
