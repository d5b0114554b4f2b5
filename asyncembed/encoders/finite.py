"""No result that is not finite leaves a worker: NaN or infinity in a vector spoils every comparison, without a word.

Half precision overflows where float32 does not, and some execution providers compute what others do not. The input
concerned gets an error; the others of its batch keep their results.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from asyncembed.catalogue.spec import ModelSpec
from asyncembed.errors import EncodeError
from asyncembed.runtime.providers import CPU
from asyncembed.runtime.session import Array

# Decorates what computes results: numpy warns of the arithmetic that `Finite` is there to find.
quietly: np.errstate = np.errstate(all="ignore")

_NO_ROWS: npt.NDArray[np.intp] = np.empty(0, dtype=np.intp)


def rows_not_finite(values: Array) -> npt.NDArray[np.intp]:
    """Which rows of an array (n, ...) hold NaN or infinity, ascending."""
    finite = np.isfinite(values)
    if finite.all():
        return _NO_ROWS
    return np.flatnonzero(~finite.reshape(len(finite), -1).all(axis=1))


class Finite:
    """Finds what must not be handed on, and words the errors."""

    def __init__(self, spec: ModelSpec, *, element: str = "float32", provider: str | None = None) -> None:
        """Say whose results these are: of which element type the graph gives them, and what computes them."""
        self.spec = spec
        self._element = element
        self._provider = provider

    def failures(
        self, vectors: Array, owners: Sequence[int] | npt.NDArray[np.intp], *, results: "Array | None" = None
    ) -> dict[int, EncodeError]:
        """An error for each input with a row of `vectors` that is not finite; `owners` are the inputs of the rows.

        `results` may be made of them, of a type that holds less.
        """
        rows = rows_not_finite(vectors if results is None or results.dtype.kind != "f" else results)
        if not len(rows):
            return {}
        lost = set(rows[np.isfinite(vectors[rows]).reshape(len(rows), -1).all(axis=1)].tolist())
        return {int(owners[row]): self._too_large() if row in lost else self.error() for row in rows.tolist()}

    def error(self) -> EncodeError:
        """The failure of an input."""
        spec = self.spec
        file = spec.model_file or "its weights"
        precision = self._precision()
        ways = [] if precision == "fp32" else ['its fp32 file (precision="fp32", or onnx_file=)']
        where = ""
        if self._provider is not None:
            where = f" on {self._provider}"
            ways += [] if self._provider == CPU else ['another provider (device="cpu", or runtime="onnxruntime")']
        way = f"take {' or '.join(ways)}" if ways else "another file of the model (onnx_file=) may do better"
        return EncodeError(
            f"{spec.name} gives NaN or infinity for this input, computed from {file} ({precision}){where}: {way}"
        )

    def _precision(self) -> str:
        """By the file's name, or, where that says nothing, by what the graph gives."""
        from asyncembed.catalogue.onnx_choice import precision_of

        named = "fp32" if self.spec.model_file is None else precision_of(self.spec.model_file)
        return self._element if named == "fp32" and self._element != "float32" else named

    def _too_large(self) -> EncodeError:
        return EncodeError(f'{self.spec.name} gives numbers over 65504 for this input, too large for dtype="float16"')
