"""What a run of a graph costs, in tokens of short texts: the one measure of the engine and of the workers.

Attention grows with the square of a text's length, and all else with its length. Of encoders 384, 768 and 1024 wide a
text of as many tokens as 3.6, 3.9 and 4.0 times their width cost as much for its attention as for the rest (measured up
to 4,096 tokens, on one core).

What a run costs on top of that, and how large it is worth making, is known of CPUs, and measured anywhere else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

SHORT_TOKENS = 512
"""A text of no more counts as its tokens: attention is a small part of its cost, and most models take no longer one."""

ATTENTION_WIDTHS = 4
"""By which a model's width gives the `attention_tokens` of `cost_of`."""


def cost_of(tokens: int, attention_tokens: int | None) -> int:
    """What a text of so many tokens costs, in tokens of a text of `SHORT_TOKENS`.

    `attention_tokens` are those of a text whose attention costs as much as all else; None: nothing grows with a square.
    """
    if attention_tokens is None or tokens <= SHORT_TOKENS:
        return tokens
    return tokens + tokens * (tokens - SHORT_TOKENS) // (attention_tokens + SHORT_TOKENS)


@dataclass(frozen=True, slots=True)
class RunCost:
    """What the runs of a graph cost where it was loaded.

    Attributes:
        overhead_tokens: What a run costs on top of its tokens, in tokens.
        max_tokens: From how many tokens on more in one run would gain little.
    """

    overhead_tokens: int
    max_tokens: int


def measure_runs(seconds_of: Callable[[int], float], length: int, most_tokens: int) -> RunCost:
    """Learn the cost from runs of one text of `length` tokens, of two, four, and so on up to `most_tokens`.

    `seconds_of` makes a run of so many texts and says how long it took; what it raises for one text is raised here,
    and what it raises for more ends the measurement: there is no memory for as many. The measurement also ends with a
    run that takes `LONGEST_RUN_SECONDS`, or where twice as many texts twice in a row were no faster for each.
    """
    found = [(length, seconds_of(1))]
    while found[-1][0] * 2 <= most_tokens and found[-1][1] < LONGEST_RUN_SECONDS and not _is_level(found):
        tokens = found[-1][0] * 2
        try:
            found.append((tokens, seconds_of(tokens // length)))
        except Exception:  # noqa: BLE001 (each runtime has its own for this)
            break
    return RunCost(_overhead(found), _enough(found))


LONGEST_RUN_SECONDS = 0.1
"""A query waits for the run before it: batches are not made larger than that for the sake of an ingest's speed."""

GAIN = 0.05
"""By which part more texts in a run must make each of them cheaper to be worth it."""


def _rate(run: tuple[int, float]) -> float:
    tokens, seconds = run
    return tokens / max(seconds, 1e-9)


def _is_level(found: Sequence[tuple[int, float]]) -> bool:
    return len(found) > 2 and max(_rate(run) for run in found[-2:]) < (1 + GAIN) * _rate(found[-3])


def _enough(found: Sequence[tuple[int, float]]) -> int:
    """The fewest tokens that are computed about as fast as any, of runs that are not too long."""
    short = [run for run in found if run[1] <= LONGEST_RUN_SECONDS] or [found[0]]
    best = max(map(_rate, short))
    return next(run[0] for run in short if _rate(run) * (1 + GAIN) >= best)


def _overhead(found: Sequence[tuple[int, float]]) -> int:
    """What is left of the shortest run without its tokens, by what those cost in the longest one."""
    (few, short), (many, long) = found[0], found[-1]
    if many == few:
        return 0
    per_token = (long - short) / (many - few)
    return many if per_token * many <= short else max(0, round(short / per_token) - few)
