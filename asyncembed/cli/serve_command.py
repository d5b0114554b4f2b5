"""`asyncembed serve`: models behind HTTP."""

import gc
import os
import socket
from contextlib import ExitStack
from logging import ERROR, WARNING, getLogger
from pathlib import Path
from stat import S_IWOTH
from typing import TYPE_CHECKING, Any

import click

from asyncembed.cli.log_lines import set_up_log
from asyncembed.cli.model_options import cache_option, model_options, worker_options
from asyncembed.errors import OptionError, RuntimeMissingError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from asyncembed.cli.http_server import HttpServer
    from asyncembed.server.service import Service

KEY_VARIABLE = "ASYNCEMBED_API_KEY"

KEEP_ALIVE_SECONDS = 75
"""How long an idle connection is kept: longer than the proxies and clients keep it that would send just then."""

SETTINGS: dict[str, Any] = {"auto_envvar_prefix": "ASYNCEMBED_SERVE", "show_default": True}
"""Each option may stand in the environment, as ASYNCEMBED_SERVE_PORT for --port."""


@click.command(context_settings=SETTINGS, short_help="Serve models over HTTP.")
@click.argument("models", nargs=-1, required=True, metavar="[NAME=]MODEL...", envvar="ASYNCEMBED_SERVE_MODELS")
@click.option("--host", default="127.0.0.1", help="Address to listen at; 0.0.0.0 for all of this machine.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="0: any free one, which the log names.")
@click.option("--uds", metavar="PATH", help="Listen at this unix socket instead of an address.")
@click.option(
    "--uds-mode",
    default="660",
    metavar="OCTAL",
    callback=lambda _context, _option, value: _mode(value),
    help="Rights of the socket: by default its user and its group may connect.",
)
@click.option("--api-key", metavar="@FILE", help=f"File of the keys that clients must give; or set {KEY_VARIABLE}.")
@click.option("--max-queued", type=click.IntRange(1), default=8192, help="Inputs that may wait; what is more gets 429.")
@click.option("--max-inputs", type=click.IntRange(1), default=2048, help="Inputs of one request.")
@click.option("--max-tokens", type=click.IntRange(1), default=300_000, help="Tokens of one request.")
@click.option("--max-bytes", type=click.IntRange(1), default=32 * 2**20, help="Bytes of one request's body.")
@click.option(
    "--grace", type=click.IntRange(0), default=30, help="Seconds that requests under way get to finish when it ends."
)
@click.option("--page/--no-page", default=True, help="A page at / to look at, and to try things.")
@click.option("--lazy", is_flag=True, help="Load each model with its first request instead of at the start.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", help="json: a document on each line."
)
@click.option(
    "--log-requests",
    is_flag=True,
    help="A line for each request that computes; failures of the server are logged in any case.",
)
@click.option(
    "--interactive-workers",
    type=click.IntRange(0),
    help="Workers free of bulk work. By default 1, when of use.",
)
@worker_options
@model_options
@cache_option
def serve(
    models: tuple[str, ...], host: str, port: int, uds: str | None, uds_mode: int, grace: int, **options: Any
) -> None:
    """Serve models over HTTP, to clients of OpenAI's, Text Embeddings Inference's, Cohere's and Jina's interfaces.

    MODEL is a name of the catalogue, a repo of the hub or a directory; clients call it by NAME, if there is one.

    Every option may stand in the environment instead: ASYNCEMBED_SERVE_PORT is --port, and so on;
    ASYNCEMBED_SERVE_MODELS has the models. The API key is in ASYNCEMBED_API_KEY, or in a file: everybody on a
    machine can read command lines.
    """
    keys = _keys(options.pop("api_key"))  # before anything that takes its time
    if uds is None:
        _check_address(host, port)
    try:
        import uvicorn

        import asyncembed.server  # noqa: F401 (which says so, too, if one of its packages is missing)
    except ImportError as error:
        raise RuntimeMissingError('a server needs some packages: pip install "asyncembed[cpu,server]"') from error

    from asyncembed.cli.http_server import HttpServer
    from asyncembed.cli.unix_socket import SocketServer, place
    from asyncembed.server.http_connection import BoundedConnection

    set_up_log(options.pop("log_level"), as_json=options.pop("log_format") == "json")
    is_logging_requests = options.pop("log_requests")
    if not is_logging_requests:
        getLogger("asyncembed.server.requests").setLevel(WARNING)
    app = _app(models, keys, options)
    app.state.service.is_alone = True
    with ExitStack() as stack:
        at = None if uds is None else stack.enter_context(place(Path(uds), uds_mode))
        if not app.state.service.has_keys:
            _warn(host, uds, uds_mode)
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            lifespan="on",
            log_config=None,
            access_log=False,
            http=BoundedConnection,
            ws="none",
            server_header=False,
            proxy_headers=is_logging_requests,  # for the address of the client, and nothing else
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=grace,
        )
        _run(HttpServer(config) if at is None else SocketServer(config, at), app.state.service)


