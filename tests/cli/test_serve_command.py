"""`asyncembed serve` as a process of its own, with fake models."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from stat import S_IMODE

import httpx
import pytest
from click.testing import CliRunner

from asyncembed.cli.commands import main
from asyncembed.cli.serve_command import serve
from asyncembed.errors import EncodeError
from asyncembed.testing import fake_models
from tests.support import programs

MODEL = "BAAI/bge-small-en-v1.5"


@contextmanager
def serving(path: Path, *arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """A server at a unix socket, once it is ready, and a client of it. What it says until then is in a file `said`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "asyncembed", "serve", "--uds", str(path), *arguments],
        env={**os.environ, "ASYNCEMBED_FAKE": "1", **environment},
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    with process, httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://server") as client:
        try:
            assert process.stderr is not None
            said = [next(process.stderr, "")]
            while said[-1] and "running on" not in said[-1]:
                said.append(next(process.stderr, ""))
            assert said[-1], said
            path.with_name("said").write_text("".join(said), "utf-8")
            yield process, client
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.posix
def test_a_server_answers_at_a_unix_socket_and_ends_in_peace_when_it_is_told_to(tmp_path: Path) -> None:
    with serving(tmp_path / "socket", f"small={MODEL}") as (process, client):
        answer = client.post("/v1/embeddings", json={"input": "a text", "model": "small"})
        assert len(answer.json()["data"][0]["embedding"]) == 384
        assert S_IMODE((tmp_path / "socket").stat().st_mode) == 0o660
        client.close()
        process.terminate()
        assert process.wait(15) in (0, -15)
    assert not (tmp_path / "socket").exists()
    assert "every user" not in (tmp_path / "said").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.posix
def test_every_option_may_stand_in_the_environment_and_the_key_as_well(tmp_path: Path) -> None:
    environment = {
        "ASYNCEMBED_SERVE_MODELS": f"one={MODEL} two={MODEL}",
        "ASYNCEMBED_SERVE_MAX_INPUTS": "1",
        "ASYNCEMBED_API_KEY": "secret",
    }
    with serving(tmp_path / "socket", **environment) as (_, client):
        assert client.get("/v1/models").status_code == 401
        client.headers["Authorization"] = "Bearer secret"
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["one", "two"]
        assert client.post("/v1/embeddings", json={"input": ["a", "b"]}).status_code == 400


PROGRAM = """
import sys
from asyncembed.cli.commands import main
from asyncembed.cli.serve_command import serve
from tests.support import programs
from asyncembed.testing import fake_models

with fake_models(seconds=1):
    main(["serve", *sys.argv[1:]])
"""


