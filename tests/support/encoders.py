"""Encoders for the engine's tests: workers load them by name, as they load anybody's own encoder.

What an input does is written in it: "crash" kills the worker, "hang" never ends, "bad" is refused, "raise" fails the
batch. Everything else gives a vector (length of the text, process id).
"""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from asyncembed.catalogue.spec import ModelSpec
from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig
from asyncembed.errors import InputError

ECHO = ModelSpec(name="echo", family="text", encoder="tests.support.encoders:EchoEncoder", sources=(), dim=2)


class EchoEncoder:
    """Gives the length of each text; obeys the texts that are orders."""

    facts: ClassVar = {"dim": 2}

    def __init__(self, config: EncoderConfig) -> None:
        settings = config.spec.settings
        if "refuse" in settings:
            raise RuntimeError(str(settings["refuse"]))
        if "die" in settings:
            os.kill(os.getpid(), signal.SIGKILL)
        self._log = Path(str(settings["log"])) if "log" in settings else None
        self._seconds_per_batch = float(str(settings.get("seconds_per_batch", 0)))

    def encode(self, inputs: Sequence[object], call: Call) -> Encoded:
        texts = [str(value) for value in inputs]
        if self._log is not None:
            with self._log.open("a") as file:
                file.write(f"{len(texts)} {texts[0]}\n")
        failures = {i: InputError("refused") for i, text in enumerate(texts) if text == "bad"}
        for text in texts:
            match text.split(":"):
                case ["crash"]:
                    os.kill(os.getpid(), signal.SIGKILL)
                case ["crash-once", path] if not Path(path).exists():
                    Path(path).touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                case ["hang"]:
                    time.sleep(3600)
                case ["raise"]:
                    raise RuntimeError("told to fail")
        if self._seconds_per_batch:
            time.sleep(self._seconds_per_batch)
        lengths = np.array([[len(text), os.getpid()] for text in texts], np.float32).reshape(len(texts), 2)
        total = sum(map(len, texts))
        return Encoded(lengths, failures, tokens=total, padded_tokens=max(map(len, texts), default=0) * len(texts))
