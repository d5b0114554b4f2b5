"""What `asyncembed embed` does: from records to vectors, and into a file that can be gone on with."""

import errno
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click
from anyio import CancelScope

from asyncembed import __version__
from asyncembed.catalogue.lookup import find_model
from asyncembed.cli.draft import Draft, Mark, about_file
from asyncembed.cli.record_files import RecordFile, as_json
from asyncembed.cli.vector_files import VectorFile, made_with
from asyncembed.embedders.base import fingerprint_in_thread
from asyncembed.embedders.sparse import SparseTextEmbedding
from asyncembed.embedders.text import TextEmbedding
from asyncembed.errors import OF_ONE_INPUT, InputError, OptionError
from asyncembed.files import in_disk_thread
from asyncembed.journal import Trail
from asyncembed.options import absolute, is_path

if TYPE_CHECKING:
    from asyncembed.errors import InputFailure

WRITTEN_AT_ONCE = 256
"""Records: some milliseconds of a thread."""

COMMIT_SECONDS = 1.0
"""How much work a kill may cost; also how long a record waits for others, from a source that trickles."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Of errors that do not say by themselves which file there is no more room for."""

_OF_MODEL = (
    "revision",
    "cache_dir",
    "local_files_only",
    "precision",
    "onnx_file",
    "device",
    "runtime",
    "max_length",
    "long",
)
_OF_COMPUTING = ("max_batch_tokens", "max_batch_size", "workers", "threads", "cache")
_OF_RESULT = (
    "revision",
    "precision",
    "onnx_file",
    "max_length",
    "long",
    "truncate_dim",
    "role",
    "prompt",
    "prompt_name",
)
"""Options that decide what a vector is: they are kept beside it."""


class EmbeddingRun:
    """One run of the command with its options, as click gives them.

    Attributes:
        cut: Texts so far, of this run, that were longer than the model's limit of tokens, and were cut there.
    """

    def __init__(
        self, options: Mapping[str, Any], source: RecordFile, vectors: VectorFile, *, shows_progress: bool
    ) -> None:
        self._options = options
        self._source = source
        self._vectors = vectors
        self._shows_progress = shows_progress and sys.stderr.isatty()
        self._model = self._embedder()
        self._failures: list[tuple[Any, InputFailure]] = []
        self._next_commit = 0.0
        self._mark = Mark()
        self.cut: int = 0

    @property
    def origin(self) -> dict[str, Any]:
        """What decides about the result: a draft with another origin is not gone on with."""
        source = {
            "format": self._source.kind,
            "column": self._source.column,
            "delimiter": self._options["delimiter"],
            "into": self._options["into"],
        }
        return {
            "model": _full_name(self._options["model"], self._model.family),
            "family": self._model.family,
            **{name: self._options[name] for name in _OF_RESULT},
            **source,
        }

    def _embedder(self) -> "TextEmbedding[Any] | SparseTextEmbedding":
        keywords = {name: self._options[name] for name in (*_OF_MODEL, *_OF_COMPUTING)}
        if not self._shows_progress:
            keywords["progress"] = False
        name = self._options["model"]
        if not self._options["sparse"]:
            return TextEmbedding(name, truncate_dim=self._options["truncate_dim"], **keywords)
        for option in ("prompt", "prompt_name", "truncate_dim"):
            if self._options[option] is not None:
                raise OptionError(f"sparse vectors know no --{option.replace('_', '-')}")
        return SparseTextEmbedding(name, **keywords)

    async def into(self, target: "Target") -> None:
        """Embed what the source has after what the target has of it."""
        async with self._model as model:
            dim = model.embedding_size if isinstance(model, TextEmbedding) else None
            facts = {"dim": dim, "fingerprint": await fingerprint_in_thread(model)}
            await in_disk_thread(target.begin, facts, self._vectors.header(dim))
            self._mark = target.mark
            self._trail = self._trail_from(target.mark)
            try:
                await self._take(self._stream(), target)
                self._mark = replace(self._mark, is_whole=True)
            except OF_ONE_INPUT as error:
                if error.index is not None:
                    error.index += target.before
                click.echo("To go on past what fails: --on-error skip, or a FILE for it.", err=True)
                raise
            finally:
                self.cut = model.stats().truncated
                with CancelScope(shield=True):
                    await in_disk_thread(target.commit, self._mark)

    def _stream(self) -> Any:
        model = self._model
        methods = {"passage": model.passage_embed, "query": model.query_embed, "plain": model.embed}
        prompts = {name: self._options[name] for name in ("prompt", "prompt_name") if self._options[name] is not None}
        count = self._source.count() if self._shows_progress else None
        method: Any = methods[self._options["role"]]
        return method(
            self._trail.follow(self._source.records()),
            key=self._source.text_of,
            on_error="raise" if self._options["on_error"] == "raise" else self._note_failure,
            progress=self._shows_progress,
            total=None if count is None else max(0, count - self._mark.read),
            **prompts,
        ).with_inputs()

    async def _take(self, stream: Any, target: "Target") -> None:
        async with stream:
            async for records, results in stream.batches(WRITTEN_AT_ONCE, max_wait=COMMIT_SECONDS):
                await in_disk_thread(self._write, target, records, results)
        await in_disk_thread(self._write, target, [], None)

    def _write(self, target: "Target", records: Sequence[Any], results: Any) -> None:
        failures, self._failures = self._failures, []
        data = self._vectors.encoded(records, results) if records else b""
        failed = "".join(self._failed_line(target, *failure) for failure in failures).encode()
        target.append(data, failed)
        read = len(records) + len(failures)
        self._mark = Mark(
            read=self._mark.read + read,
            written=self._mark.written + len(records),
            size_bytes=self._mark.size_bytes + len(memoryview(data).cast("B")),
            failed_bytes=self._mark.failed_bytes + len(failed),
            checksum=self._trail.done(read),
        )
        if perf_counter() >= self._next_commit:
            target.commit(self._mark)
            self._next_commit = perf_counter() + COMMIT_SECONDS

    # ---------------------------------------------------------------- what fails

    def _note_failure(self, record: Any, error: "InputFailure") -> None:
        self._failures.append((record, error))

    def _failed_line(self, target: "Target", record: Any, error: "InputFailure") -> str:
        fields: dict[str, Any] = {}
        if not isinstance(record, InputError):
            (fields,) = self._source.fields([record])
        index = target.before + (error.index or 0)
        failure = {"index": index, "error": type(error).__name__, "message": _message(error)}
        return as_json({**fields, "failure": failure}) + "\n"

    # ---------------------------------------------------------------- the source

    def _trail_from(self, mark: Mark) -> Trail:
        return Trail(
            self._text,
            read=mark.read,
            checksum=mark.checksum,
            changed=f"the first {mark.read} records of {self._source.name} are not those that an interrupted run has "
            "read: start over with --restart",
        )

    def _text(self, record: Any) -> str:
        """What a record is told by: its text, or what is wrong with that."""
        try:
            text = self._source.text_of(record)
        except InputError as error:
            text = _message(error)
        return text if isinstance(text, str) else repr(text)


