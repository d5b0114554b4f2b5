"""Every error that asyncembed raises on purpose.

```
AsyncEmbedError
├── OptionError (ValueError)          a keyword or value that cannot work
├── UsageError (TypeError)            synchronous where it is not, or must not be; says what to write
├── InputError (ValueError)           one input cannot be embedded; `index` says which
├── StateError (RuntimeError)         used before opening, after closing, or from another event loop
├── OverloadedError                   more interactive inputs wait than `max_queued` lets; try again later
├── ClientGoneError                   the client of a web app left before its answer was there
├── ModelError
│   ├── UnknownModelError (ValueError)     the name is in no catalogue and is no repo or directory
│   ├── UnsupportedModelError (ValueError) its files do not say, or ask for, something we can compute
│   ├── ModelLoadError                     the files are there, but a worker cannot load them
│   └── RuntimeMissingError                the package or execution provider that it needs is not installed
├── DownloadError                     files could not be brought onto disk (see `asyncembed.hub`)
│   ├── RepoNotFoundError                  no such repo, or a private one; the hub does not tell which
│   ├── RevisionNotFoundError              the repo has no such branch, tag or commit
│   ├── RepoFileNotFoundError              the repo lacks a file that the model needs
│   ├── AccessDeniedError                  the repo is there, but not for this token
│   │   └── GatedRepoError                 its terms must be accepted first
│   ├── BadTokenError                      the hub does not know the token
│   ├── NotCachedError                     no network wanted, and not (wholly) in the cache
│   ├── UnreachableError                   no answer, or no complete one, after several tries
│   │   ├── RateLimitedError               too many requests; `retry_after_seconds` says when to come back
│   │   └── UnexpectedAnswerError          something answers that is not a hub (proxy, login page, mirror)
│   ├── CorruptFileError                   the bytes that came are not the file's, several times over
│   ├── DiskFullError                      no room for the files
│   ├── CacheNotWritableError              files are missing and the cache cannot be written
│   ├── ArchiveError                       an archive is damaged or unsafe to extract
│   └── NoSourceError                      every source of a model failed; `failures` has each one's error
└── WorkerError
    ├── WorkersImpossible             this process can have no worker processes; `workers=0` computes in threads
    ├── EncodeError                   the encoder itself failed on a batch, or gave no finite result for an input
    └── WorkerCrashed                 the worker died or hung on this very input; `index` says which
```

All of them survive pickling: attributes beside the message are optional keywords.
"""

from typing import TypeAlias


class AsyncEmbedError(Exception):
    """Base of all errors of this package."""


class OptionError(AsyncEmbedError, ValueError):
    """A keyword or a value that cannot work; the message names the valid choices."""


class UsageError(AsyncEmbedError, TypeError):
    """An embedder or stream was used as if it were synchronous, or a synchronous one where an event loop runs.

    The message says what to write.
    """


class InputError(AsyncEmbedError, ValueError):
    """One input cannot be embedded; the others are not affected.

    `index` is its position in the source, counted from 0, which the message names, too; None where there is only one
    input.
    """

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index

    def __str__(self) -> str:
        # Not part of the message, since whoever raises the error (a worker, for its batch) seldom knows it.
        return _at(self.index, super().__str__())


class StateError(AsyncEmbedError, RuntimeError):
    """An embedder, pool or stream was used before opening, after closing, or from another event loop."""


class OverloadedError(AsyncEmbedError):
    """The pool has `max_queued` interactive inputs waiting; nothing of this call was computed. Try again later.

    `retry_after_seconds` is about how long what waits will take, where the speed of the model is known yet.
    """

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class ClientGoneError(AsyncEmbedError):
    """The client of a web app left before its answer was there, so that its work was cancelled: nobody to tell."""


class ModelError(AsyncEmbedError):
    """Something is wrong with a model; `model` is its name or directory."""

    def __init__(self, message: str, *, model: str | None = None) -> None:
        super().__init__(message)
        self.model = model


class UnknownModelError(ModelError, ValueError):
    """No catalogue entry, hub repo or directory has this name."""


class UnsupportedModelError(ModelError, ValueError):
    """The model's files do not say how to compute it, or ask for something that is not supported."""


