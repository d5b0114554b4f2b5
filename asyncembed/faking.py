"""Whether models are fakes, and what these do: the switch behind `asyncembed.testing`.

The state is the process's, for every thread and event loop: an engine that lives on another loop is to hear of it, too.
"""

import os
from collections.abc import Mapping
from logging import Logger, getLogger

from asyncembed.errors import AsyncEmbedError, InputFailure

logger: Logger = getLogger("asyncembed")

VARIABLE = "ASYNCEMBED_FAKE"
"""Of the environment: anything but one of `_OFF` switches fakes on."""

ENCODER = "asyncembed.encoders.hashed:HashedEncoder"
"""What computes them, as a spec names it."""

SETTING = "fakes"
"""The name that `Fakes` have among the settings of a spec."""

_OFF = frozenset({"", "0", "false", "no", "off"})


class Fakes:
    """What fake models do. A test may change it at any time: the next batch, or opening, does as it says.

    Attributes:
        dim: Length of the vectors of models that the catalogue does not know. None: 384, of an image 512, of a token or
            patch 128.
        failures: From a text to the error that every input with this text in it gets, instead of a result: an
            `InputError`, an `EncodeError` or a `WorkerCrashed`. Of an image, its path counts.
        seconds: How long each batch takes. A batch that is being computed ends early if this is made smaller.
        opening_error: What opening a model raises; None: nothing.
    """

    def __init__(
        self,
        *,
        dim: int | None = None,
        failures: Mapping[str, InputFailure] | None = None,
        seconds: float = 0.0,
        opening_error: AsyncEmbedError | None = None,
    ) -> None:
        self.dim: int | None = dim
        self.failures: dict[str, InputFailure] = dict(failures or {})
        self.seconds: float = seconds
        self.opening_error: AsyncEmbedError | None = opening_error
        self._is_announced = False

    def announce(self) -> None:
        """Warn, once, as nobody shall find out by its results that a program has no models."""
        if not self._is_announced:
            self._is_announced = True
            logger.warning(
                "models are fakes: their results are made up of hashes (%s=1, or asyncembed.testing). "
                "This is for tests, never for production",
                VARIABLE,
            )


_of_environment = Fakes()
_switched_on: list[Fakes] = []
"""The latest one counts."""


def current_fakes() -> Fakes | None:
    """What models that are opened now shall be; None: themselves."""
    if _switched_on:
        return _switched_on[-1]
    return None if os.environ.get(VARIABLE, "").strip().lower() in _OFF else _of_environment


def switch_on(fakes: Fakes) -> None:
    """From now on, models are these."""
    _switched_on.append(fakes)


def switch_off(fakes: Fakes) -> None:
    """No more; those that are open stay what they are."""
    _switched_on.remove(fakes)
