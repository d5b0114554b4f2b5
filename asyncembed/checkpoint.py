"""How far an ingest is, in a file: what a kill at any moment leaves undone is done by the next run."""

import os
import sys
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self, TypeGuard, TypeVar, overload

from anyio import CancelScope
from filelock import FileLock

from asyncembed.checks import check_callable
from asyncembed.errors import InputError, InputFailure, OptionError, StateError, UsageError, in_words
from asyncembed.files import in_disk_thread
from asyncembed.journal import Journal, Trail, take_lock

InputT = TypeVar("InputT")

HEADER = {"checkpoint": 1}
"""The first line of the file: what it is, and its version."""


class CheckpointFile:
    """What the two checkpoints have in common: see `Checkpoint`, and `asyncembed.sync.Checkpoint`."""

    def __init__(self, path: str | os.PathLike[str], *, key: Callable[[Any], str | int] | None = None) -> None:
        if not isinstance(path, str | os.PathLike):
            raise OptionError(f"a checkpoint is at a path; got {type(path).__name__}")
        check_callable("key", key, what="a function that gives a record's text or number")
        self.path: Path = Path(path)
        self._text_of = _nothing if key is None else _text_by(key)
        self._journal = Journal(self.path)
        self._lock = FileLock(f"{self.path}.lock", thread_local=False)
        self._trail: Trail | None = None
        self._is_open = False
        self._records = self._checksum = self._skipped = 0

    @property
    def records(self) -> int:
        """So many records from the source's beginning are done, failed ones included.

        Raises:
            StateError: The checkpoint is not open.
        """
        self._check_open()
        return self._records

    @overload
    def rest(self, source: Iterable[InputT]) -> Iterator[InputT]: ...
    @overload
    def rest(self, source: AsyncIterable[InputT]) -> AsyncIterator[InputT]: ...
    def rest(self, source: Iterable[InputT] | AsyncIterable[InputT]) -> Iterator[InputT] | AsyncIterator[InputT]:
        """What of a source comes after the records that are done: once a run, of the same source in the same order.

        Raises:
            StateError: The checkpoint is not open.
            UsageError: It has been asked for already.
            OptionError: While it is read: with a `key`, the first records are not those of the runs before.
        """
        self._check_open()
        if self._trail is not None:
            raise UsageError("rest() was called in this run: a checkpoint is of one source")
        self._trail = Trail(
            self._text_of,
            read=self._records,
            checksum=self._checksum,
            changed=f"the first {self._records} records are not those that are done according to {self.path}: give the "
            "source that it is of, or remove it to begin anew",
        )
        if isinstance(source, AsyncIterable):
            return self._trail.follow_async(source)
        if not isinstance(source, Iterable):
            raise OptionError(f"a source is an iterable or async iterable; got {type(source).__name__}")
        return self._trail.follow(source)

    def skip(self, record: object, error: InputFailure) -> None:  # noqa: ARG002 (as streams call it)
        """For `on_error=`: a record that fails counts as done with those of the next `advance`."""
        self._skipped += 1

    # ---------------------------------------------------------------- the file; all of it blocks

    def _open(self) -> None:
        # A device, as the null one, would be deleted, to be made anew as a file.
        is_other = self.path.exists() and not self.path.is_file()
        if is_other or not self.path.parent.is_dir():
            problem = "it is no file" if is_other else f"there is no directory {self.path.parent}"
            raise OptionError(f"{self.path} can be no checkpoint: {problem}")
        take_lock(self._lock, f"{self.path} is in use by another run")
        try:
            self._read()
        except BaseException:
            self._lock.release()
            raise
        self._is_open = True

    def _read(self) -> None:
        self._trail, self._records, self._checksum, self._skipped = None, 0, 0, 0
        try:
            ends = self._journal.ends()
        except ValueError:
            raise self._broken() from None
        if ends is None:
            self._begin()
            return
        first, last = ends
        records, checksum = last.get("records"), last.get("checksum")
        if first != HEADER or not _is_count(records) or not _is_count(checksum):
            raise self._broken()
        self._records, self._checksum = records, checksum
        self._journal.cut()

    def _begin(self) -> None:
        header = Journal.line(HEADER)
        found = self.path.read_bytes()[: len(header)] if self._journal.exists() else b""
        if not header.startswith(found):
            raise self._broken()  # somebody's file
        if found == header:
            self._journal.cut()
        else:
            self._journal.remove()
            self._journal.write(HEADER)

    def _close(self) -> None:
        self._is_open = False
        self._lock.release()

    def _advance(self, count: int) -> None:
        self._check_open()
        if not _is_count(count):
            raise OptionError(f"a number of records is 0 or more; got {count!r}")
        if self._trail is None and self._text_of is not _nothing:
            raise UsageError("the checkpoint has a key=, and has not seen the records: give rest() the source")
        skipped = self._skipped
        count += skipped
        if count:
            checksum = 0 if self._trail is None else self._trail.after(count)
            # What could not be written is not done, so that it may be said once more.
            self._journal.write({"records": self._records + count, "checksum": checksum})
            self._skipped -= skipped
            self._records += count
            self._checksum = checksum
            if self._trail is not None:
                self._trail.done(count)

    def _reach(self, records: int) -> None:
        self._check_open()
        self._skipped = 0
        self._advance(max(0, records - self._records))

    def _check_open(self) -> None:
        if not self._is_open:
            raise StateError(f"the checkpoint {self.path} is not open: write `with` before it, or `async with`")

    def _broken(self) -> OptionError:
        return OptionError(f"{self.path} is no checkpoint, or a broken one: remove it to begin anew")


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= sys.maxsize


