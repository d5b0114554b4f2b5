"""Every value that a caller hands in as an option is checked here, before anything is done with it.

Each function takes the keyword's name and its value, and raises `OptionError` with a sentence that says what is wanted.
A value of the wrong type is refused even where Python would take it for another one: `"false"` is no False, `"5"` is no
number, True is no 1.
"""

import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from difflib import get_close_matches
from functools import wraps
from inspect import iscoroutinefunction, signature
from typing import Any, TypeGuard, TypeVar, Unpack, cast, get_args, get_origin

from asyncembed.errors import OptionError
from asyncembed.migration import KEYWORDS

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_PROVIDERS: Mapping[str, str] = {
    "mps": "CoreMLExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "rocm": "MIGraphXExecutionProvider",
    "dml": "DmlExecutionProvider",
    "directml": "DmlExecutionProvider",
    "npu": "QNNExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""By device: the execution provider for it, as onnxruntime calls it."""

_PRECISIONS: Mapping[str, str] = {
    "float32": "fp32", "float": "fp32", "float16": "fp16", "half": "fp16", "bfloat16": "bf16", "quantized": "int8"
}  # fmt: skip
"""By another library's word for a precision: ours."""


# ---------------------------------------------------------------- names


def checks_keywords(method: FunctionT) -> FunctionT:
    """Decorate a public method: a keyword it does not take is an `OptionError` that says what to use instead.

    So is a further argument without a keyword, which in other libraries is a batch size.
    """
    most = method.__code__.co_argcount
    names: list[str] = []

    def check(arguments: Sequence[object], keywords: Iterable[str]) -> None:
        if not names:
            names.extend(keywords_of(method))
        for name in keywords:
            if name not in names:
                raise _refused(name, names, method, arguments[0])
        if len(arguments) > most:
            name = type(arguments[0]).__name__ if method.__name__ == "__init__" else method.__name__
            raise OptionError(
                f"{name} takes no further argument without its name; got {arguments[most]!r} (a batch size is "
                "max_batch_size= of the constructor)"
            )

    @wraps(method)
    def checked(*arguments: Any, **keywords: Any) -> object:
        if keywords or len(arguments) > most:
            check(arguments, keywords)
        return method(*arguments, **keywords)

    @wraps(method)
    async def checked_async(*arguments: Any, **keywords: Any) -> object:
        if keywords or len(arguments) > most:
            check(arguments, keywords)
        return await method(*arguments, **keywords)

    return cast(FunctionT, checked_async if iscoroutinefunction(method) else checked)


def keywords_of(method: Callable[..., Any]) -> list[str]:
    """The names that a method takes: its keywords, those of an unpacked `TypedDict`, and what may come by position."""
    parameters = [*signature(method).parameters.values()][1:]
    found = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
    for one in parameters:
        if one.kind is one.VAR_KEYWORD and get_origin(one.annotation) is Unpack:
            found += get_args(one.annotation)[0].__annotations__
    return found + [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]


def unknown_keyword(name: str, known: Collection[str]) -> OptionError:
    """The error for a keyword that is none of `known`: what to use instead, or the one that is like it, or all."""
    if name in KEYWORDS:
        hint = f": {KEYWORDS[name]}"
    elif close := get_close_matches(name, known, 1):
        hint = f"; did you mean {close[0]!r}?"
    else:
        hint = f"; known are: {', '.join(dict.fromkeys(known))}"
    return OptionError(f"unknown keyword {name!r}{hint}")


def _refused(name: str, known: Collection[str], method: Callable[..., Any], owner: object) -> OptionError:
    if name not in KEYWORDS and method.__name__ != "__init__" and name in keywords_of(type(owner).__init__):
        return OptionError(f"{method.__name__} has no keyword {name!r}: the constructor takes it")
    return unknown_keyword(name, known)


# ---------------------------------------------------------------- values


def check_bool(name: str, value: object, *, may_be_none: bool = False) -> None:
    """Raise `OptionError` unless `value` is True or False, or None where that means something."""
    if not isinstance(value, bool) and not (may_be_none and value is None):
        raise OptionError(f"{name} must be {'True, False or None' if may_be_none else 'True or False'}; got {value!r}")


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise `OptionError` unless `value` is one of `choices`."""
    if not any(value is choice or (isinstance(value, type(choice)) and value == choice) for choice in choices):
        raise OptionError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def check_long(value: object, *, has_mean: bool = False) -> None:
    """Raise `OptionError` unless `value` says what becomes of an input over the length limit."""
    if not has_mean and isinstance(value, str) and value == "mean":
        raise OptionError(
            'long="mean" makes one vector of several windows, as TextEmbedding can: here "truncate" cuts an input at '
            'the limit, and "error" refuses it'
        )
    check_choice("long", value, ("truncate", "error", "mean") if has_mean else ("truncate", "error"))


def check_some(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise `OptionError` unless `value` is a collection of one or more of `choices`, or None."""
    if value is None:
        return
    some = None if isinstance(value, str) or not isinstance(value, Sequence | Set) else list(value)
    if not some or not all(isinstance(one, str) and one in choices for one in some):
        raise OptionError(f"{name} must be a list of some of {', '.join(map(repr, choices))}, or None; got {value!r}")


def check_count(name: str, value: object, *, minimum: int, may_be_none: bool = True) -> None:
    """Raise `OptionError` unless `value` is a whole number, `minimum` or more, or None where that means something."""
    if value is None and may_be_none:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise OptionError(f"{name} must be a whole number, {minimum} or more{', or None' * may_be_none}; got {value!r}")


def check_number(
    name: str, value: object, *, minimum: float, maximum: float = math.inf, may_be_none: bool = False
) -> None:
    """Raise `OptionError` unless `value` is a number in these bounds, or None where that means something."""
    if value is None and may_be_none:
        return
    if not _is_number(value) or not minimum <= value <= maximum:
        bounds = f"from {minimum:g} to {maximum:g}" if maximum != math.inf else f"of at least {minimum:g}"
        raise OptionError(f"{name} must be a number {bounds}; got {value!r}")


def check_seconds(name: str, value: object, *, may_be_none: bool = False) -> None:
    """Raise `OptionError` unless `value` is a positive number, or None where that means no limit."""
    if not (value is None and may_be_none) and not (_is_number(value) and value > 0):
        raise OptionError(f"{name} must be a positive number of seconds{' or None' * may_be_none}; got {value!r}")


def check_text(name: str, value: object, *, may_be_none: bool = True, may_be_empty: bool = False) -> None:
    """Raise `OptionError` unless `value` is a str, which is not empty unless that means something."""
    if value is None and may_be_none:
        return
    if not isinstance(value, str) or not (value or may_be_empty) or "\0" in value:
        raise OptionError(f"{name} must be a text{', or None' * may_be_none}; got {value!r}")


def check_token(token: object) -> None:
    """Raise `OptionError` unless this is an access token, True, False or None; the message has nothing of it."""
    if token is None or isinstance(token, bool):
        return
    if not isinstance(token, str):
        raise OptionError(
            f"token must be a text, True, False or None; got something of the type {type(token).__name__}"
        )
    if not token or not all("!" <= character <= "~" for character in token):
        raise OptionError(
            "token has characters that no access token has (a space, a line's end, a letter beyond ASCII)"
        )


def check_model_name(name: object) -> None:
    """Raise `OptionError` unless this can name a model or a directory."""
    if not isinstance(name, str | os.PathLike):
        raise OptionError(f"model_name must be a name, a directory or a ModelSpec; got {name!r}")
    check_path("model_name", name, may_be_none=False)
    if isinstance(name, str) and name.startswith(("http://", "https://")):
        raise OptionError(f"model_name is a repo's name, as in 'organisation/name', not its address; got {name!r}")


def check_words(name: str, value: object, *, what: str = "words") -> tuple[str, ...] | None:
    """The texts of any iterable, or None. Raises `OptionError` for anything else, one text included."""
    words = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping) else None
    if value is not None and (words is None or not all(isinstance(word, str) for word in words)):
        got = "one string" if isinstance(value, str) else repr(value)
        raise OptionError(f"{name} must be a collection of {what}, not {got}")
    return words


