"""What `search` and `rerank` print: records, best first, each with its score and where it was."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asyncembed.cli.output import print_json, print_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A record (None where it is not known), what it is worth, and its position in the source, from 0."""

    index: int
    score: float
    fields: Mapping[str, Any] | None = None


def print_ranking(ranked: Sequence[Ranked], text_field: str, *, as_json: bool) -> None:
    """As a table with the texts, as much of each as a terminal is wide, or all of it as JSON."""
    if as_json:
        print_json([_as_object(one) for one in ranked])
        return
    scores = [f"{one.score:.4f}" for one in ranked]
    places = [str(one.index) for one in ranked]
    has_fields = any(one.fields is not None for one in ranked)
    header = ("SCORE", "RECORD", "TEXT") if has_fields else ("SCORE", "RECORD")
    room = shutil.get_terminal_size().columns - 2 * len("SCORE  ") - 4 if sys.stdout.isatty() else None
    texts = [_line((one.fields or {}).get(text_field, ""), room) for one in ranked]
    print_table(header, [row[: len(header)] for row in zip(scores, places, texts, strict=True)])


def _as_object(one: Ranked) -> dict[str, Any]:
    found: dict[str, Any] = {"index": one.index, "score": one.score}
    if one.fields is not None:
        found["record"] = one.fields
    return found


def _line(text: object, room: int | None) -> str:
    line = " ".join(str(text).split())
    return line if room is None or len(line) <= room else f"{line[: max(0, room - 1)]}…"
