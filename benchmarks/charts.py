"""Charts of an ingest, and of queries in the middle of one.

    uv run python -m benchmarks.charts

draws those of the two READMEs, from the figures of the newest results in `benchmarks/README.md`: run it when these have
changed. `--chart FILE` of `benchmarks.ingest` and `benchmarks.queries` draws what has just been measured.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asyncembed.cli.charts import Bar, Bars, draw

FOLDER = Path(__file__).parent
OURS = "asyncembed"
MORE, LESS = "more is better", "less is better"


@dataclass(frozen=True, slots=True)
class IngestFigures:
    """Of one side: texts a second, and the peak of all its processes in MB."""

    per_second: float
    peak_mb: float


@dataclass(frozen=True, slots=True)
class QueryFigures:
    """Of one side: milliseconds of a query in an ingest, and what that ingest does meanwhile."""

    p50_ms: float
    p99_ms: float
    ingest_per_second: float


def ingest_chart(sides: Mapping[str, IngestFigures], note: str) -> str:
    """Speed and memory of each side."""
    return draw("An ingest of texts of mixed length", [_speeds(sides), _peaks(sides)], note=note)


def queries_chart(sides: Mapping[str, QueryFigures], note: str) -> str:
    """Latency of queries, and the speed of the ingest that they are in the middle of."""
    return draw("20 queries a second in the middle of an ingest", [_latencies(sides), _rates(sides)], note=note)


def overview_chart(ingest: Mapping[str, IngestFigures], queries: Mapping[str, QueryFigures], note: str) -> str:
    """The gist of both, for the first screen of the README: fewer sides, and no memory."""
    theirs = {side: figures for side, figures in ingest.items() if not side.startswith(OURS)}
    best = max(theirs, key=lambda side: theirs[side].per_second)
    few = [side for side in ingest if side.startswith(OURS) or side == best or side.endswith("default")]
    return draw(
        "Ingest, and queries in the middle of it",
        [_speeds({side: ingest[side] for side in few}), _latencies(queries), _rates(queries)],
        note=note,
    )


def _speeds(sides: Mapping[str, IngestFigures]) -> Bars:
    bars = [Bar(side, figures.per_second, colour=_colour(side)) for side, figures in sides.items()]
    return Bars(f"Ingest alone ({MORE})", "texts/s", bars)


def _peaks(sides: Mapping[str, IngestFigures]) -> Bars:
    bars = [Bar(side, figures.peak_mb, colour=_colour(side)) for side, figures in sides.items()]
    return Bars(f"Peak memory of all processes ({LESS})", "MB", bars)


def _latencies(sides: Mapping[str, QueryFigures]) -> Bars:
    bars = [Bar(side, figures.p50_ms, figures.p99_ms, _colour(side)) for side, figures in sides.items()]
    return Bars(f"A query in the middle of an ingest, median and 99th percentile ({LESS})", "ms", bars)


def _rates(sides: Mapping[str, QueryFigures]) -> Bars:
    bars = [Bar(side, figures.ingest_per_second, colour=_colour(side)) for side, figures in sides.items()]
    return Bars(f"The ingest meanwhile ({MORE})", "texts/s", bars)


def _colour(side: str) -> int:
    return 0 if side.startswith(OURS) else 1


# ---------------------------------------------------------------- the figures of the README


def of_readme(text: str) -> dict[str, str]:
    """The charts that belong to the figures of a `benchmarks/README.md`, by the names of their files."""
    place, newest = next(_sections(text))
    note = f"{place}. all-MiniLM-L6-v2 in fp32; all figures, and how they came about, are in benchmarks/README.md."
    ingest, queries = _ingest(newest), _queries(newest)
    return {
        "ingest.svg": ingest_chart(ingest, note),
        "queries.svg": queries_chart(queries, note),
        "overview.svg": overview_chart(ingest, queries, note),
    }


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """Headings and contents of the results that have a table of an ingest, the newest first."""
    results = text.partition("\n## Results\n")[2]
    for section in results.split("\n### ")[1:]:
        heading, _, content = section.partition("\n")
        if "| side | seconds |" in content:
            yield heading, content


def _ingest(section: str) -> dict[str, IngestFigures]:
    before, _, rows = section.partition("| side | seconds |")
    count = _numbers(re.findall(r"([\d,]+) docstrings", before)[-1])[0]
    found = {}
    for side, seconds, *_, peak, _ in _rows(rows):
        found[_plain(side)] = IngestFigures(count / _numbers(seconds)[0], _numbers(peak)[0])
    return found


def _queries(section: str) -> dict[str, QueryFigures]:
    header, _, rows = section.partition("\n| | asyncembed |")[2].partition("\n")
    sides = [OURS, *(_plain(cell) for cell in header.strip("| ").split("|"))]
    table = {title: cells for title, *cells in _rows(f"\n{rows}")}
    latencies = table["query in an ingest, p50 and p99, ms"]
    rates = table["ingest with 20 queries a second, texts/s"]
    found = {}
    for side, latency, rate in zip(sides, latencies, rates, strict=True):
        name = f"{OURS}, {side.removeprefix('with ')}" if side.startswith("with ") else side
        p50, p99 = _numbers(latency)[:2]
        found[name] = QueryFigures(p50, p99, _numbers(rate)[0])
    return found


def _rows(table: str) -> Iterator[Sequence[str]]:
    """The cells of each row behind a table's header, until the table ends."""
    for line in table.split("\n")[1:]:
        if not line.startswith("|"):
            return
        if not line.startswith("|---"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def _numbers(cell: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", cell)]


def _plain(cell: str) -> str:
    return cell.strip().replace("`", "")


def main() -> None:
    for name, svg in of_readme((FOLDER / "README.md").read_text(encoding="utf-8")).items():
        (FOLDER / name).write_text(svg, encoding="utf-8")
        print(FOLDER / name)


if __name__ == "__main__":
    main()
