"""`asyncembed rerank`: the records of a file, best first, as a reranker sees it."""

from collections.abc import Iterator
from heapq import nlargest
from typing import TYPE_CHECKING, Any

import click

from asyncembed.cli.model_options import model_names, model_options, worker_options
from asyncembed.cli.output import json_option
from asyncembed.cli.ranking import Ranked, print_ranking
from asyncembed.cli.record_files import RecordFile, open_records, source_options

if TYPE_CHECKING:
    from asyncembed.embedders.cross_encoder import TextCrossEncoder

ACTIVATIONS = ("none", "sigmoid", "auto")


@click.command(short_help="Print the texts of a file, best first for a query.")
@click.argument("model", shell_complete=model_names)
@click.argument("query")
@source_options
@click.option("-k", "--top", type=click.IntRange(min=1), help="Only so many.  [default: all]")
@click.option("--activation", type=click.Choice(ACTIVATIONS), default="none", show_default=True, help="Of the scores.")
@click.option("--instruction", help="What a model that is a language model is to look for.  [default: the model's]")
@click.option("--on-error", type=click.Choice(("raise", "skip")), default="raise", show_default=True)
@model_options
@worker_options
@json_option("Positions, scores and whole records")
def rerank(
    model: str,
    query: str,
    file: str,
    kind: str | None,
    column: str | None,
    delimiter: str | None,
    top: int | None,
    activation: Any,
    instruction: str | None,
    on_error: Any,
    as_json: bool,
    **options: Any,
) -> None:
    """Score the texts of FILE (or of stdin) against QUERY with MODEL, a reranker, and print them, best first.

    FILE has a text on each line, or is JSONL, CSV, TSV or Parquet, as its name ends (or --format says).
    """
    import anyio

    from asyncembed.embedders.cross_encoder import TextCrossEncoder

    source = open_records(file, kind, column, delimiter)
    reranker = TextCrossEncoder(model, activation=activation, **options)
    ranked = anyio.run(_rank, reranker, query, source, top, instruction, on_error)
    print_ranking(ranked, source.column, as_json=as_json)


async def _rank(
    reranker: "TextCrossEncoder",
    query: str,
    source: RecordFile,
    top: int | None,
    instruction: str | None,
    on_error: Any,
) -> list[Ranked]:
    async with reranker as model:
        stream = model.rerank(
            query,
            _numbered(source),
            key=lambda numbered: source.text_of(numbered[1]),
            instruction=instruction,
            on_error=on_error,
        ).with_inputs()
        best: list[tuple[float, int, Any]] = []
        async with stream:
            while some := await stream.take_some():
                best += [(score, -index, record) for (index, record), score in some]
                if top is not None and len(best) > 2 * top + len(some):
                    best = nlargest(top, best, key=lambda one: one[:2])
    best.sort(key=lambda one: one[:2], reverse=True)
    chosen = best[:top]
    fields = source.fields([record for _, _, record in chosen]) if chosen else []
    return [
        Ranked(index=-index, score=score, fields=field) for (score, index, _), field in zip(chosen, fields, strict=True)
    ]


def _numbered(source: RecordFile) -> Iterator[Any]:
    """Records with their positions; an error in the place of one stays what it is."""
    for index, record in enumerate(source.records()):
        yield record if isinstance(record, Exception) else (index, record)
