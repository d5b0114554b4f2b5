"""A cache of vectors in a file.

The file is SQLite's, written ahead in a log of its own (WAL), so that several processes read and write it at once. It
holds bytes under keys and nothing else; whoever reads them sees to it that they are what was kept.
"""

import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from errno import EROFS
from logging import Logger, getLogger
from pathlib import Path
from stat import S_ISREG
from tempfile import TemporaryFile
from urllib.parse import quote

from asyncembed.checks import check_count
from asyncembed.errors import OptionError
from asyncembed.files import in_disk_thread

logger: Logger = getLogger("asyncembed")

MAX_BYTES = 2**30
"""Of a file: half a million vectors of 384 numbers."""

MOST_BYTES_OF_A_VALUE = 64 * 2**20

BUSY_SECONDS = 5.0
"""How long to wait for another process that writes."""

READ_AT_ONCE = 256

_AGES = 64
"""The order of use is known to this part of the file: what was used since as much was written is equally fresh."""

_DELETED_AT_ONCE = 32
_MOST_DELETED = 2**16
"""While results are written: a file that is much too large gets smaller bit by bit, and nobody waits for it long."""

_APPLICATION_ID = 0x61736D62
_FORMAT_VERSION = 1

_SCHEMA = (
    "CREATE TABLE vectors (key BLOB NOT NULL PRIMARY KEY, used INTEGER NOT NULL, value BLOB NOT NULL)",
    "CREATE INDEX vectors_by_use ON vectors (used)",
    "CREATE TABLE counters (name TEXT NOT NULL PRIMARY KEY, number INTEGER NOT NULL)",
)


_END_OF_SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")
"""Of a journal that names another file, which SQLite deletes when it rolls the journal back."""

_ADVICE: Mapping[str, str] = {
    "SQLITE_BUSY": "another process has kept it to itself for too long",
    "SQLITE_CANTOPEN": "its folder must be one that may be written",
    "SQLITE_FULL": "make room on its disk, or name a file on another one",
    "SQLITE_IOERR": "see whether its disk is in order, or name a file on another one",
    "SQLITE_READONLY": "it must be a file that may be written, and so must its folder",
}
"""By how SQLite's names of errors begin."""

_ADVICE_IF_BROKEN = "it is broken: remove it, and what lies beside it under its name with -wal and -shm, to begin anew"


