"""How far a stream is: the numbers, and the bar that shows them; and tqdm's bar as this package makes it."""

import sys
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from functools import cache
from math import inf
from pathlib import PurePath
from queue import Empty, SimpleQueue
from threading import RLock, Thread
from time import perf_counter
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

REFRESH_SECONDS = 0.2
"""Between two looks at the numbers."""

LINE_SECONDS = 30.0
"""Between two lines where the output is no terminal: a file keeps all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamProgress:
    """How far a stream is: a snapshot.

    Attributes:
        read: Records read from the source.
        done: Results taken, by your loop or for a batch of it.
        failed: Records that got an error instead of a result, whatever `on_error=` made of it.
        tokens: Computed for the results so far, taken or not, padding left out; 0 with images.
        seconds: Since the first result was asked for; until the end, when it has come.
        total: Records that the source has, as `total=` says, or a collection in memory; with `progress=True` also what
            another source says of its length. None: not known.
    """

    read: int
    done: int
    failed: int
    tokens: int
    seconds: float
    total: int | None

    @property
    def items_per_second(self) -> float:
        """Records that are through, failed ones included, in a second."""
        return (self.done + self.failed) / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens computed in a second."""
        return self.tokens / self.seconds if self.seconds else 0.0


class StreamBar:
    """Shows how far a stream is, on stderr: a bar in a terminal or a notebook, now and then a line elsewhere.

    A thread of its own reads the numbers and draws, so that the stream takes no notice of it, and that a terminal which
    is slow, or halted by its user (Ctrl-S), halts nobody. It ends by itself, within `REFRESH_SECONDS` also if nobody
    says so any more.
    """

    def __init__(self, name: str, numbers: Callable[[], StreamProgress], on_end: Callable[[], None]) -> None:
        """`numbers` may be called in any thread; `on_end` is called in the bar's when nothing more is drawn."""
        self._name = PurePath(name).name or name
        self._numbers = numbers
        self._on_end = on_end
        # Unlike an event's, its lock may be asked for while it is held: by a collector that ends a stream.
        self._end: SimpleQueue[None] = SimpleQueue()

    def start(self) -> None:
        """Begin to draw. Output of a notebook belongs to the cell that runs now."""
        try:
            Thread(target=copy_context().run, args=(self._work,), name="asyncembed-progress", daemon=True).start()
        except RuntimeError:  # there can be no more threads: then there is no bar
            self._on_end()

    def end(self) -> None:
        """Have it drawn once more, as it is then, and no more; from any thread, also while garbage is collected."""
        self._end.put(None)

    def _work(self) -> None:
        try:
            self._draw()
        except Exception:  # noqa: BLE001, S110 (where nothing can be written nobody can be told)
            pass
        finally:
            self._on_end()

    def _draw(self) -> None:
        numbers = self._numbers()
        show, close = _opened(sys.stderr, self._name, numbers.total)
        while not self._has_ended():
            show(self._numbers())
        close(self._numbers())

    def _has_ended(self) -> bool:
        try:
            self._end.get(timeout=REFRESH_SECONDS)
        except Empty:
            return False
        return True


_Show = Callable[[StreamProgress], None]


def _opened(output: TextIO | None, name: str, total: int | None) -> tuple[_Show, _Show]:
    """What shows numbers, and what shows the last ones."""
    if output is None or output.closed:
        return _ignore, _ignore
    notebook = _notebook_bar()
    is_drawn = notebook is not None or output.isatty() or _is_in_kernel()
    bar = (notebook or bar_class())(
        total=total,
        desc=name,
        unit=" inputs",
        file=output,
        dynamic_ncols=is_drawn and notebook is None,
        # Without a terminal only its words are wanted.
        ncols=None if is_drawn else 0,
        delay=0 if is_drawn else inf,
    )
    if bar.disable:  # by tqdm's own variable, TQDM_DISABLE
        return _ignore, _ignore
    if not is_drawn:
        return _lines(bar, output)
    return _redraw(bar), _last_drawing(bar) if notebook is not None else _last_line(bar, output)


def _ignore(numbers: StreamProgress) -> None:
    """Show nothing."""


def _set(bar: "tqdm[Any]", numbers: StreamProgress) -> None:
    # It is read while it changes, and must not go back.
    bar.n = max(bar.n, numbers.done + numbers.failed)
    if numbers.failed:
        bar.set_postfix_str(f"{numbers.failed} failed", refresh=False)


def _redraw(bar: "tqdm[Any]") -> _Show:
    def show(numbers: StreamProgress) -> None:
        _set(bar, numbers)
        bar.refresh()

    return show


def _last_drawing(bar: "tqdm[Any]") -> _Show:
    def close(numbers: StreamProgress) -> None:
        _set(bar, numbers)
        bar.refresh()
        bar.close()

    return close


def _last_line(bar: "tqdm[Any]", output: TextIO) -> _Show:
    def close(numbers: StreamProgress) -> None:
        _set(bar, numbers)
        line = str(bar)
        # Written above the bars that go on. Left there by tqdm itself, it would move them on, off the lines that they
        # have drawn.
        bar.leave = False
        bar.close()
        bar.write(line, output)

    return close


def _lines(bar: "tqdm[Any]", output: TextIO) -> tuple[_Show, _Show]:
    next_line = perf_counter() + LINE_SECONDS

    def write(numbers: StreamProgress) -> None:
        _set(bar, numbers)
        output.write(f"{bar}\n")
        output.flush()

    def show(numbers: StreamProgress) -> None:
        nonlocal next_line
        if perf_counter() >= next_line:
            next_line = perf_counter() + LINE_SECONDS
            write(numbers)

    def close(numbers: StreamProgress) -> None:
        write(numbers)
        bar.close()

    return show, close


# ---------------------------------------------------------------- tqdm


@cache
def bar_class() -> "type[tqdm[Any]]":
    """Tqdm's bar for terminals, which leaves nothing behind."""
    from tqdm import tqdm

    return _alone(tqdm)


@cache
def _notebook_bar() -> "type[tqdm[Any]] | None":
    """Tqdm's bar for notebooks, where this is one that can show it."""
    if not _is_in_kernel():
        return None
    from tqdm import notebook

    can_show = getattr(notebook, "IProgress", None) is not None  # from ipywidgets, if it is installed
    return _alone(notebook.tqdm) if can_show else None


def _is_in_kernel() -> bool:
    """Whether the program is a Jupyter kernel, whose output is no terminal and yet is seen at once."""
    kernel = sys.modules.get("ipykernel.zmqshell")
    return kernel is not None and kernel.ZMQInteractiveShell.initialized()


def _alone(kind: "type[tqdm[Any]]") -> "type[tqdm[Any]]":
    class Bar(kind):  # type: ignore[misc, valid-type]
        # tqdm's own lock fixes the start method of multiprocessing for the whole program, and its monitor is a thread
        # that outlives the bar; neither is needed here, so neither is made.
        monitor_interval = 0

    Bar.set_lock(RLock())
    return Bar