def _message(error: Exception) -> str:
    """What it says besides where the input was."""
    return str(error.args[0]) if error.args else ""


def _full_name(model: str, family: Any) -> str:
    """The name of a model, which means the same in another working directory."""
    if is_path(model) or (find_model(model, family) is None and Path(model).is_dir()):
        return str(absolute(model))
    return model


# ---------------------------------------------------------------- targets


class Target(ABC):
    """Where the result goes: a context manager, all of which blocks."""

    mark: Mark = Mark()
    before: int = 0
    """How many records earlier runs have read."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    @abstractmethod
    def begin(self, facts: Mapping[str, Any], header: bytes) -> None:
        """Get ready for vectors of the open model, by its facts, after the `header` where nothing is there yet."""

    @abstractmethod
    def append(self, data: "bytes | memoryview", failed: bytes) -> None:
        """Write some more."""

    def commit(self, mark: Mark) -> None:
        """Have it stay, up to there."""
        self.mark = mark

    def finish(self, vectors: VectorFile) -> None:  # noqa: B027 (there may be nothing to do)
        """Make the file of it."""


def open_target(options: Mapping[str, Any], source: RecordFile, origin: Mapping[str, Any]) -> Target:
    """The target that the options name. Raises `OptionError`."""
    failed_to = None if options["on_error"] in ("raise", "skip") else Path(options["on_error"])
    if options["output"] != "-":
        return _FileTarget(options, source, origin, failed_to)
    for option in ("resume", "restart"):
        if options[option]:
            raise OptionError(f"--{option} needs a file: -o OUT")
    if failed_to is not None:
        raise OptionError("a FILE for --on-error needs another one for the rest: -o OUT")
    return _Stdout()


class _Stdout(Target):
    def begin(self, facts: Mapping[str, Any], header: bytes) -> None:
        """JSONL has no header."""

    def append(self, data: "bytes | memoryview", failed: bytes) -> None:  # noqa: ARG002 (has no place)
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


class _FileTarget(Target):
    def __init__(
        self, options: Mapping[str, Any], source: RecordFile, origin: Mapping[str, Any], failed_to: Path | None
    ) -> None:
        self._path = Path(options["output"])
        self._resume, self._restart = options["resume"], options["restart"]
        self._failed_to = failed_to
        self._origin = origin
        self._draft = Draft(self._path)
        self._is_there = self._is_begun = False
        self._check(source)

    def _check(self, source: RecordFile) -> None:
        if self._resume and self._restart:
            raise OptionError("give either --resume or --restart, not both")
        written = [path for path in (self._path, self._failed_to, about_file(self._path)) if path is not None]
        if len({path.absolute() for path in written}) < len(written):
            raise OptionError(f"{self._failed_to} is written already by -o: name another file for what fails")
        if source.path is not None and self._draft.folder.absolute() in source.path.absolute().parents:
            raise OptionError(f"{source.path} is of the draft that is written: copy it to elsewhere")
        for path in written:
            if (path.exists() and not path.is_file()) or not path.parent.is_dir():
                problem = "it is no file" if path.exists() else f"there is no directory {path.parent}"
                problem = "it is a directory" if path.is_dir() else problem
                raise OptionError(f"{path} cannot be written: {problem}")
            if source.path is not None and path.exists() and path.samefile(source.path):
                raise OptionError(f"{path} is what is read: write to another file")

    def __enter__(self) -> Self:
        self._draft.__enter__()
        try:
            self._find()
        except BaseException:
            self._draft.__exit__()
            raise
        return self

    def _find(self) -> None:
        """Find out what earlier runs have left."""
        if self._restart:
            return
        begun = self._draft.origin
        if begun is not None:
            if not self._resume:
                raise OptionError(
                    f"an interrupted run has left {self._draft.folder}: go on with it by --resume, or throw it away by "
                    "--restart"
                )
            _check_origin(begun, self._draft.folder, self._origin)
            self._draft.resume()
            self.mark = self._draft.mark
            self.before = self.mark.read
        elif self._resume and self._path.exists():
            self._find_whole()

    def _find_whole(self) -> None:
        about = made_with(self._path)
        if about is None or not {"records", "failed"} <= about.keys():
            raise OptionError(
                f"{self._path} is there already, and nothing says how far it is; without --resume it is replaced"
            )
        _check_origin(about, self._path, self._origin)
        self.mark = Mark(read=about["records"] + about["failed"], written=about["records"], is_whole=True)
        self.before = self.mark.read
        self._is_there = True

    def _begun(self) -> Mapping[str, Any]:
        begun = self._draft.origin
        assert begun is not None, "it is asked for while there is one"
        return begun

    def begin(self, facts: Mapping[str, Any], header: bytes) -> None:
        if self.mark == Mark():
            self._is_begun = True
            self._draft.begin({**self._origin, **facts}, header)
            self.mark = self._draft.mark
        else:
            begun = self._begun()
            _check_origin(begun, self._draft.folder, {name: facts[name] for name in facts if name in begun})

    def append(self, data: "bytes | memoryview", failed: bytes) -> None:
        self._draft.append(data, failed)

    def commit(self, mark: Mark) -> None:
        self._draft.commit(mark)
        self.mark = mark

    def finish(self, vectors: VectorFile) -> None:
        if self._is_there:
            return
        draft, mark = self._draft, self.mark
        about = {**self._begun(), "records": mark.written, "failed": mark.read - mark.written, "version": __version__}
        # Without data, they have become the file already, before the run was interrupted that had come so far.
        whole = vectors.finish(draft.data, about) if draft.data.exists() else draft.data
        draft.publish(whole, None if vectors.has_about else json.dumps(about, indent=1).encode(), self._failed_to)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        read = self._draft.mark.read
        if self._is_begun and error is not None and not read:
            self._draft.discard()
        self._draft.__exit__()
        if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
            error.filename = str(self._path)
        if error is not None and read:
            click.echo(f"Records done so far: {read}; --resume goes on with them.", err=True)


def _check_origin(begun: Mapping[str, Any], what: Path, wanted: Mapping[str, Any]) -> None:
    """Raise `OptionError` where what there is was made in another way."""
    others = [name for name, value in wanted.items() if begun.get(name) != value]
    if others:
        was = ", ".join(f"{name} {begun.get(name)!r} and not {wanted[name]!r}" for name in others)
        raise OptionError(f"{what} was made with {was}: begin anew with --restart")