class VectorCacheFile:
    """A cache of vectors in a file, which any number of models, threads and processes may use at once.

    Args:
        path: The file, which is made when it is first written to. SQLite has two more files beside it while it is
            open. On a file system of this machine: a network's has no locks that can be trusted; and in a folder that
            nobody writes whom you would not let write your own files. Where it is there and cannot be written, or its
            folder cannot (in an image of a container, say), it is read, and nothing is kept.
        max_bytes: How large it may become. What was used longest ago makes room for what is new.
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> None:
        check_count("max_bytes", max_bytes, minimum=2**16, may_be_none=False)
        self.path: Path = Path(os.path.expanduser(path)).absolute()  # noqa: PTH111 (leaves a "~" that nobody has)
        self.max_bytes: int = max_bytes
        self._reading = _Connection(self.path)
        self._writing = _Connection(self.path)
        # Keys that were used since they were last said to be.
        self._used: set[bytes] = set()

    def __reduce__(self) -> tuple[type["VectorCacheFile"], tuple[Path, int]]:
        return type(self), (self.path, self.max_bytes)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, max_bytes={self.max_bytes})"

    async def get(self, keys: Sequence[bytes], /) -> Sequence[bytes | None]:
        """What is kept under each of these keys, or None, in their order.

        Raises:
            sqlite3.Error, OSError: The file cannot be read, or is broken; the message names it.
            OptionError: It is something else.
        """
        return await in_disk_thread(self._get, keys)

    async def put(self, entries: Sequence[tuple[bytes, bytes]], /) -> None:
        """Keep values, each under its key. Errors as with `get`."""
        await in_disk_thread(self._put, entries)

    async def aclose(self) -> None:
        """Close the file; the next call opens it again."""
        await in_disk_thread(self._close)

    # ---------------------------------------------------------------- in a thread

    def _get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if not self.path.exists():
            return [None] * len(keys)
        found: dict[bytes, bytes] = {}
        size_bytes = 0
        with self._reading.use() as file:
            age = _age(file, self.max_bytes)
            for start in range(0, len(keys), READ_AT_ONCE):
                for key, used, value in _rows(file, keys[start : start + READ_AT_ONCE]):
                    found[key] = value if isinstance(value, bytes) else b""  # which is none of ours
                    size_bytes += len(found[key])
                    if used != age and not self._reading.is_read_only:
                        self._used.add(key)
                    if size_bytes > MOST_BYTES_OF_A_VALUE:
                        return [found.get(key) for key in keys]  # the rest is computed: memory stays bounded
        if len(self._used) > READ_AT_ONCE:
            self._note_use()
        return [found.get(key) for key in keys]

    def _put(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        used, self._used = self._used, set()
        entries = [entry for entry in entries if len(entry[1]) <= MOST_BYTES_OF_A_VALUE]
        if self._reading.is_read_only or not (entries or used):
            return
        with self._writing.use(create=True) as file, _transaction(file):
            age = _age(file, self.max_bytes)
            file.executemany("UPDATE vectors SET used = ? WHERE key = ?", [(age, key) for key in used])
            file.executemany(
                "INSERT OR REPLACE INTO vectors (key, used, value) VALUES (?, ?, ?)",
                [(key, age, value) for key, value in entries],
            )
            written = sum(len(value) for _, value in entries)
            file.execute("UPDATE counters SET number = number + ? WHERE name = 'written'", (written,))
            _make_room(file, self.max_bytes)

    def _note_use(self) -> None:
        """Say of what was read lately that it was used; where nothing can be written, nothing makes room either."""
        with suppress(sqlite3.Error, OSError, OptionError):
            if self.path.exists():
                self._put([])

    def _close(self) -> None:
        self._note_use()
        self._reading.close()
        self._writing.close()


_of_parents: list[sqlite3.Connection | None] = []


class _Connection:
    """The file as one thread at a time uses it; another one waits. A forked process opens it anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._file: sqlite3.Connection | None = None
        self._process = 0
        # Of the file that is open: where the path leads to another one by now, that is meant.
        self._identity: tuple[int, int] | None = None
        self.is_read_only = False
        """Whether it, or its folder, could not be written when it was opened last."""

    @contextmanager
    def use(self, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        if self._process not in (0, os.getpid()):
            # What the parent has open is the parent's, and must not even be closed here.
            _of_parents.append(self._file)
            self._lock, self._file = threading.Lock(), None
        with self._lock:
            if self._file is not None and self._identity != _identity(self._path):
                self._drop()
            try:
                if self._file is None:
                    self._open(create=create)
                assert self._file is not None
                yield self._file
            except sqlite3.Error as error:
                self._drop()
                error.args = (_in_words(error, self._path),)
                raise

    def _open(self, *, create: bool) -> None:
        was_read_only, self.is_read_only = self.is_read_only, not create and not _may_be_written(self._path)
        if self.is_read_only and not was_read_only:
            logger.warning("%s, or its folder, cannot be written: what is kept there is used, and no more", self._path)
        self._file = _opened_to_read(self._path) if self.is_read_only else _opened(self._path, create=create)
        self._process, self._identity = os.getpid(), _identity(self._path)

    def close(self) -> None:
        with self._lock:
            if self._process == os.getpid():
                self._drop()

    def _drop(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _identity(path: Path) -> tuple[int, int] | None:
    """Of the file that is there now."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _in_words(error: sqlite3.Error, path: Path) -> str:
    """What went wrong with which file, and what to do about it."""
    name = getattr(error, "sqlite_errorname", "")
    advice = next((advice for start, advice in _ADVICE.items() if name.startswith(start)), _ADVICE_IF_BROKEN)
    return f"{path}: {error} ({advice})"


def _opened(path: Path, *, create: bool) -> sqlite3.Connection:
    """The file, open and looked at. Raises `OptionError` for a file that is something else."""
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Vectors tell much of their texts, so they are nobody else's unless the user says so.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    _check_files(path)
    with _kept_if_right(_connected(os.fspath(path))) as file:
        if not _statements(file):
            file.execute("PRAGMA journal_mode = WAL")
            with _transaction(file):
                if not _statements(file):  # another process may have been sooner
                    _make(file)
        _check(file, path)
    return file


def _opened_to_read(path: Path) -> sqlite3.Connection:
    """Likewise, where nothing may be written: not even the two files beside it, without which SQLite reads no log.

    Where they are there, as of a process that may write, they are read as well. Else the file has to do as it is, which
    no one may change then: a connection that does not know better gives values whose checksums tell.
    """
    _check_files(path)
    try:
        return _looked_at(path, "mode=ro")
    except sqlite3.OperationalError:
        return _looked_at(path, "immutable=1")


def _looked_at(path: Path, way: str) -> sqlite3.Connection:
    place = path.as_posix()
    uri = f"file://{'' if place.startswith('/') else '/'}{quote(os.fsencode(place))}?{way}"
    with _kept_if_right(_connected(uri, is_uri=True)) as file:
        _check(file, path)
    return file


def _connected(place: str, *, is_uri: bool = False) -> sqlite3.Connection:
    return sqlite3.connect(place, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=is_uri)


@contextmanager
def _kept_if_right(file: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """A connection that nothing in the file can mislead, to be looked at; closed if that fails."""
    try:
        file.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST_BYTES_OF_A_VALUE + 2**16)
        for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "synchronous = NORMAL", "temp_store = MEMORY"):
            file.execute(f"PRAGMA {pragma}")
        yield file
    except BaseException:
        file.close()
        raise


def _may_be_written(path: Path) -> bool:
    """Whether a file that is there may be, and files beside it made."""
    try:
        os.close(os.open(path, os.O_RDWR | getattr(os, "O_NONBLOCK", 0)))  # of a pipe as well, which is refused later
        TemporaryFile(dir=path.parent).close()
    except PermissionError:
        return False
    except OSError as error:
        return error.errno != EROFS
    return True


def _check_files(path: Path) -> None:
    """See that SQLite is about to open files, and that no journal among them would have it touch another one.

    It waits for ever for the other end of a pipe, and deletes what a journal calls the one above it.
    """
    for suffix in ("", "-journal", "-wal", "-shm"):
        one = path.with_name(path.name + suffix)
        try:
            is_file = S_ISREG(one.stat().st_mode)
        except FileNotFoundError:
            continue
        if not is_file:
            raise OptionError(f"{one} is not a file: name another place for cache=")
        if suffix == "-journal" and one.read_bytes().endswith(_END_OF_SUPER_JOURNAL):
            raise OptionError(f"{one} is not asyncembed's, and would have another file deleted: see whose it is")


def _make(file: sqlite3.Connection) -> None:
    for statement in _SCHEMA:
        file.execute(statement)
    file.execute("INSERT INTO counters (name, number) VALUES ('written', 0)")
    file.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    file.execute(f"PRAGMA user_version = {_FORMAT_VERSION}")


def _check(file: sqlite3.Connection, path: Path) -> None:
    """See that a file is one of ours, and has nothing in it that would act by itself."""
    facts = _number(file, "PRAGMA application_id"), _number(file, "PRAGMA user_version")
    if facts != (_APPLICATION_ID, _FORMAT_VERSION) or _statements(file) != sorted(_SCHEMA):
        raise OptionError(f"{path} is no cache of vectors of this version of asyncembed: name another file for cache=")


def _statements(file: sqlite3.Connection) -> list[str]:
    return sorted(sql for (sql,) in file.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"))


@contextmanager
def _transaction(file: sqlite3.Connection) -> Iterator[None]:
    file.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if file.in_transaction:  # on a full disk it is over already
            file.execute("ROLLBACK")
        raise
    file.execute("COMMIT")


def _number(file: sqlite3.Connection, statement: str) -> int:
    with closing(file.execute(statement)) as rows:
        match rows.fetchone():
            case (int(number),):
                return number
            case found:
                raise sqlite3.DatabaseError(f"it says {found!r} where a number belongs")


def _rows(file: sqlite3.Connection, keys: Sequence[bytes]) -> Iterator[tuple[bytes, int, object]]:
    """What is kept under some keys: each with its age and its value, in no order."""
    # As many as the next power of two, so that few statements are prepared: a connection keeps what it has prepared.
    places = 1 << (len(keys) - 1).bit_length()
    marks = ",".join("?" * places)
    return file.execute(
        f"SELECT key, used, value FROM vectors WHERE key IN ({marks})",  # noqa: S608 (only question marks)
        [*keys, *[None] * (places - len(keys))],
    )


def _age(file: sqlite3.Connection, max_bytes: int) -> int:
    """The present age of the file: it grows as the file is written to."""
    return _number(file, "SELECT number FROM counters WHERE name = 'written'") // max(1, max_bytes // _AGES)


def _bytes_in_use(file: sqlite3.Connection) -> int:
    pages = _number(file, "PRAGMA page_count") - _number(file, "PRAGMA freelist_count")
    return pages * _number(file, "PRAGMA page_size")


def _make_room(file: sqlite3.Connection, max_bytes: int) -> None:
    for _ in range(_MOST_DELETED // _DELETED_AT_ONCE):
        if _bytes_in_use(file) <= max_bytes or not _delete_oldest(file):
            return


def _delete_oldest(file: sqlite3.Connection) -> bool:
    """Whether there was anything to delete."""
    oldest = "SELECT rowid FROM vectors ORDER BY used, rowid LIMIT ?"
    return file.execute(f"DELETE FROM vectors WHERE rowid IN ({oldest})", (_DELETED_AT_ONCE,)).rowcount > 0  # noqa: S608
