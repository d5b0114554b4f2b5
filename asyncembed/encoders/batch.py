"""The inputs of a batch: which of them can be computed, and the way back to their places."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from asyncembed.errors import InputError
from asyncembed.runtime.session import Array

ValueT = TypeVar("ValueT")
OtherT = TypeVar("OtherT")


@dataclass(frozen=True, slots=True)
class Usable(Generic[ValueT]):
    """What became of the inputs of a batch.

    Attributes:
        values: One per usable input.
        positions: Where each of them stands in the batch.
        failures: Position in the batch → why that input could not be used.
    """

    values: Sequence[ValueT]
    positions: Sequence[int]
    failures: Mapping[int, InputError]

    @property
    def batch_size(self) -> int:
        """How many inputs there were."""
        return len(self.positions) + len(self.failures)

    def become(self, values: Sequence[OtherT]) -> "Usable[OtherT]":
        """The same inputs, of which something else is known."""
        return Usable(values, self.positions, self.failures)

    def without(self, are_refused: Sequence[bool], reason: str) -> "Usable[ValueT]":
        """Those for which a flag is set are failures, for this reason."""
        if not any(are_refused):
            return self
        kept = [row for row, is_refused in enumerate(are_refused) if not is_refused]
        positions = [self.positions[row] for row in kept]
        failures = {position: InputError(reason) for position in set(self.positions).difference(positions)}
        return Usable([self.values[row] for row in kept], positions, {**self.failures, **failures})

    def in_batch(self, results: Iterable[OtherT], filler: OtherT) -> list[OtherT]:
        """One result per usable input, put to its position in the batch; `filler` stands for the others."""
        places = [filler] * self.batch_size
        for position, result in zip(self.positions, results, strict=True):
            places[position] = result
        return places

    def outcomes(self, results: Iterable[OtherT]) -> list[OtherT | InputError]:
        """One result per usable input, and the failures, in the order of the batch."""
        places: dict[int, OtherT | InputError] = {**dict(zip(self.positions, results, strict=True)), **self.failures}
        return [places[position] for position in range(self.batch_size)]

    def scatter(self, rows: Array) -> Array:
        """Likewise for the rows of an array; the others are zeros."""
        if not self.failures:
            return rows
        places = np.zeros((self.batch_size, *rows.shape[1:]), dtype=rows.dtype)
        places[list(self.positions)] = rows
        return places


def split(outcomes: Iterable[ValueT | InputError]) -> Usable[ValueT]:
    """The values and the failures among what the inputs of a batch were read as."""
    values: list[ValueT] = []
    positions: list[int] = []
    failures: dict[int, InputError] = {}
    for position, outcome in enumerate(outcomes):
        if isinstance(outcome, InputError):
            failures[position] = outcome
        else:
            values.append(outcome)
            positions.append(position)
    return Usable(values, positions, failures)


def read_text(value: Any) -> str | InputError:
    """A text, if it is one that can be written as UTF-8."""
    if not isinstance(value, str):
        return InputError(f"expected a string, got {type(value).__name__}")
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code_point = ord(value[error.start])
        return InputError(f"not valid Unicode: a lone surrogate (U+{code_point:04X}) at character {error.start}")
    return value


def read_pair(value: Any) -> tuple[str, str] | InputError:
    """Two texts."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        return InputError(f"expected a pair of strings, got {type(value).__name__}")
    first, second = map(read_text, value)
    if isinstance(first, InputError):
        return first
    return second if isinstance(second, InputError) else (first, second)
