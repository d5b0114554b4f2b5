"""Encoders for the engine's tests: workers load them by name, as they load anybody's own encoder.

What an input does is written in it, in words divided by spaces:

- `crash`: the worker kills itself; `crash-once:PATH`: only while there is no file PATH, which it makes
- `hang`: never ends; `wait:PATH`: ends when there is a file PATH; `mark:PATH`: writes the process id there
- `cut`: counts as cut at the limit
- `bad`: is refused; `raise`, `raise-input`: fails the batch, with a foreign error or with an `InputError`
- `die-answering`: the worker kills itself when half of the batch's result is on its way
- `exit`: calls `sys.exit`; `raise-NAME`: raises the built-in exception of that name; `raise-own`: a `BaseException`
  that cannot be sent anywhere; `print`: writes to stdout; `odd-count`: gives one result too few; `odd-tokens`: the
  tokens of one input too few
- `unpicklable`: has a result that cannot be pickled
- `#7`: puts 7 into the result

Every result is a vector (length of the text, process id, number after "#" or -1).
"""

import builtins
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import numpy as np

from asyncembed.catalogue.spec import ModelSpec
from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, ModelInfo
from asyncembed.errors import InputError
from tests.support.killing import kill

ECHO = ModelSpec(name="echo", family="text", encoder="tests.support.encoders:EchoEncoder", sources=(), dim=3)


class EchoEncoder:
    """Gives the length of each text; obeys the words that are orders.

    Its settings: `log`, a file that gets a line "count first-text" per batch; `load_log`, one that gets a line "pid
    device threads" per load; `refuse`, the message of the error that loading raises; `raises`,
    the name of a built-in exception that it raises; `refuse_if`, a file whose
    existence makes loading fail; `die`, `die_if`: likewise, but loading kills the worker; `only_first`, a file that the
    first loading makes, and whose existence kills the others; `hang`: loading never ends; `load_when`, a file whose
    existence lets loading go on; `width`: the length of the
    vectors, zeros after the first three.
    """

    info = ModelInfo(dim=3)

    def __init__(self, config: EncoderConfig) -> None:
        settings = {name: str(value) for name, value in config.spec.settings.items()}
        if "load_log" in settings:
            with Path(settings["load_log"]).open("a", encoding="utf-8") as file:
                file.write(f"{os.getpid()} {config.session.device_id} {config.session.threads}\n")
        if "refuse" in settings:
            raise RuntimeError(settings["refuse"])
        if "raises" in settings:
            raise cast(type[BaseException], getattr(builtins, settings["raises"]))
        if "refuse_if" in settings and Path(settings["refuse_if"]).exists():
            raise RuntimeError("told to refuse")
        if "die" in settings or ("die_if" in settings and Path(settings["die_if"]).exists()):
            kill()
        if "only_first" in settings:
            try:
                Path(settings["only_first"]).touch(exist_ok=False)
            except FileExistsError:
                kill()
        while "load_when" in settings and not Path(settings["load_when"]).exists():
            time.sleep(0.002)
        if "hang" in settings:
            time.sleep(3600)
        self._width = int(settings.get("width", 3))
        self._log = Path(settings["log"]) if "log" in settings else None

    def encode(self, inputs: Sequence[object], call: Call) -> Encoded:
        texts = [str(value) for value in inputs]
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(f"{len(texts)} {texts[0]}\n")
        failures: dict[int, InputError] = {}
        numbers = [-1] * len(texts)
        words = set()
        for position, text in enumerate(texts):
            for word in text.split():
                words.add(word)
                if word == "bad":
                    failures[position] = InputError("refused")
                elif word.startswith("#"):
                    numbers[position] = int(word[1:])
                else:
                    _obey(word)
        lengths = [len(text) for text in texts]
        results = np.array([lengths, [os.getpid()] * len(texts), numbers], np.float32).T.copy()
        longest = max(lengths, default=0)
        if self._width > 3:
            results = np.pad(results, ((0, 0), (0, self._width - 3)))
        if "unpicklable" in words:
            return Encoded([lambda: None] * len(texts))
        if "odd-count" in words:
            results = results[1:]
        return Encoded(
            cast(Sequence[object], results),
            failures,
            padded_tokens=longest * len(texts),
            counts=[-len(text) if "cut" in text.split() else len(text) for text in texts]["odd-tokens" in words :],
        )


def _obey(word: str) -> None:
    order, _, path = word.partition(":")
    match order:
        case "crash":
            kill()
        case "crash-once" if not Path(path).exists():
            Path(path).touch()
            kill()
        case "die-answering":
            Connection._send_bytes = _send_half_and_die  # type: ignore[attr-defined]
        case "hang":
            time.sleep(3600)
        case "mark":
            # In one step: whoever waits for the file reads it at once, and another worker may write it, too.
            part = Path(f"{path}.{os.getpid()}")
            part.write_text(str(os.getpid()), "utf-8")
            part.replace(path)
        case "wait":
            while not Path(path).exists():
                time.sleep(0.002)
        case "raise":
            raise RuntimeError("told to fail")
        case "raise-input":
            raise InputError("told to refuse all")
        case "exit":
            sys.exit(3)
        case "raise-own":
            raise _Unsendable(word)
        case _ if order.startswith("raise-"):
            raise cast(type[BaseException], getattr(builtins, order.removeprefix("raise-")))("told to")
        case "print":
            print("a word on stdout", flush=True)  # noqa: T201


class _Unsendable(BaseException):
    def __reduce__(self) -> str:
        raise TypeError("not over the wire")


def _send_half_and_die(connection: Connection, message: memoryview) -> None:
    os.write(connection.fileno(), len(message).to_bytes(4, "big") + bytes(message[: len(message) // 2]))
    kill()


def with_settings(**settings: str) -> ModelSpec:
    """The echo model with these settings."""
    return replace(ECHO, settings=settings)