class ModelLoadError(ModelError):
    """The model's files are there but cannot be loaded; the message carries the worker's own error."""


class RuntimeMissingError(ModelError):
    """The runtime or execution provider that the model needs is not installed."""


class DownloadError(AsyncEmbedError):
    """A model's files could not be brought onto this disk.

    `source` is the repo, URL or directory concerned, `path` the file in it, where there is one.
    """

    def __init__(self, message: str, *, source: str | None = None, path: str | None = None) -> None:
        super().__init__(message)
        self.source = source
        self.path = path


class RepoNotFoundError(DownloadError):
    """The hub has no such repo, or it is private: the hub answers alike. Check the name, or give a token."""


class RevisionNotFoundError(DownloadError):
    """The repo has no such branch, tag or commit."""


class RepoFileNotFoundError(DownloadError):
    """The repo lacks a file that the model needs; `path` names it."""


class AccessDeniedError(DownloadError):
    """The repo exists, but this token (or nobody) may read it."""


class GatedRepoError(AccessDeniedError):
    """The repo's terms must be accepted on its page, and a token of that account given."""


class BadTokenError(DownloadError):
    """The hub does not know the token; it refuses it even for public repos."""


class NotCachedError(DownloadError):
    """Files are missing in the cache and the network may not be used."""


class UnreachableError(DownloadError):
    """The hub gave no answer, or no complete one, after several tries."""


class RateLimitedError(UnreachableError):
    """The hub asks for a longer pause than we are ready to wait; `retry_after_seconds` says how long."""

    def __init__(
        self,
        message: str,
        *,
        source: str | None = None,
        path: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message, source=source, path=path)
        self.retry_after_seconds = retry_after_seconds


class UnexpectedAnswerError(UnreachableError):
    """Something answers that does not speak the hub's protocol: a login page, a proxy, a broken mirror."""


class CorruptFileError(DownloadError):
    """The bytes received are not the file's, several times over; nothing of them is kept."""


class DiskFullError(DownloadError):
    """The disk (or a quota) has no room for the files; free some, or give another `cache_dir`."""


class CacheNotWritableError(DownloadError):
    """Files are missing and the cache cannot be written; give another `cache_dir`."""


class ArchiveError(DownloadError):
    """An archive is damaged, is no archive, or holds something that must not be extracted."""


class NoSourceError(DownloadError):
    """Every source of a model failed; `failures` holds each one's error, in their order."""

    def __init__(self, message: str, *, failures: tuple[DownloadError, ...] = ()) -> None:
        super().__init__(message)
        self.failures = failures


class WorkerError(AsyncEmbedError):
    """A worker failed.

    `index` is the position of the input concerned in its source, `worker_traceback` the traceback text
    from inside the worker, where there is one.
    """

    def __init__(self, message: str, *, index: int | None = None, worker_traceback: str | None = None) -> None:
        super().__init__(message)
        self.index = index
        self.worker_traceback = worker_traceback

    def __str__(self) -> str:
        return _at(self.index, super().__str__())


class WorkersImpossible(WorkerError):  # noqa: N818 (says what is the matter)
    """This process can have no worker processes, however often it is tried; `workers=0` computes in threads of it."""


class EncodeError(WorkerError):
    """The encoder raised while it computed the batch that holds this input, or gave NaN or infinity for this input."""


class WorkerCrashed(WorkerError):  # noqa: N818 (reads as the event it reports)
    """The worker died, or did not answer in time, on this very input; all others were computed."""


OF_ONE_INPUT = (InputError, EncodeError, WorkerCrashed)
"""The errors that `on_error=` decides about. All others, as that the embedder was closed, end their stream, as they
concern whatever comes."""

InputFailure: TypeAlias = InputError | EncodeError | WorkerCrashed
"""What stands in the place of a result with `on_error="return"`: one of `OF_ONE_INPUT`."""


def in_words(error: BaseException) -> str:
    """The class and the message of an error that is not ours, whatever asking for its message does."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 (it is the caller's own class)
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _at(index: int | None, message: str) -> str:
    return message if index is None else f"input {index}: {message}"
