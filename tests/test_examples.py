"""The examples run as their docstrings say, on little data."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest

from examples.quickstart import stdlib_docstrings
from tests.support.hybrid_models import write_hybrid_model
from tests.support.images import picture, write_image_model
from tests.support.models import write_model, write_self_describing_model
from tests.support.sparse_models import write_reranker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]  # whole programs on the real model

ROOT = Path(__file__).parents[1]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return os.environ | {"HF_HOME": str(tmp_path), "ASYNCEMBED_CACHE": str(tmp_path), "PYTHONIOENCODING": "utf-8"}


def run(environment: dict[str, str], *arguments: str, typed: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments],
        input=typed,
        env=environment,
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        check=True,
    )


def test_the_quickstart_answers_typed_queries_best_first(environment: dict[str, str]) -> None:
    done = run(environment, "examples/quickstart.py", "-n", "40", "--ask", typed="numbers drawn by chance\n\n")
    assert re.search(r"^40 docstrings, \d+ tokens in .* s with \d+ workers", done.stdout, re.MULTILINE)
    scores = [float(score) for score in re.findall(r"^  (\d\.\d\d)  [\w.]+$", done.stdout, re.MULTILINE)]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)


def test_the_quickstart_answers_queries_from_the_command_line(environment: dict[str, str]) -> None:
    done = run(environment, "examples/quickstart.py", "-n", "25", "first query", "second query")
    assert "\nfirst query\n" in done.stdout
    assert "\nsecond query\n" in done.stdout


def test_hybrid_search_finds_a_document_by_a_word_that_no_other_has(environment: dict[str, str]) -> None:
    documents = list(islice(stdlib_docstrings(), 60))
    words = [set(re.findall(r"\w{5,}", document.text.lower())) for document in documents]
    name, word = next(
        (document.name, word)
        for document, own in zip(documents, words, strict=True)
        for word in sorted(own)
        if sum(word[:5] in document.text.lower() for document in documents) == 1
    )
    done = run(environment, "-m", "examples.hybrid_search", "-n", "60", word, "a time limit")
    assert done.stdout.startswith("no --reranker")
    assert re.search(r"^60 docstrings in .* with \d+ workers$", done.stdout, re.MULTILINE)
    hits = re.findall(r"^ +\d\.\d\d  ([\w.]+)$", done.stdout, re.MULTILINE)
    assert len(hits) == 6
    assert name in hits[:3]


def test_hybrid_search_puts_hits_in_the_rerankers_order(environment: dict[str, str], tmp_path: Path) -> None:
    reranker = write_reranker(tmp_path / "reranker")
    done = run(environment, "-m", "examples.hybrid_search", "-n", "30", "--reranker", str(reranker), "a time limit")
    scores = [float(score) for score in re.findall(r"^ +(-?\d+\.\d\d)  [\w.]+$", done.stdout, re.MULTILINE)]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert "no --reranker" not in done.stdout


def test_one_pass_search_ranks_by_all_results_of_one_model(environment: dict[str, str], tmp_path: Path) -> None:
    model = str(write_hybrid_model(tmp_path / "model"))
    done = run(environment, "-m", "examples.one_pass_search", "--model", model, "-n", "60", "a time limit", "a day")
    assert done.stdout.startswith(f"{model} gives dense, sparse, late_interaction\n60 docstrings in ")
    scores = [float(score) for score in re.findall(r"^ +(-?\d+\.\d{3})  [\w.]+$", done.stdout, re.MULTILINE)]
    assert len(scores) == 6
    assert scores == [*sorted(scores[:3], reverse=True), *sorted(scores[3:], reverse=True)]


def test_langchain_puts_what_it_finds_into_prompts_in_the_rerankers_order(
    environment: dict[str, str], tmp_path: Path
) -> None:
    reranker = ["--reranker", str(write_reranker(tmp_path / "reranker"))]
    done = run(environment, "-m", "examples.langchain_search", "-n", "150", *reranker, "a time limit?", "chance?")
    assert re.search(r"^\d hits before the store was full$", done.stdout, re.MULTILINE)
    assert "\n150 docstrings in the store\n" in done.stdout
    prompts = done.stdout.split("\nSystem: ")[1:]
    assert [re.findall(r"^Human: (.*)$", prompt, re.MULTILINE) for prompt in prompts] == [
        ["a time limit?"],
        ["chance?"],
    ]
    for prompt in prompts:
        scores = [float(score) for score in re.findall(r"^[\w.]+ \((-?\d+\.\d\d)\)$", prompt, re.MULTILINE)]
        assert len(scores) == 3
        assert scores == sorted(scores, reverse=True)


def test_langchain_does_without_a_reranker(environment: dict[str, str]) -> None:
    done = run(environment, "-m", "examples.langchain_search", "-n", "20", "a time limit?")
    assert "\n20 docstrings in the store\n" in done.stdout
    assert "\nHuman: a time limit?\n" in done.stdout


def test_llama_index_finds_docstrings_and_puts_them_in_the_rerankers_order(
    environment: dict[str, str], tmp_path: Path
) -> None:
    reranker = ["--reranker", str(write_reranker(tmp_path / "reranker"))]
    done = run(environment, "-m", "examples.llama_index_search", "-n", "30", *reranker, "a time limit", "chance")
    assert re.search(r"^30 docstrings in .* with \d+ workers$", done.stdout, re.MULTILINE)
    scores = [float(score) for score in re.findall(r"^ +(-?\d+\.\d\d)  [\w.]+$", done.stdout, re.MULTILINE)]
    assert len(scores) == 6
    assert scores == sorted(scores[:3], reverse=True) + sorted(scores[3:], reverse=True)


@pytest.mark.parametrize("store", ["chroma", "lancedb"])
def test_a_store_finds_what_an_earlier_run_has_kept_there(
    store: str, environment: dict[str, str], tmp_path: Path
) -> None:
    """With the model that the store names, as the second run names none."""
    query = "numbers drawn by chance"
    command = ["-m", f"examples.store_{store}", "-n", "30", "--folder", str(tmp_path / "db"), "--workers", "0", query]
    first, second = run(environment, *command), run(environment, *command)
    assert f"\n{query}\n  " in first.stdout
    assert first.stdout == second.stdout
    assert first.stdout.startswith("30 docstrings in the ")


def test_observability_prints_the_spans_of_calls_and_batches_and_the_metrics(environment: dict[str, str]) -> None:
    done = run(environment, "-m", "examples.observability", "-n", "20")
    assert re.search(r"^TextEmbedding opened .* on CPUExecutionProvider, \d+ workers x ", done.stderr, re.MULTILINE)
    assert "all-MiniLM-L6-v2' open on CPUExecutionProvider: 28 inputs in " in done.stdout
    calls = re.findall(r"^ +\d+\.\d ms +(\d+) tokens  embeddings all-MiniLM-L6-v2$", done.stdout, re.MULTILINE)
    batches = re.findall(r"(\d+) tokens  batch all-MiniLM-L6-v2 for \d+ calls$", done.stdout, re.MULTILINE)
    assert len(calls) == 9
    assert sum(map(int, calls)) == sum(map(int, batches)) > 0
    assert len(re.findall(r"ms +- tokens  request \d$", done.stdout, re.MULTILINE)) == 8
    assert '\nasyncembed_inputs_total{model="all-MiniLM-L6-v2"} 28.0\n' in done.stdout


def stored(database: Path) -> dict[str, int]:
    """Ids, and bytes of their vectors; nothing as long as there is no table."""
    try:
        with closing(sqlite3.connect(database)) as connection:
            return dict(connection.execute("SELECT id, length(vector) FROM records"))
    except sqlite3.OperationalError:
        return {}


def test_the_ingest_stores_what_it_can_and_keeps_the_rest_aside(environment: dict[str, str], tmp_path: Path) -> None:
    write_self_describing_model(tmp_path / "model")
    source, database = tmp_path / "in.jsonl", tmp_path / "out.db"
    source.write_text(
        '{"id": 1, "text": "the way"}\n{"id": 2,\n{"id": 3}\n{"id": 4, "text": "a day"}\n', encoding="utf-8"
    )
    model = ["--model", str(tmp_path / "model"), "--workers", "0"]
    done = run(environment, "-m", "examples.ingest", str(source), str(database), *model)
    assert done.stdout.startswith(f"2 records in {database}, 2 broken ones in {tmp_path / 'out.broken.jsonl'}\n")
    assert stored(database).keys() == {"1", "4"}
    assert all(size_bytes > 0 for size_bytes in stored(database).values())
    broken = [json.loads(line) for line in (tmp_path / "out.broken.jsonl").read_text("utf-8").splitlines()]
    assert [line["record"] for line in broken] == [None, {"id": 3}]
    assert "line 2 is no JSON" in broken[0]["error"]
    assert "key= failed: KeyError" in broken[1]["error"]
    (bar,) = done.stderr.splitlines()
    assert "4 inputs [" in bar
    assert "2 failed" in bar


def test_the_ingest_makes_its_own_sample(environment: dict[str, str]) -> None:
    done = run(environment, "-m", "examples.ingest", "--workers", "1")
    assert re.match(r"300 records in .*, 4 broken ones in ", done.stdout)


def test_the_ingest_does_not_hold_a_record_back_until_others_come(environment: dict[str, str], tmp_path: Path) -> None:
    write_self_describing_model(tmp_path / "model")
    database = tmp_path / "out.db"
    model = ["--model", str(tmp_path / "model"), "--workers", "0"]
    command = [sys.executable, "-m", "examples.ingest", "-", str(database), *model]
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdin=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdin is not None
        for count in (1, 2):
            process.stdin.write(json.dumps({"id": count, "text": "the way"}) + "\n")
            process.stdin.flush()
            while len(stored(database)) < count:  # with stdin open all the while
                assert process.poll() is None
                time.sleep(0.05)
        process.stdin.close()
    assert process.returncode == 0
    assert len(stored(database)) == 2


def test_image_search_lists_the_images_of_a_folder_best_first(environment: dict[str, str], tmp_path: Path) -> None:
    write_model(tmp_path / "text", model_file="model.onnx", outputs=("text_embeds",), dim=512, token_types=False)
    write_image_model(tmp_path / "image")
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for number, name in enumerate(("a.jpg", "b.png", "more/c.webp", "d.gif")):
        picture(90 + number, 70, seed=number).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no image")
    models = ["--text-model", str(tmp_path / "text"), "--image-model", str(tmp_path / "image")]
    folder = ["--folder", str(tmp_path / "photos"), "--workers", "1"]
    done = run(environment, "-m", "examples.image_search", *models, *folder, "the way", "a day")
    assert re.search(r"^4 images in .* s with 1 workers$", done.stdout, re.MULTILINE)
    for query in ("the way", "a day"):
        hits = re.search(rf"^{query}\n((?:  .*\n){{3}})", done.stdout, re.MULTILINE)
        assert hits is not None
        scores = [float(line.split()[0]) for line in hits[1].splitlines()]
        assert scores == sorted(scores, reverse=True)
        assert {line.split()[1] for line in hits[1].splitlines()} < {"a.jpg", "b.png", "c.webp", "d.gif"}


def test_image_search_says_what_to_do_without_the_hub(environment: dict[str, str]) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(environment, "-m", "examples.image_search", "--offline", "--workers", "0")
    assert "--text-model DIRECTORY --image-model DIRECTORY" in caught.value.stderr
    assert "Traceback" not in caught.value.stderr


@pytest.mark.parametrize("reranks", [False, True])
def test_haystack_searches_with_pipelines(reranks: bool, environment: dict[str, str], tmp_path: Path) -> None:
    more = ["--reranker", str(write_reranker(tmp_path / "reranker"))] if reranks else []
    done = run(environment, "-m", "examples.haystack_search", "-n", "30", *more, "a time limit")
    assert done.stdout.startswith("30 docstrings\n")
    scores = [float(score) for score in re.findall(r"^ +(-?\d+\.\d\d)  [\w.]+$", done.stdout, re.MULTILINE)]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)


@pytest.mark.posix
def test_the_shell_goes_from_a_dirty_file_to_a_search(environment: dict[str, str], tmp_path: Path) -> None:
    programs = os.pathsep.join((str(Path(sys.executable).parent), environment["PATH"]))
    done = subprocess.run(
        ["sh", "examples/command_line.sh", str(tmp_path)],
        env=environment | {"PATH": programs, "ASYNCEMBED_FAKE": "1"},
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "3 records, 2 failed, 5 read by earlier runs" in done.stderr
    failed = [json.loads(line)["failure"] for line in (tmp_path / "failed.jsonl").read_text("utf-8").splitlines()]
    assert [failure["index"] for failure in failed] == [1, 3]
    assert done.stdout.count("Backpressure slows the producer down.") == 2
    assert not (tmp_path / "articles.parquet.partial").exists()
