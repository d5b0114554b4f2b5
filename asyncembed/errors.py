"""Every error that asyncembed raises on purpose.

```
AsyncEmbedError
├── OptionError (ValueError)          a keyword or value that cannot work
├── InputError (ValueError)           one input cannot be embedded; `index` says which
├── StateError (RuntimeError)         used before opening, after closing, or from another event loop
├── ModelError
│   ├── UnknownModelError (ValueError)     the name is in no catalogue and is no repo or directory
│   ├── UnsupportedModelError (ValueError) its files do not say, or ask for, something we can compute
│   ├── ModelLoadError                     the files are there, but a worker cannot load them
│   └── RuntimeMissingError                the package or execution provider that it needs is not installed
├── DownloadError                     files could not be brought onto disk (see `asyncembed.hub`)
└── WorkerError
    ├── EncodeError                   the encoder itself failed on a batch
    └── WorkerCrashed                 the worker died or hung on this very input; `index` says which
```

All of them survive pickling: attributes beside the message are optional keywords.
"""


class AsyncEmbedError(Exception):
    """Base of all errors of this package."""


class OptionError(AsyncEmbedError, ValueError):
    """A keyword or a value that cannot work; the message names the valid choices."""


class InputError(AsyncEmbedError, ValueError):
    """One input cannot be embedded; the others are not affected.

    `index` is its position in the source, counted from 0; None where there is only one input.
    """

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class StateError(AsyncEmbedError, RuntimeError):
    """An embedder, pool or stream was used before opening, after closing, or from another event loop."""


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
    """A model's files could not be brought onto this disk."""


class WorkerError(AsyncEmbedError):
    """A worker failed.

    `index` is the position of the input concerned in its source, `worker_traceback` the traceback text
    from inside the worker, where there is one.
    """

    def __init__(self, message: str, *, index: int | None = None, worker_traceback: str | None = None) -> None:
        super().__init__(message)
        self.index = index
        self.worker_traceback = worker_traceback


class EncodeError(WorkerError):
    """The encoder raised while it computed the batch that holds this input."""


class WorkerCrashed(WorkerError):  # noqa: N818 (reads as the event it reports)
    """The worker died, or did not answer in time, on this very input; all others were computed."""
