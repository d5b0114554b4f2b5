"""`asyncembed bench`: how fast a model is on this machine, as a table to paste and a chart."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, get_args

import click

from asyncembed.catalogue.spec import Family
from asyncembed.cli.model_options import model_names, model_options, worker_options
from asyncembed.cli.output import json_option, print_json, say, size_in_words

if TYPE_CHECKING:
    from asyncembed.cli.measuring import Ingest, Measured


@click.command(short_help="Measure a model on this machine.")
@click.argument("model", shell_complete=model_names)
@click.option("--family", type=click.Choice(get_args(Family)), help="What it is, where its name does not say so.")
@click.option("--texts", type=click.Path(path_type=Path), help="A file of your own texts, one on each line.")
@click.option(
    "--seconds", type=click.FloatRange(min=0.1), default=10.0, show_default=True, help="Of each of two ingests."
)
@click.option("--interactive-workers", type=int, help="Workers kept free for queries. By default 1, when of use.")
@click.option(
    "--chart", type=click.Path(path_type=Path, dir_okay=False), help="Draw what was measured, as an SVG file."
)
@worker_options
@model_options
@json_option("All figures")
def bench(
    model: str,
    family: Family | None,
    texts: Path | None,
    seconds: float,
    chart: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure a model on this machine: ingest, padding, latency alone and in an ingest, memory.

    What it prints is a table for a bug report. The texts are made up, and the same on every machine. How fast the
    machine itself is changes while others use it, too: run it twice, and believe what both say.
    """
    import anyio

    from asyncembed.cli.measuring import measure

    if chart is not None and not chart.parent.is_dir():
        raise click.UsageError(f"--chart: there is no directory {chart.parent}")
    embedder, pool = _made(model, family, options)
    exact = _made(model, family, {**options, "precision": "fp32"}) if options["precision"] in ("int8", "q8") else None
    own = _lines(texts) if texts is not None else ()
    if not as_json:
        say(f"Measuring {model}, for about {2 * seconds + 5:.0f} s ...", err=True)
    measured = anyio.run(measure, embedder, pool, seconds, own, exact)
    if as_json:
        print_json(asdict(measured))
    else:
        say(table(measured))
    if chart is not None:
        chart.write_text(draw_measured(measured), encoding="utf-8")


_OF_POOL = ("workers", "threads", "interactive_workers")


def _made(model: str, family: Family | None, options: dict[str, Any]) -> Any:
    """The embedder, and the pool that it is in."""
    import asyncembed
    from asyncembed.catalogue.lookup import CLASSES, families_of

    of_model = {name: value for name, value in options.items() if name not in _OF_POOL}
    pool = asyncembed.WorkerPool(**{name: options[name] for name in _OF_POOL})
    chosen: Family = family if family is not None else next(iter(families_of(model)), "text")
    return getattr(asyncembed, CLASSES[chosen])(model, pool=pool, **of_model), pool


def _lines(path: Path) -> list[str]:
    from asyncembed.errors import InputError
    from asyncembed.readers import text_lines

    found = [line for line in text_lines(path) if not isinstance(line, InputError) and line.strip()]
    if not found:
        raise click.UsageError(f"{path} has no line of text")
    return found


def table(measured: "Measured") -> str:
    """Markdown, as bug reports take it."""
    from asyncembed.cli.measuring import QUERIES_PER_SECOND, percentile

    def latency(values: Sequence[float]) -> str:
        return f"{percentile(values, 50) * 1e3:.1f} and {percentile(values, 99) * 1e3:.1f}"

    alone, shared = measured.alone, measured.with_queries
    rows = [
        ("opened in, s", f"{measured.open_seconds:.1f}"),
        (f"ingest, {measured.unit}/s", f"{alone.per_second:.1f}"),
        ("of it, tokens/s", _tokens(alone)),
        ("padding of the computed tokens", f"{alone.padding_share:.1%}"),
        ("median batch, ms", f"{measured.batch_seconds * 1e3:.1f}"),
        (f"{measured.query} alone, p50 and p99, ms", latency(measured.latency_alone)),
        (f"{measured.query} in an ingest, p50 and p99, ms", latency(measured.latency_in_ingest)),
        (f"ingest with {QUERIES_PER_SECOND} of them a second, {measured.unit}/s", f"{shared.per_second:.1f}"),
        ("memory of all processes", "-" if measured.memory_bytes is None else size_in_words(measured.memory_bytes)),
    ]
    if (accuracy := measured.accuracy) is not None:
        cosines = f"{accuracy.cosine_mean:.4f} and {accuracy.cosine_min:.4f}"
        rows += [
            (f"cosine to fp32 of {accuracy.texts} texts, mean and least", cosines),
            ("ten nearest texts as in fp32", f"{accuracy.nearest_shared:.1%}"),
        ]
    lines = [f"| {what} | {figure} |" for what, figure in rows]
    head = f"| {_short(measured.model)} | measured |\n|---|---|\n"
    return f"{head}{chr(10).join(lines)}\n\n{measured.description}; {measured.machine}"


def _tokens(ingest: "Ingest") -> str:
    if not ingest.tokens_per_second:
        return "-"
    return f"{ingest.tokens_per_second:,.0f} (about {ingest.tokens_per_second / ingest.per_second:.0f} each)"


def _short(model: str) -> str:
    """A name as it is, and of a directory its last part: the rest of it is nobody's business."""
    path = PurePath(model)
    return path.name if path.is_absolute() else model


def draw_measured(measured: "Measured") -> str:
    """The same as an SVG file: the course of both ingests, and how many calls were answered by when."""
    from asyncembed.cli.charts import Lines, draw
    from asyncembed.cli.measuring import QUERIES_PER_SECOND

    def answered(values: Sequence[float]) -> list[tuple[float, float]]:
        ordered = sorted(values)
        shares = [(value * 1e3, 100 * (place + 1) / len(ordered)) for place, value in enumerate(ordered)]
        return [(shares[0][0], 0.0), *shares] if shares else []

    queries = f"with {QUERIES_PER_SECOND} queries a second"
    courses = {"alone": measured.alone.course, queries: measured.with_queries.course}
    latencies = {"alone": answered(measured.latency_alone), "in an ingest": answered(measured.latency_in_ingest)}
    return draw(
        f"asyncembed bench {_short(measured.model)}",
        [
            Lines("Ingest", "seconds", f"{measured.unit} a second", courses),
            Lines(f"Latency of {measured.query}", "milliseconds", "% answered within", latencies),
        ],
        note=f"{measured.description}; {measured.machine}",
    )
