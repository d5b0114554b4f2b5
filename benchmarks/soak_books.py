"""What the parts of the soak share: the texts, what they must become, what was answered, and what a process holds."""

import gc
import json
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import anyio
import numpy as np
import psutil
from anyio import create_task_group, current_time, fail_after

from asyncembed import TextEmbedding
from asyncembed.errors import WorkerCrashed
from tests.support.models import write_self_describing_model
from tests.support.tokenizers import WORDS
from tests.support.waiting import open_files, threads, worker_processes

TEXTS = 400
LONGEST_WORDS = 120

NEARLY = 1e-4
"""Of the largest number in a vector: the engine promises less, and another text's vector is far from it."""

HANGS_SECONDS = 120.0
"""No turn of anybody takes a tenth of it, on a machine that is ten times as busy as it should be."""

REST_SECONDS = 60.0
"""How long a process may take until it does nothing, once nobody asks anything of it."""

MODELS = ("steady", "mortal", "idle")
"""One whose workers live as long as the program, one whose workers are killed, one that comes and goes."""

Turn: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


class Books:
    """What each text must become; what was asked and answered so far, and what went wrong."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = Random(seed)
        self.texts: list[str] = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
        self._expected = dict(np.load(folder / "expected.npz"))
        self.counts: Counter[str] = Counter()
        self.problems: Counter[str] = Counter()

    def pick(self, most: int, fewest: int = 1) -> list[int]:
        """Some texts, by their numbers."""
        return self.random.choices(range(len(self.texts)), k=self.random.randint(fewest, most))

    def check(self, what: str, model: str, numbers: Sequence[int], vectors: Any) -> None:
        """Note answers, and whether they are as many as was asked for, and right."""
        self.counts[what] += len(vectors)
        if len(vectors) != len(numbers):
            self.note(f"{what}: {len(vectors)} answers for {len(numbers)} texts")
        elif len(vectors):
            expected = self._expected[model][list(numbers)]
            if np.abs(np.asarray(vectors) - expected).max() > NEARLY * np.abs(expected).max():
                self.note(f"{what}: wrong vectors of {model}")

    def expect(self, what: str, found: object, expected: object) -> None:
        """Note whether something is as it must be."""
        if found != expected:
            self.note(f"{what}: {str(found)[:200]} instead of {str(expected)[:200]}")

    def note(self, problem: str) -> None:
        """Something is wrong."""
        self.problems[problem] += 1

    async def repeat(self, turn: Turn, ends: float) -> None:
        """Somebody's turn, again and again until then; whatever goes wrong in it is noted."""
        while current_time() < ends:
            try:
                with fail_after(HANGS_SECONDS):
                    await turn()
            except TimeoutError:
                self.note(f"{turn.__name__} hangs")
            except WorkerCrashed:  # by chance, each of its workers was killed; that this input did it is a right guess
                self.counts["killed each time it was computed"] += 1
            except Exception:  # noqa: BLE001 (whatever it is)
                self.note(f"{turn.__name__} fails\n{traceback.format_exc()}")

    async def play(self, turns: Mapping[Turn, int], seconds: float) -> None:
        """A round: each turn by so many at once."""
        ends = current_time() + seconds
        async with create_task_group() as group:
            for turn, several in turns.items():
                for _ in range(several):
                    group.start_soon(self.repeat, turn, ends)

    def told(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {"counts": dict(self.counts), "problems": dict(self.problems)}


# ---------------------------------------------------------------- models and their vectors


def prepare(folder: Path, model: Path | None) -> None:
    """Write the models, the texts and what they must become into a folder; of a real model there are three copies."""
    random = Random(20)
    words = [*WORDS, *(f"{number}" for number in range(100))]
    texts = [" ".join(random.choices(words, k=random.randint(1, LONGEST_WORDS))) for _ in range(TEXTS)]
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    for seed, name in enumerate(MODELS):
        if model is None:
            (folder / name).mkdir()
            write_self_describing_model(folder / name, seed=seed)
        else:
            shutil.copytree(model, folder / name)
    anyio.run(_expect, folder, texts)


async def _expect(folder: Path, texts: list[str]) -> None:
    expected = {}
    for name in MODELS:
        async with TextEmbedding(folder / name, workers=1) as model:
            expected[name] = await model.embed_documents(texts)
    np.savez(folder / "expected.npz", **expected)  # type: ignore[arg-type]


# ---------------------------------------------------------------- what a process holds


async def until_rest(is_at_rest: Callable[[], bool]) -> bool:
    """Wait until nothing goes on; False when that takes too long."""
    with anyio.move_on_after(REST_SECONDS):
        while not is_at_rest():  # noqa: ASYNC110 (other processes send no event)
            await anyio.sleep(0.05)
        return True
    return False


def usage(steady: Collection[int], folders: Sequence[Path]) -> dict[str, float]:
    """What this process, and those of its workers that live as long as it does, hold while nothing goes on.

    Memory is what is a process's own; `folders` are those where temporary files may be left.
    """
    gc.collect()
    own = psutil.Process()
    workers = [one for one in worker_processes() if one.pid in steady]
    helpers = {one.pid for one in worker_processes(and_their_server=True)} - {one.pid for one in worker_processes()}
    return {
        "memory, MB": _megabytes(own),
        "workers' memory, MB": sum(map(_megabytes, workers)),
        "fork server's memory, MB": sum(_megabytes(psutil.Process(pid)) for pid in helpers),
        "objects": len(gc.get_objects()),
        "descriptors": open_files(),
        "workers' descriptors": sum(open_files(one.pid) for one in workers),
        "threads": len(threads()),
        "workers' threads": sum(one.num_threads() for one in workers),
        "tasks": len(anyio.get_running_tasks()),
        "processes": len(own.children(recursive=True)),
        "connections": len(own.net_connections()),
        "files": sum(len(list(folder.rglob("*"))) for folder in folders),
    }


def _megabytes(process: psutil.Process) -> float:
    with suppress(psutil.Error):
        return float(process.memory_full_info().uss) / 1e6
    return 0.0