def check_custom_model(model: object, model_file: object, additional_files: object) -> tuple[str, ...]:
    """The paths of the further files. Raises `OptionError` unless a model can be called so and have such files."""
    check_text("model", model, may_be_none=False)
    check_text("model_file", model_file, may_be_none=False)
    return check_words("additional_files", additional_files, what="paths") or ()


def check_path(name: str, value: object, *, may_be_none: bool = True) -> None:
    """Raise `OptionError` unless `value` is a path: a str that is not empty, or a `Path`."""
    if value is None and may_be_none:
        return
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise OptionError(f"{name} must be a path{', or None' * may_be_none}; got {value!r}")


def check_callable(name: str, value: object, *, what: str) -> None:
    """Raise `OptionError` unless `value` can be called, or is None; `what` says what it is to do."""
    if value is not None and not callable(value):
        raise OptionError(f"{name} must be {what}; got {value!r}")


def check_on_error(on_error: object) -> None:
    """Raise `OptionError` unless this is one of the three words, or a function that is no coroutine."""
    choices = ("raise", "skip", "return")
    if not callable(on_error) and not (isinstance(on_error, str) and on_error in choices):
        raise OptionError(
            f"on_error must be one of {', '.join(map(repr, choices))}, or a function that takes a record and its "
            f"error; got {on_error!r}"
        )
    call = getattr(on_error, "__call__", None)  # noqa: B004 (of an object that can be called)
    if iscoroutinefunction(on_error) or iscoroutinefunction(call):
        raise OptionError(
            "on_error must be a plain function, as nothing waits for a coroutine: have it put the record into a list "
            f"or a queue, from which another task takes it; got {on_error!r}"
        )