def _text_by(key: Callable[[Any], str | int]) -> Callable[[Any], str]:
    def text_of(record: Any) -> str:
        try:
            text = key(record)
        except Exception as error:
            raise InputError(f"the checkpoint's key= failed: {in_words(error)}") from error
        if not isinstance(text, str | int):
            raise InputError(f"the checkpoint's key= must give a str or an int, got {type(text).__name__}")
        return str(text)

    return text_of


def _nothing(record: object) -> str:  # noqa: ARG001 (nothing of it is looked at)
    return ""


class Checkpoint(CheckpointFile):
    """How far an ingest is, in a file: a kill at any moment costs what was done since the last `advance`, done again.

    ```python
    async with Checkpoint("articles.done") as done, TextEmbedding("BAAI/bge-small-en-v1.5") as model:
        stream = model.embed(done.rest(documents), on_error=done.skip).with_inputs()
        async for texts, vectors in stream.batches(256):
            print(vectors.shape)  # (3, 384)
            await done.advance(len(texts))
    ```

    So each record is stored at least once, and those between the last `advance` and a kill may be stored twice: give
    them ids that are the same in each run. Results must come in the order of their source, as they do unless a call
    says `ordered=False`. Remove the file to begin anew.

    Args:
        path: Of the file. Beside it lies an empty one, `PATH.lock`, by which no second run uses it at the same time.
        key: A text or number of a record by which it is known again, as its id: the next run then refuses a source that
            begins with other records than those that are done. A record that has none fails, as one does that cannot
            be embedded. None: only their number counts.

    Raises:
        OptionError: The path cannot be written, or is something else; another run uses it.
    """

    async def __aenter__(self) -> Self:
        await in_disk_thread(self._open)
        return self

    async def __aexit__(self, *_: object) -> None:
        with CancelScope(shield=True):
            await in_disk_thread(self._close)

    async def advance(self, count: int) -> None:
        """Note that `count` more records are done, and those that `skip` was called with. On disk when it returns.

        Raises:
            StateError: The checkpoint is not open.
            UsageError: `rest` has not given so many, or nothing although there is a `key`.
        """
        await in_disk_thread(self._advance, count)

    async def reach(self, records: int) -> None:
        """Note that `records` records from the source's beginning are done, failed ones included. Likewise.

        It is for streams that give more than one result for a record: of `embed_chunks(done.rest(enumerate(documents)),
        key=lambda record: record[1])`, once all chunks before one of the document `(number, text)` are stored, it is
        `reach(number)`.
        """
        await in_disk_thread(self._reach, records)
