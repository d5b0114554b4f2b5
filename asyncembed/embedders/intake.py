"""From the records of a caller's source to items that wait for a worker; and whose error it is if one cannot be had."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, TypeVar, cast

from asyncembed.encoders.encoder import Call
from asyncembed.engine.model import PooledModel
from asyncembed.engine.scheduler import BatchKey, Item, Priority
from asyncembed.engine.supervisor import Supervisor
from asyncembed.errors import InputError, in_words
from asyncembed.feeding import Recipient, Source

InputT = TypeVar("InputT")

Key: TypeAlias = Callable[[Any], Any]
"""Takes the input out of a record."""

Accept: TypeAlias = Callable[[object], tuple[object, int, int]]
"""From an input to (how it travels, units, bytes): what its cost is estimated from, and what it keeps in memory.

Raises `InputError` if it can be no input of the family.
"""


class Intake:
    """From a record of the source to an item of one model, for one stream or one call."""

    def __init__(
        self, accept: Accept, engine: Supervisor, model: PooledModel, call: Call, priority: Priority, key: Key | None
    ) -> None:
        self.batch_key: BatchKey = model.batch_key(call)
        self._accept = accept
        self._engine = engine
        self._model = model
        self._computing = engine if model.reuse is None else model.reuse
        self._maker = model.item_maker(self.batch_key, priority)
        self._key = key
        self._is_bounded = engine.is_bounded and priority is Priority.INTERACTIVE
        # Admitted and yet to come; reserved and yet to be sent, those that are being fetched included, and then all of
        # this call among those of others that are.
        self._admitted = self._places = 0
        self._are_absent = False

    def item(self, record: object, index: int, sink: Recipient) -> tuple[Item, int]:
        """See `asyncembed.feeding.Intake`."""
        accepted, units, size_bytes = read_record(record, index, self._key, self._accept)
        return self._make_item(accepted, units, index, sink), size_bytes

    def _make_item(self, value: object, units: int, index: int, sink: Recipient) -> Item:
        return self._maker.item(value, units, sink, index)

    def count_failure(self) -> None:
        """See `asyncembed.feeding.Intake`."""
        self._model.count_failure()

    def admit(self, count: int) -> None:
        """See `asyncembed.feeding.Intake`."""
        if self._is_bounded:
            self._engine.reserve(self._model, count, are_absent=self._are_absent)
            self._admitted += count
            self._places += count

    def submit(self, items: list[Item]) -> None:
        """See `asyncembed.feeding.Intake`."""
        self._claim(len(items))
        self._send(items)

    def _claim(self, count: int) -> None:
        """Have a place for each of so many items: what was admitted, and more for a source of unknown length."""
        if self._is_bounded:
            for _ in range(count - self._admitted):
                self.admit(1)  # each for itself: that they are read together does not make them one list
            self._admitted -= count

    def _send(self, items: list[Item]) -> None:
        """Let items that have their places wait for a worker, where they count from now on."""
        if self._is_bounded:
            self._give_back(len(items))
        self._computing.submit(items)

    def withdraw(self, items: list[Item]) -> None:
        """See `asyncembed.feeding.Intake`."""
        self._computing.withdraw(items)

    def _give_back(self, count: int) -> None:
        count = min(count, self._places)
        self._places -= count
        self._engine.release(count, are_absent=self._are_absent)

    def _count_as_absent(self) -> None:
        """Take no places of what could be computed: something of this call has yet to be fetched or read.

        Raises:
            OverloadedError: There are too many of those.
        """
        if self._is_bounded and not self._are_absent:
            self._engine.reserve(self._model, self._places, are_absent=True)
            self._engine.release(self._places)
            self._are_absent = True

    def close(self) -> None:
        """Forget what was not submitted yet."""
        self._give_back(self._places)


def read_record(record: object, index: int, key: Key | None, accept: Accept) -> tuple[object, int, int]:
    """What `accept` says of the input in a record of the source.

    Raises:
        InputError: There is none, or it can be none of the family.
        KeyboardInterrupt, SystemExit: The caller's own code ends the program.
    """
    # By its type: what an object says of its class may be anything, or raise.
    if type(record) is not str and issubclass(type(record), InputError):
        raise at_index(cast(InputError, record), index)  # a source's word on a record that it could not give
    value = record if key is None else _taken(record, index, key)
    try:
        return accept(value)
    except InputError as error:
        raise at_index(error, index) from error.__cause__
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise InputError(f"the input cannot be read: {in_words(error)}", index=index) from error


def _taken(record: object, index: int, key: Key) -> object:
    try:
        return key(record)
    except InputError as error:
        raise at_index(error, index) from error.__cause__
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise InputError(f"key= failed: {in_words(error)}", index=index) from error


class Door(Protocol):
    """Makes the intake of a stream or call: what its inputs are is settled, and the rest is not."""

    def __call__(
        self, engine: Supervisor, model: PooledModel, call: Call, priority: Priority, key: Key | None, /
    ) -> Intake: ...


def accept_text(value: object) -> tuple[str, int, int]:
    """A text as `str` itself, with its characters and bytes."""
    text = value if type(value) is str else _plain_text(value)
    if text is None:
        hint = "; decode it first" if isinstance(value, bytes) else ""
        raise InputError(f"expected a str, got {type(value).__name__}{hint}")
    return text, len(text), sys.getsizeof(text)


def accept_pair(value: object) -> tuple[tuple[str, str], int, int]:
    """A pair of texts, with the characters and bytes of both."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise InputError(f"expected a pair (query, document), got {type(value).__name__}")
    (query, query_units, query_bytes), (document, units, size_bytes) = map(accept_text, value)
    return (query, document), query_units + units, query_bytes + size_bytes + sys.getsizeof(value)


