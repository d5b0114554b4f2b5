"""Programs that were packed into one executable: their workers are that executable, started again.

multiprocessing marks such a start by arguments, and expects the program to call `freeze_support` before all else. One
that does not would run again as a whole in each worker, open its embedders there, and so on for ever. So the package
does it for the program, at its import: before that, nothing can have been opened.
"""

import sys
from multiprocessing import process, spawn


def become_child() -> None:
    """If this process was started to be a worker, be one, and end with it; else return."""
    if getattr(process.current_process(), "_inheriting", False):
        return  # it is one already, and imports this package for its work
    spawn.freeze_support()  # multiprocessing's own name for it does nothing but on Windows
    if len(sys.argv) > 2 and sys.argv[-2] == "-c" and sys.argv[-1].startswith("from multiprocessing.resource_tracker "):
        exec(sys.argv[-1], {})  # noqa: S102 (multiprocessing's own helper, started as it starts it)
        sys.exit()
