"""Ray Data: the vectors of a corpus, as Parquet files, by as many actors and machines as there are.

    uv run -m examples.ray_corpus                                             # docstrings, on this machine
    uv run -m examples.ray_corpus texts/ vectors/ --column body --cores 8     # a folder of Parquet files
    RAY_ADDRESS=auto uv run -m examples.ray_corpus s3://texts s3://vectors --actors 4    # on a cluster

An actor has a worker process per core, up to four of them. Reading and writing are tasks of Ray's own, which need cores
besides. A row without a usable text keeps its place: its vector is null, and the column `error` says why.
"""

import argparse
import os
from itertools import islice
from tempfile import TemporaryDirectory

# Ray reads it when it is imported. Under `uv run` its processes would each begin by making this environment anew.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

import ray

from asyncembed.integrations.ray import Embed
from examples.quickstart import demo_model, stdlib_docstrings


def corpus(source: str | None, column: str) -> ray.data.Dataset:
    """The rows of Parquet files, or those of a sample, in which one has no text."""
    if source is not None:
        return ray.data.read_parquet(source)
    rows = [{"name": document.name, column: document.text} for document in islice(stdlib_docstrings(), 200)]
    return ray.data.from_items([*rows, {"name": "nowhere", column: None}])


def embedded(rows: ray.data.Dataset, arguments: argparse.Namespace) -> ray.data.Dataset:
    return rows.map_batches(
        Embed,
        fn_constructor_args=(arguments.model or str(demo_model()),),
        fn_constructor_kwargs={"column": arguments.column, "on_error": "return"},
        batch_format="pyarrow",
        batch_size=128,
        num_cpus=arguments.cores,
        # Of two blocks at a time, so that no worker waits between them.
        compute=ray.data.ActorPoolStrategy(size=arguments.actors, max_concurrent_calls_per_actor=2),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="Parquet files, as Ray reads them")
    parser.add_argument("target", nargs="?", help="where the vectors go, as Parquet files")
    parser.add_argument("--column", default="text")
    parser.add_argument("--model", help="a name, or a directory that all machines have")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="of each actor")
    arguments = parser.parse_args()
    if "RAY_ADDRESS" not in os.environ:
        # One more than the actors have, for what reads and writes: it is counted and not reserved.
        ray.init(num_cpus=arguments.actors * arguments.cores + 1, include_dashboard=False, log_to_driver=False)
    with TemporaryDirectory() as folder:
        target = arguments.target or folder
        embedded(corpus(arguments.source, arguments.column), arguments).write_parquet(target)
        done = ray.data.read_parquet(target, columns=["error"])
        count, errors = done.count(), done.filter(expr=ray.data.expressions.col("error").is_not_null()).take_all()
    print(f"{count} rows, {len(errors)} of them without a vector: {[row['error'] for row in errors]}")


if __name__ == "__main__":
    main()