@pytest.mark.slow
@pytest.mark.posix
def test_a_request_under_way_is_finished_when_the_server_is_told_to_end(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    process = programs.start(PROGRAM, tmp_path, MODEL, "--uds", str(path))
    with process, ThreadPoolExecutor(1) as executor:
        try:
            assert process.stderr is not None
            assert any("running on" in line for line in process.stderr)
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://server") as client:
                answer = executor.submit(client.post, "/v1/embeddings", json={"input": "a text"})
                while "asyncembed_requests_in_progress 1.0" not in client.get("/metrics").text:
                    pass
                process.terminate()
                assert answer.result(15).status_code == 200
            assert process.wait(15) in (0, -signal.SIGTERM)
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.posix
@pytest.mark.parametrize("is_impatient", [False, True])
def test_a_request_that_does_not_end_in_time_is_refused_in_words_and_without_a_traceback(
    tmp_path: Path, is_impatient: bool
) -> None:
    """Which is its grace, or until a second Ctrl-C: the server ends then, and its workers with it."""
    path = tmp_path / "socket"
    process = programs.start(ENDLESS, tmp_path, MODEL, "--uds", str(path), "--grace", "60" if is_impatient else "1")
    sign = signal.SIGINT if is_impatient else signal.SIGTERM
    with process, ThreadPoolExecutor(1) as executor:
        try:
            assert process.stderr is not None
            assert any("running on" in line for line in process.stderr)
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://server") as client:
                answer = executor.submit(client.post, "/embed", json={"inputs": "a text"}, timeout=15)
                while "asyncembed_requests_in_progress 1.0" not in client.get("/metrics").text:
                    pass
                process.send_signal(sign)
                assert any("Waiting for connections" in line for line in process.stderr)
                if is_impatient:
                    process.send_signal(sign)
                assert (answer.result(15).status_code, answer.result().headers["retry-after"]) == (503, "1")
                assert "try again" in answer.result().json()["error"]
            assert "Traceback" not in process.stderr.read()
            assert process.wait(15) in ((130,) if is_impatient else (0, -sign))
        finally:
            process.kill()


ENDLESS = PROGRAM.replace("seconds=1", "seconds=60")


@pytest.mark.slow
@pytest.mark.posix
def test_a_server_that_is_told_to_end_before_its_models_are_open_ends_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hub:
        process = subprocess.Popen(
            [sys.executable, "-m", "asyncembed", "serve", "org/name", "--uds", str(tmp_path / "socket")],
            env={**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}", "HF_HOME": str(tmp_path)},
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        with process:
            try:
                with _asking(hub, b"org/name"):  # and it gets no answer
                    process.send_signal(signal.SIGINT)
                    _, said = process.communicate(timeout=5)
                    assert process.returncode == 130
                    assert "Traceback" not in said
            finally:
                process.kill()
    assert not (tmp_path / "socket").exists()


def _asking(hub: socket.socket, what: bytes) -> socket.socket:
    """The connection that asks for it, after others that the hub's own package makes."""
    hub.settimeout(30)
    while True:
        asking, _ = hub.accept()
        if what in asking.recv(10_000):
            return asking
        asking.close()


@pytest.mark.slow
def test_a_model_that_cannot_be_served_is_a_sentence_and_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "asyncembed", "serve", "nosuch", "--port", "0"],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: no text model is called 'nosuch'")


def test_the_files_for_production_use_options_that_there_are() -> None:
    options = {name for option in serve.params for name in option.opts}
    variables = {f"ASYNCEMBED_SERVE_{name[2:].replace('-', '_').upper()}" for name in options if name[:2] == "--"}
    texts = [path.read_text("utf-8") for path in (programs.ROOT / "examples/serving").iterdir()]
    used = set(re.findall(r"ASYNCEMBED_SERVE_\w+", "\n".join(texts)))
    assert used
    assert used <= variables | {"ASYNCEMBED_SERVE_MODELS"}
    (line,) = [line for text in texts for line in text.splitlines() if line.startswith("ExecStart=")]
    assert set(re.findall(r" (--[\w-]+)", line)) <= options


def test_a_key_in_the_command_line_is_refused_and_not_repeated() -> None:
    done = CliRunner().invoke(main, ["serve", MODEL, "--api-key", "secret"])
    assert done.exit_code == 2
    assert "--api-key takes @FILE" in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.slow
def test_an_address_that_is_in_use_is_said_before_a_model_is_opened() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        with fake_models() as fakes:
            fakes.opening_error = EncodeError("it was opened")
            done = CliRunner().invoke(main, ["serve", MODEL, "--port", port])
    assert done.exit_code == 1
    assert "in use" in done.stderr
    assert f"127.0.0.1:{port}" in done.stderr
    assert "it was opened" not in done.stderr


def test_two_models_of_one_name_are_refused() -> None:
    done = CliRunner().invoke(main, ["serve", f"a={MODEL}", "a=BAAI/bge-base-en-v1.5", "--uds", "unused"])
    assert done.exit_code == 2
    assert "two models have the same name" in done.stderr


@pytest.mark.slow
@pytest.mark.posix
def test_there_is_a_page_unless_it_is_not_wanted(tmp_path: Path) -> None:
    with serving(tmp_path / "socket", MODEL) as (_, client):
        assert client.get("/").headers["content-type"] == "text/html; charset=utf-8"
    with serving(tmp_path / "socket", "--no-page", MODEL) as (_, client):
        assert client.get("/").status_code == 405


# ---------------------------------------------------------------- the unix socket


@pytest.mark.slow
@pytest.mark.posix
def test_it_is_said_where_every_user_of_the_machine_may_use_a_server_without_a_key(tmp_path: Path) -> None:
    with serving(tmp_path / "socket", "--uds-mode", "666", MODEL) as (_, client):
        assert client.get("/health").status_code == 200
        assert S_IMODE((tmp_path / "socket").stat().st_mode) == 0o666
    assert "every user of this machine" in (tmp_path / "said").read_text("utf-8")


@pytest.mark.posix
@pytest.mark.parametrize("seconds", ["nan", "inf", "-1"])
def test_a_grace_that_is_no_number_of_seconds_is_refused(seconds: str) -> None:
    done = CliRunner().invoke(main, ["serve", MODEL, "--grace", seconds])
    assert done.exit_code == 2
    assert "--grace" in done.stderr


@pytest.mark.parametrize("mode", ["888", "rw-rw----", "-1", "1777"])
def test_a_mode_that_is_none_is_refused(mode: str) -> None:
    done = CliRunner().invoke(main, ["serve", MODEL, "--uds", "unused", "--uds-mode", mode])
    assert done.exit_code == 2
    assert "is no mode of a file, such as 660" in done.stderr


@pytest.mark.slow
@pytest.mark.posix
def test_a_unix_socket_where_a_server_listens_is_said_before_a_model_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(getattr(socket, "AF_UNIX", 0)) as other, fake_models() as fakes:
        other.bind(str(path))
        other.listen()
        fakes.opening_error = EncodeError("it was opened")
        done = CliRunner().invoke(main, ["serve", MODEL, "--uds", str(path)])
    assert done.exit_code == 1
    assert f"another server listens there (--uds): '{path}'" in done.stderr


@pytest.mark.slow
@pytest.mark.posix
def test_a_server_that_is_overtaken_while_it_opens_its_models_ends_and_leaves_the_other_alone(tmp_path: Path) -> None:
    from asyncembed.cli.unix_socket import place

    path = tmp_path / "socket"
    first = programs.start(SLOW_TO_OPEN, tmp_path, MODEL, "--uds", str(path))
    with first:
        try:
            assert first.stdout is not None
            assert first.stdin is not None
            assert first.stdout.readline() == "opening\n"
            with place(path, 0o660):
                _, said = first.communicate("go on\n", timeout=15)
                assert first.returncode == 1
                assert "another server was started there in the meantime" in said
                assert path.exists()
        finally:
            first.kill()


SLOW_TO_OPEN = """
import sys
from contextlib import asynccontextmanager

from asyncembed import server
from asyncembed.cli.commands import main
from asyncembed.testing import fake_models

create_app = server.create_app


def create_slow_app(*arguments, **options):
    app = create_app(*arguments, **options)
    lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def slow(app):
        async with lifespan(app) as state:
            print("opening", flush=True)
            sys.stdin.readline()
            yield state

    app.router.lifespan_context = slow
    return app


server.create_app = create_slow_app
with fake_models():
    main(["serve", *sys.argv[1:]])
"""
