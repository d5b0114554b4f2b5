"""Under the servers, queues and kernels that start and end programs in ways of their own."""

import http.client
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep

import psutil
import pytest
from jupyter_client.manager import KernelManager

from tests.support import posix
from tests.support.programs import ROOT
from tests.support.waiting import worker_processes

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="these servers are for POSIX")]

WAIT_SECONDS = 60.0

MODEL = """
import os
from asyncembed.embedders.text import TextEmbedding
from asyncembed import background
from asyncembed.shared import Lease
from tests.support.encoders import ECHO

model = TextEmbedding(ECHO, workers=1)
lease = Lease(model)

def embed(text):
    vector = background.run(lease.call, lambda model: model.embed_query(text))
    return f"{vector[0]:.0f} {vector[1]:.0f} {os.getpid()}"
"""


class Server:
    """A program in a directory of its own, and all processes that it ever had."""

    def __init__(self, directory: Path, *command: str) -> None:
        self.directory = directory
        self._place = TemporaryDirectory()  # the path of a socket may not be long
        self.socket = Path(self._place.name, "socket")
        self._output = (directory / "output").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-m", *(part.replace("SOCKET", str(self.socket)) for part in command)],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{directory}"},
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def output(self) -> str:
        return (self.directory / "output").read_text(encoding="utf-8")

    def get(self) -> list[int]:
        """What the app answers: the length of its text, the worker that computed it, and its own process."""
        with posix.unix_socket() as self_made:
            self_made.settimeout(WAIT_SECONDS)
            self_made.connect(str(self.socket))
            connection = http.client.HTTPConnection("localhost")
            connection.sock = self_made
            connection.request("GET", "/")
            return [int(number) for number in connection.getresponse().read().split()]

    def first(self) -> list[int]:
        """The first answer; the server may still be starting."""
        answers: list[list[int]] = []

        def answered() -> bool:
            try:
                answers.append(self.get())
            except (OSError, http.client.HTTPException):
                return False
            return True

        wait_for(answered, self.output)
        return answers[0]

    def processes(self) -> list[psutil.Process]:
        return worker_processes(self._process.pid)

    def end(self, sign: signal.Signals = signal.SIGTERM) -> int:
        """End it as its users do; returns its exit code when nothing of it is left."""
        processes = self.processes()
        self._process.send_signal(sign)
        code = self._process.wait(WAIT_SECONDS)
        _, alive = psutil.wait_procs(processes, timeout=5)
        assert not alive, alive
        return code

    def kill(self) -> None:
        for process in self.processes():
            process.kill()
        self._process.kill()
        self._process.wait()
        self._output.close()
        self._place.cleanup()


def wait_for(condition: Callable[[], bool], output: Callable[[], str]) -> None:
    """Wait until another program has come so far."""
    end = monotonic() + WAIT_SECONDS
    while not condition():
        assert monotonic() < end, output()
        sleep(0.02)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*command: str, **files: str) -> Server:
        for name, source in files.items():
            (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        servers.append(Server(tmp_path, *command))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


WSGI = (
    MODEL
    + """
{at_import}
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [embed("four").encode()]
"""
)


@pytest.mark.parametrize(
    "at_import", ["", "embed('in the parent')"], ids=["opens in the child", "opened in the parent"]
)
def test_gunicorn_with_preload_gives_each_child_an_engine_of_its_own(
    start: Callable[..., Server], at_import: str
) -> None:
    server = start(
        "gunicorn",
        "--preload",
        "--workers=2",
        "--bind=unix:SOCKET",
        "program:app",
        program=WSGI.replace("{at_import}", at_import),
    )
    server.first()
    engines: dict[int, int] = {}

    def have_both_answered() -> bool:
        length, engine, child = server.get()
        assert length == 4
        assert engines.setdefault(child, engine) == engine
        return len(engines) == 2

    wait_for(have_both_answered, server.output)
    assert len(set(engines.values())) == 2
    assert server.end() == 0
    assert "Traceback" not in server.output(), server.output()
    assert "rror" not in server.output(), server.output()


ASGI = (
    MODEL
    + """
anywhere = model.on_any_loop()
async def app(scope, receive, send):
    assert scope["type"] == "http"
    vector = await anywhere.embed_query("four")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    answer = f"{vector[0]:.0f} {vector[1]:.0f} {os.getpid()}"
    await send({"type": "http.response.body", "body": answer.encode()})
"""
)


def test_uvicorn_with_reload_leaves_no_worker_of_the_program_before(start: Callable[..., Server]) -> None:
    server = start("uvicorn", "--reload", "--lifespan=off", "--uds=SOCKET", "program:app", program=ASGI)
    before = server.first()
    (server.directory / "program.py").write_text(ASGI + "\n# changed\n", encoding="utf-8")
    wait_for(lambda: server.first()[2] != before[2], server.output)
    wait_for(lambda: not psutil.pid_exists(before[1]), server.output)
    server.end(signal.SIGINT)
    assert "Traceback" not in server.output(), server.output()


CELERY = (
    MODEL
    + """
import celery
app = celery.Celery("program", broker="filesystem://", backend="file://results")
app.conf.broker_transport_options = {
    "data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control", "store_processed": False,
    "polling_interval": 0.05,  # a second otherwise, for each task
}
app.conf.broker_connection_retry_on_startup = True

model = TextEmbedding(ECHO)
lease = Lease(model)

@app.task
def task(text):
    return embed(text)
"""
)


def test_celery_computes_in_threads_of_its_processes(start: Callable[..., Server], tmp_path: Path) -> None:
    """They may have no children: `workers=0` by itself."""
    for name in ("queue", "results", "control"):
        (tmp_path / name).mkdir()
    server = start(
        "celery", "-A", "program", "worker", "--pool=prefork", "--concurrency=2", "--loglevel=INFO", program=CELERY
    )
    wait_for(lambda: "ready." in server.output(), server.output)
    results = "[program.task.delay('four') for _ in range(6)]"
    ask = f"import program; print(*[result.get(interval=0.05, timeout=50) for result in {results}])"
    answers = subprocess.run(
        [sys.executable, "-c", ask],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        capture_output=True,
        encoding="utf-8",
        timeout=WAIT_SECONDS,
    )
    assert answers.returncode == 0, answers.stderr + server.output()
    numbers = [int(number) for number in answers.stdout.split()]
    assert set(numbers[::3]) == {4}
    assert set(numbers[1::3]) == set(numbers[2::3]), "computed where it was asked"
    assert server.end() == 0
    assert "Traceback" not in server.output(), server.output()


@pytest.mark.parametrize("end", ["shutdown", "restart"])
def test_a_notebooks_kernel_ends_with_its_workers(end: str, tmp_path: Path) -> None:
    output, before = tmp_path / "output", set(worker_processes())
    with output.open("w", encoding="utf-8") as file:
        manager = KernelManager(kernel_name="python3")
        manager.start_kernel(
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=file, stderr=subprocess.STDOUT
        )
        client = manager.blocking_client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=WAIT_SECONDS)
            answer = client.execute_interactive(
                MODEL + "print(embed('four'))", timeout=WAIT_SECONDS, output_hook=lambda _: None
            )
            assert answer["content"]["status"] == "ok", answer
            processes = set(worker_processes()) - before
            assert len(processes) == 2, "the kernel and its worker"
            manager.restart_kernel() if end == "restart" else manager.shutdown_kernel()
            _, alive = psutil.wait_procs(processes, timeout=10)
            assert not alive
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
            manager.cleanup_resources()
    assert "Traceback" not in output.read_text(encoding="utf-8")
