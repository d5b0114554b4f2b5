"""`asyncembed embed`: the records of a file with their vectors, into another file."""

from collections.abc import Mapping
from time import perf_counter
from typing import Any

import click

from asyncembed.cli.model_options import cache_option, model_names, model_options, worker_options
from asyncembed.cli.output import json_option, print_json, say
from asyncembed.cli.record_files import open_records, source_options


@click.command(short_help="Embed the texts of a file, into another file.")
@click.argument("model", shell_complete=model_names)
@source_options
@click.option(
    "-o", "--output", default="-", metavar="OUT", help="A .jsonl, .parquet or .npy file. Else JSONL on stdout."
)
@click.option("--resume", is_flag=True, help="Go on with what an interrupted run has left, if one has.")
@click.option("--restart", is_flag=True, help="Throw away what an interrupted run has left.")
@click.option(
    "--on-error",
    default="raise",
    show_default=True,
    metavar="raise|skip|FILE",
    help="What a record brings about that has no vector: the end, nothing, or a line of a JSONL file.",
)
@click.option("--sparse", is_flag=True, help="Sparse vectors, of a model for these.")
@click.option(
    "--role",
    type=click.Choice(("passage", "query", "plain")),
    default="passage",
    show_default=True,
    help="What the texts are, for models with a prompt or task for it.",
)
@click.option("--prompt", help='Put before each text, instead of the prompt of the role; "" for none.')
@click.option("--prompt-name", help="The model's prompt of this name, likewise.")
@click.option("--truncate-dim", type=int, help="Keep only this many components of a vector (Matryoshka).")
@click.option(
    "--long",
    type=click.Choice(("truncate", "error", "mean")),
    default="truncate",
    show_default=True,
    help="Of a text over the length limit: its beginning, a failed record, or the mean of its windows.",
)
@click.option("--into", default="embedding", show_default=True, help="The field that gets the vector.")
@model_options
@cache_option
@worker_options
@click.option("--quiet", is_flag=True, help="Show no progress, and no last word.")
@json_option("How much was written, and in which time")
def embed(quiet: bool, as_json: bool, **options: Any) -> None:
    """Embed the texts of FILE (or of stdin) with MODEL, and write each record with its vector.

    FILE has a text on each line, or is JSONL, CSV, TSV or Parquet, as its name ends (or --format says), of which
    --column is embedded and all others are kept. A .npy file has the vectors alone, a row for each record.

    Until it is whole, the result is in the folder OUT.partial. After an interruption, or a kill at any moment, --resume
    goes on with it, and each record is in the result once. A failed record, in a FILE of these, is a line with its
    fields, and "failure": where it was and why.
    """
    began = perf_counter()
    report = {**_embed(options, shows_progress=not quiet), "seconds": round(perf_counter() - began, 3)}
    if as_json and options["output"] != "-":
        print_json(report)
    elif not quiet:
        say(_in_words(report), err=True)


def _embed(options: Mapping[str, Any], *, shows_progress: bool) -> dict[str, Any]:
    import anyio

    from asyncembed.cli.embedding_run import EmbeddingRun, open_target
    from asyncembed.cli.vector_files import open_vectors

    source = open_records(options["file"], options["kind"], options["column"], options["delimiter"])
    vectors = open_vectors(options["output"], source, options["into"], is_sparse=options["sparse"])
    run = EmbeddingRun(options, source, vectors, shows_progress=shows_progress)
    with open_target(options, source, run.origin) as target:
        before = target.mark.read
        if not target.mark.is_whole:
            anyio.run(run.into, target)
        target.finish(vectors)
        mark = target.mark
    return {
        "output": options["output"],
        "read": mark.read,
        "written": mark.written,
        "failed": mark.read - mark.written,
        "cut": run.cut,
        "resumed_after": before,
    }


def _in_words(report: Mapping[str, Any]) -> str:
    fresh = report["read"] - report["resumed_after"]
    words = [f"{report['written']} record{'' if report['written'] == 1 else 's'}"]
    if report["failed"]:
        words.append(f"{report['failed']} failed")
    if report["cut"]:
        words.append(f"{report['cut']} longer than the model's limit of tokens, and cut there")
    if report["resumed_after"]:
        words.append(f"{report['resumed_after']} read by earlier runs")
    words.append(f"{report['seconds']:.1f} s" + (f" ({fresh / report['seconds']:.0f}/s)" if fresh else ""))
    output = "stdout" if report["output"] == "-" else report["output"]
    return f"{output}: {', '.join(words)}"
