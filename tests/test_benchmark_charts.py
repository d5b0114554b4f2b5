"""The charts in the READMEs show the figures that stand in them."""

from pathlib import Path

import pytest

from benchmarks.charts import (
    FOLDER,
    IngestFigures,
    QueryFigures,
    _ingest,
    _queries,
    of_readme,
    overview_chart,
)

README = """
## Results

### A new machine

Some words on it.

`uv run python -m benchmarks.ingest --rounds 1`, 2,000 docstrings (padding 2.5 %):

| side | seconds | time / ours | peak MB | peak / ours |
|---|---|---|---|---|
| asyncembed, default | 20.0 (18.1 to 22.0) | 1.0 | 362 | 1.0 |
| fastembed, `batch_size=8` | 80.0 | 4.0 | 1,738 | 4.8 |

`uv run python -m benchmarks.queries`, medians:

| | asyncembed | with `interactive_workers=1` | fastembed in `to_thread` |
|---|---|---|---|
| a query alone, ms | 7.9 | 8.3 | 4.8 |
| ingest with 20 queries a second, texts/s | 43.2 | 41.7 | 6.1 |
| query in an ingest, p50 and p99, ms | 69 and 246 (median batch: 164) | 17 and 24 | 14 and 21 |

### An older machine
"""


def test_figures_are_read_as_people_read_them() -> None:
    assert _ingest(README) == {
        "asyncembed, default": IngestFigures(100.0, 362.0),
        "fastembed, batch_size=8": IngestFigures(25.0, 1738.0),
    }
    assert _queries(README) == {
        "asyncembed": QueryFigures(69, 246, 43.2),
        "asyncembed, interactive_workers=1": QueryFigures(17, 24, 41.7),
        "fastembed in to_thread": QueryFigures(14, 21, 6.1),
    }


def test_charts_say_where_their_figures_come_from() -> None:
    for svg in of_readme(README).values():
        assert "A new machine. " in svg


def test_the_overview_keeps_what_fastembed_does_best() -> None:
    sides = {"asyncembed, default": IngestFigures(100, 1)}
    sides |= {f"fastembed, {name}": IngestFigures(rate, 1) for name, rate in (("default", 1), ("8", 50), ("32", 20))}
    svg = overview_chart(sides, _queries(README), "")
    assert "fastembed, 8" in svg
    assert "fastembed, 32" not in svg


@pytest.mark.parametrize("name", ["ingest.svg", "queries.svg", "overview.svg"])
def test_the_charts_are_those_of_the_figures(name: str) -> None:
    drawn = of_readme((FOLDER / "README.md").read_text(encoding="utf-8"))[name]
    assert (FOLDER / name).read_text(encoding="utf-8") == drawn, "run `uv run python -m benchmarks.charts`"


def test_both_readmes_show_them() -> None:
    assert "(benchmarks/overview.svg)" in Path(FOLDER.parent, "README.md").read_text(encoding="utf-8")
    shown = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "(ingest.svg)" in shown
    assert "(queries.svg)" in shown
