"""`asyncembed search`: the records nearest to a query, in what `embed` wrote."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from asyncembed.cli.model_options import model_options
from asyncembed.cli.output import json_option, say
from asyncembed.cli.ranking import Ranked, print_ranking
from asyncembed.cli.record_files import DEFAULT_COLUMN
from asyncembed.errors import OptionError

if TYPE_CHECKING:
    from asyncembed.cli.vector_index import VectorIndex
    from asyncembed.scoring import FloatArray

OF_INDEX = ("revision", "precision", "onnx_file", "max_length", "truncate_dim", "long")
"""What a vector is made with: as the index was, unless the command says otherwise."""


@click.command(short_help="Print what is nearest to a query in what `embed` wrote.")
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("query")
@click.option("-k", "--top", type=click.IntRange(min=1), default=10, show_default=True, help="So many.")
@click.option("--model", help="Of the vectors.  [default: what INDEX was made with]")
@click.option("--prompt", help='Put before the query, instead of the model\'s prompt for queries; "" for none.')
@click.option("--prompt-name", help="The model's prompt of this name, likewise.")
@click.option("--truncate-dim", type=int, help="As INDEX was made with, where that is not known.")
@click.option("--into", help="The field that has the vectors.  [default: what INDEX was made with]")
@model_options
@json_option("Positions, cosines and whole records")
def search(index: Path, query: str, top: int, into: str | None, as_json: bool, **options: Any) -> None:
    """Print the records of INDEX, a file that `embed` wrote, that are nearest to QUERY, by the cosine.

    Every vector is compared. Of a .npy file only the positions of records are known.
    """
    import anyio

    from asyncembed.cli.vector_index import open_index

    found = open_index(index, into)
    vector = anyio.run(_vector_of, query, found, options)
    positions, scores = found.nearest(vector, top)
    fields = found.fields(positions.tolist())
    ranked = [
        Ranked(index=position, score=score, fields=fields.get(position))
        for position, score in zip(positions.tolist(), scores.tolist(), strict=True)
    ]
    print_ranking(ranked, found.about.get("column", DEFAULT_COLUMN), as_json=as_json)


async def _vector_of(query: str, index: "VectorIndex", options: dict[str, Any]) -> "FloatArray":
    from asyncembed.embedders.base import fingerprint_in_thread
    from asyncembed.embedders.text import TextEmbedding

    keywords = dict(options)
    prompts = {name: value for name in ("prompt", "prompt_name") if (value := keywords.pop(name)) is not None}
    model = keywords.pop("model") or index.about.get("model")
    if model is None:
        raise OptionError(f"nothing says which model {index.path} was made with: give --model")
    for name in OF_INDEX:
        if keywords.get(name) is None and index.about.get(name) is not None:
            keywords[name] = index.about[name]
    # One query: a process for it would take longer to start than all of the rest.
    async with TextEmbedding(model, workers=0, **keywords) as embedder:
        _check_fingerprint(index, await fingerprint_in_thread(embedder), is_given=options["model"] is not None)
        vector: FloatArray = await embedder.embed_query(query, **prompts)
        return vector


def _check_fingerprint(index: "VectorIndex", fingerprint: str, *, is_given: bool) -> None:
    """See that the model is the one that the index was made with; another one that was named on purpose is told of."""
    made = index.about.get("fingerprint")
    if made in (None, fingerprint):
        return
    problem = f"{index.path} was made with a model of the fingerprint {made}, and this one has {fingerprint}"
    if not is_given:
        raise OptionError(
            f"{problem}: its files have changed, so its vectors cannot be compared. Embed the records again, or name "
            "the revision of then with --revision"
        )
    say(f"Warning: {problem}.", err=True)