def check_device(device: object, choices: Sequence[str]) -> None:
    """Raise `OptionError` unless this is one of `choices`; for the ways of torch and others, with what to write."""
    text = str(device)  # of torch.device, too
    number = re.fullmatch(r"(?:cuda:)?(\d+)", text)
    if number is not None:
        raise OptionError(f'for device={device!r} write device="cuda", device_ids=[{number[1]}]')
    if isinstance(device, Sequence) and not isinstance(device, str):
        raise OptionError(
            f'device is one for all workers, as in device="cuda"; device_ids= deals out numbers: {device!r}'
        )
    if text in _PROVIDERS:
        raise OptionError(f"for device={text!r} write providers=[{_PROVIDERS[text]!r}, 'CPUExecutionProvider']")
    if text == "gpu" or (text in choices and not isinstance(device, str)):
        raise OptionError(f'for device={device!r} write device="{"cuda" if text == "gpu" else text}"')
    check_choice("device", device, choices)


def check_precision(precision: object) -> None:
    """Raise `OptionError` unless this can name one of a repo's files: which there are is known when the repo is."""
    check_text("precision", precision)
    if precision in ("binary", "ubinary"):
        raise OptionError(
            f'precision= chooses a model file; for precision="{precision}" write output="binary" (TextEmbedding)'
        )
    if isinstance(precision, str) and precision in _PRECISIONS:
        raise OptionError(f'for precision="{precision}" write precision="{_PRECISIONS[precision]}"')


def check_providers(providers: object) -> None:
    """Raise `OptionError` unless these are execution providers as onnxruntime takes them."""
    entries = list(providers) if isinstance(providers, Sequence) and not isinstance(providers, str) else []
    if not entries or not all(isinstance(entry, str) or _is_provider_with_options(entry) for entry in entries):
        raise OptionError(
            f'providers must be a list of names or (name, options), as in ["CUDAExecutionProvider"]; got {providers!r}'
        )


def check_device_ids(device_ids: object) -> None:
    """Raise `OptionError` unless these are numbers of devices, or None."""
    if device_ids is None:
        return
    if not isinstance(device_ids, Sequence) or isinstance(device_ids, str | bytes) or not device_ids:
        raise OptionError(f"device_ids must be a list of the devices' numbers, or None; got {device_ids!r}")
    for device_id in device_ids:
        check_count("device_ids", device_id, minimum=0, may_be_none=False)


def check_observers(observers: object) -> None:
    """Raise `OptionError` unless these are functions."""
    is_list = isinstance(observers, Sequence) and not isinstance(observers, str | bytes)
    if not is_list or not all(map(callable, cast("Sequence[object]", observers))):
        raise OptionError(f"observers must be a list of functions that take events; got {observers!r}")


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _is_provider_with_options(entry: object) -> bool:
    return isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str) and isinstance(entry[1], Mapping)
