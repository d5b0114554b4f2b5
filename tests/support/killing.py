"""Ending a process at once, whatever it does."""

import os
import signal

KILL: int = getattr(signal, "SIGKILL", signal.SIGTERM)
"""On Windows every signal is one that a process cannot answer."""


def kill(pid: int | None = None) -> None:
    """End a process; without a `pid` this one."""
    os.kill(os.getpid() if pid is None else pid, KILL)