def _plain_text(value: object) -> str | None:
    """A text as `str` itself, None for what is none.

    A subclass may not survive pickling, or bring much along; pyarrow's scalars of strings are no subclasses.
    """
    if issubclass(type(value), str):
        return str.__str__(cast(str, value))
    if type(value).__module__.partition(".")[0] == "pyarrow" and hasattr(value, "as_py"):
        text = value.as_py()
        return text if type(text) is str else None
    return None


def at_index(error: InputError, index: int) -> InputError:
    """The error with its index; another one for what was handed over before, as a source may do several times."""
    if error.index not in (None, index):
        again = InputError(*error.args, index=index)
        again.__cause__ = error.__cause__
        return again
    error.index = index
    return error


# ---------------------------------------------------------------- sources

_TABLES = frozenset({"DataFrame", "DataFrameGroupBy", "LazyFrame", "DataArray", "RecordBatchReader"})
"""Names of the tables that do not say so by `__dataframe__`, as those of pandas, polars, pyarrow and others do."""


def as_source(texts: Source[InputT]) -> Source[InputT]:
    """One `str` is one text, not many characters."""
    return cast("Source[InputT]", [texts]) if isinstance(texts, str) else texts


def check_source(source: object) -> None:
    """Raise `InputError` for what is no source, and for what iterates as something other than its records."""
    kind = type(source)
    if isinstance(source, bytes | bytearray | memoryview):
        raise InputError(f"the source is {kind.__name__}, whose elements are numbers: decode it first")
    if isinstance(source, Mapping):
        # Iterating over it gives its keys, which is hardly ever what is meant.
        name = "dict" if kind is dict else f"mapping ({kind.__name__})"
        raise InputError(f"the source is a {name}: give its keys(), its values(), or a list of records with key=")
    if hasattr(kind, "__dataframe__") or any(base.__name__ in _TABLES for base in kind.__mro__):
        raise InputError(
            f"the source is a table ({kind.__module__.partition('.')[0]}.{kind.__name__}), which iterates as something "
            'other than its rows: give a column, as table["text"] or array.values, or its rows as dicts, with key='
        )
    if getattr(source, "ndim", None) == 0:
        raise InputError(f"the source is a single value ({kind.__name__} of no dimension): put it into a list")
    if not hasattr(kind, "__aiter__") and not hasattr(kind, "__iter__") and not hasattr(kind, "__getitem__"):
        raise InputError(f"the source must be iterable or async iterable; got {kind.__name__}")