def _warn(host: str, uds: str | None, uds_mode: int) -> None:
    """Say so where strangers can use a server without a key."""
    if uds is not None:
        is_open, who = bool(uds_mode & S_IWOTH), f"every user of this machine who reaches {uds}"
    else:
        is_open, who = host not in ("127.0.0.1", "localhost", "::1"), f"anybody who reaches {host}"
    if is_open:
        getLogger("asyncembed.server").warning("%s may use this server: it has no API key", who)


def _run(server: "HttpServer", service: "Service") -> None:
    """Serve until it is told to end; what is wrong with the models is raised."""
    # The traceback of what is said in a sentence below.
    getLogger("uvicorn.error").addFilter(lambda record: service.failure is None or record.levelno < ERROR)
    # What is here stays: the collector need not look at it, which it would do for a tenth of a second at a time.
    gc.collect()
    gc.freeze()
    try:
        server.run()
    except SystemExit as error:
        if service.failure is not None:
            raise service.failure from None
        if error.code:
            raise click.exceptions.Exit(1) from None  # what is wrong is in the log
        raise


def _app(models: tuple[str, ...], keys: list[str] | None, options: dict[str, Any]) -> "FastAPI":
    from asyncembed.server import Limits, create_app

    limits = Limits(**{name: options.pop(name) for name in ("max_inputs", "max_tokens", "max_bytes")})
    named = dict(map(_named, models))
    if len(named) < len(models):
        raise OptionError("two models have the same name: give each one of its own, as in NAME=MODEL")
    return create_app(named, api_key=keys, limits=limits, **options)


def _mode(given: str) -> int:
    try:
        mode = int(given, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise click.BadParameter(f"{given!r} is no mode of a file, such as 660")
    return mode


def _named(model: str) -> tuple[str, str]:
    name, equals, rest = model.partition("=")
    return (name, rest) if equals and rest else (model, model)


def _check_address(host: str, port: int) -> None:
    """Find out before models are opened, which may take minutes, whether anybody else is there.

    Raises:
        OptionError: There is no such host.
        OSError: The address cannot be listened at.
    """
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise OptionError(f"--host {host} is no address of this machine: {error.strerror}") from error
    for family, kind, protocol, _, address in places:
        with socket.socket(family, kind, protocol) as probe:
            if os.name == "posix":  # as asyncio does; elsewhere it would take over a port that is in use
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                raise OSError(error.errno, f"{error.strerror} (--host and --port)", f"{host}:{port}") from error


def _keys(given: str | None) -> list[str] | None:
    """The keys of a file, or of the environment, which workers do not inherit."""
    of_environment = os.environ.pop(KEY_VARIABLE, None)
    if given is None:
        return None if of_environment is None else [of_environment]
    if not given.startswith("@"):
        raise OptionError(
            f"--api-key takes @FILE: a key in a command line can be read by all users of this machine; "
            f"or set {KEY_VARIABLE}"
        )
    keys = Path(given[1:]).read_text(encoding="utf-8-sig").split()
    if not keys:
        raise OptionError(f"--api-key: there is no key in {given[1:]}")
    return keys
