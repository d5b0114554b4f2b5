"""The examples run as their docstrings say, on little data."""

import os
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from examples.quickstart import stdlib_docstrings
from tests.support.images import picture, write_image_model
from tests.support.models import write_model
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
