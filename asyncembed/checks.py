"""Every value that a caller hands in as an option is checked here, before anything is done with it.

Each function takes the keyword's name and its value, and raises `OptionError` with a sentence that says what is wanted.
A value of the wrong type is refused even where Python would take it for another one: `"false"` is no False, `"5"` is no
number, True is no 1.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import TypeGuard

from asyncembed.errors import OptionError


def check_bool(name: str, value: object, *, may_be_none: bool = False) -> None:
    """Raise `OptionError` unless `value` is True or False, or None where that means something."""
    if not isinstance(value, bool) and not (may_be_none and value is None):
        raise OptionError(f"{name} must be {'True, False or None' if may_be_none else 'True or False'}; got {value!r}")


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise `OptionError` unless `value` is one of `choices`."""
    if not any(value is choice or (isinstance(value, type(choice)) and value == choice) for choice in choices):
        raise OptionError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def check_count(name: str, value: object, *, least: int, may_be_none: bool = True) -> None:
    """Raise `OptionError` unless `value` is a whole number of at least `least`, or None where that means something."""
    if value is None and may_be_none:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(f"{name} must be a whole number, {least} or more{', or None' * may_be_none}; got {value!r}")


def check_number(name: str, value: object, *, least: float, most: float = math.inf) -> None:
    """Raise `OptionError` unless `value` is a number from `least` to `most`."""
    if not _is_number(value) or not least <= value <= most:
        bounds = f"from {least:g} to {most:g}" if most != math.inf else f"of at least {least:g}"
        raise OptionError(f"{name} must be a number {bounds}; got {value!r}")


def check_seconds(name: str, value: object, *, may_be_none: bool = False) -> None:
    """Raise `OptionError` unless `value` is a positive number, or None where that means no limit."""
    if not (value is None and may_be_none) and not (_is_number(value) and value > 0):
        raise OptionError(f"{name} must be a positive number of seconds{' or None' * may_be_none}; got {value!r}")


def check_text(name: str, value: object, *, may_be_none: bool = True, may_be_empty: bool = False) -> None:
    """Raise `OptionError` unless `value` is a str, which is not empty unless that means something."""
    if value is None and may_be_none:
        return
    if not isinstance(value, str) or not (value or may_be_empty):
        raise OptionError(f"{name} must be a text{', or None' * may_be_none}; got {value!r}")


def check_path(name: str, value: object, *, may_be_none: bool = True) -> None:
    """Raise `OptionError` unless `value` is a path: a str that is not empty, or a `Path`."""
    if value is None and may_be_none:
        return
    if not isinstance(value, str | os.PathLike) or not os.fspath(value) or isinstance(os.fspath(value), bytes):
        raise OptionError(f"{name} must be a path{', or None' * may_be_none}; got {value!r}")


def check_callable(name: str, value: object, *, what: str) -> None:
    """Raise `OptionError` unless `value` can be called, or is None; `what` says what it is to do."""
    if value is not None and not callable(value):
        raise OptionError(f"{name} must be {what}; got {value!r}")


def check_providers(providers: object) -> None:
    """Raise `OptionError` unless these are execution providers as onnxruntime takes them."""
    entries = list(providers) if isinstance(providers, Sequence) and not isinstance(providers, str) else []
    if not entries or not all(isinstance(entry, str) or _is_provider_with_options(entry) for entry in entries):
        raise OptionError(
            f'providers must be a list of names or (name, options), as in ["CUDAExecutionProvider"]; got {providers!r}'
        )


def check_pool_options(
    workers: object, threads: object, interactive_workers: object, device_ids: object, batch_timeout: object
) -> None:
    """Raise `OptionError` unless a `WorkerPool` can be made with these."""
    check_count("workers", workers, least=0)
    check_count("threads", threads, least=1)
    check_count("interactive_workers", interactive_workers, least=0, may_be_none=False)
    if device_ids is not None:
        if not isinstance(device_ids, Sequence) or isinstance(device_ids, str) or not device_ids:
            raise OptionError(f"device_ids must be a list of the devices' numbers, or None; got {device_ids!r}")
        for device_id in device_ids:
            check_count("device_ids", device_id, least=0, may_be_none=False)
    check_seconds("batch_timeout", batch_timeout, may_be_none=True)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _is_provider_with_options(entry: object) -> bool:
    return isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str) and isinstance(entry[1], Mapping)
