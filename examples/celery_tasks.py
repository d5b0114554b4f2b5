"""Celery: tasks that embed, in whatever pool their worker has.

    uv run -m examples.celery_tasks                                  # a worker and its client in one program
    uv run -m examples.celery_tasks --pool threads
    BROKER_URL=redis://localhost RESULT_BACKEND=redis://localhost uv run celery -A examples.celery_tasks worker

The model is made where the module is imported, before the worker forks, and opened by the first task of each process.
Processes of the prefork pool may have no children: there it computes in a thread of theirs (`workers=0` by itself),
with a copy of the model in each, and with a share of the cores. With `--pool threads` all tasks share one set of
workers, and are computed together.
"""

import argparse
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from celery import Celery
from celery.contrib.testing.worker import start_worker

from asyncembed.integrations.celery import EmbeddingTask
from asyncembed.sync import TextEmbedding
from examples.quickstart import QUERIES, demo_model

app = Celery(
    "examples.celery_tasks",
    broker=os.environ.get("BROKER_URL", "memory://"),
    backend=os.environ.get("RESULT_BACKEND", "cache+memory://"),
)

# After ten minutes without a task the model goes, until the next one.
model = TextEmbedding(os.environ.get("MODEL") or demo_model(), keep_alive=600)


@app.task(base=EmbeddingTask, bind=True, model=model)
def embed(self: EmbeddingTask, texts: list[str]) -> Any:
    """A vector for each text, as a list. Give a task many texts: what it costs to bring them there is paid once."""
    return self.model.embed_documents(texts)


@app.task
def whereabouts() -> tuple[int, str]:
    """The process that this ran in, and the state of its model."""
    return os.getpid(), repr(model.open())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", choices=["prefork", "threads", "solo"], default="prefork")
    arguments = parser.parse_args()
    # Results go from process to process by files, tasks do not need to: a worker hands them out itself.
    with TemporaryDirectory() as folder:
        app.conf.result_backend = Path(folder).as_uri()
        with start_worker(app, pool=arguments.pool, concurrency=2, perform_ping_check=False):
            answers = [embed.delay([query]) for query in QUERIES]
            for query, answer in zip(QUERIES, answers, strict=True):
                (vector,) = answer.get(timeout=60)
                print(f"{len(vector)} numbers for: {query}")
            process, engine = whereabouts.delay().get(timeout=60)
    print(f"one of the models, in {'this process' if process == os.getpid() else 'a process of the pool'}: {engine}")


if __name__ == "__main__":
    main()
