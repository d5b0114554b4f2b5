"""The command `bench`, as its users call it."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import psutil
import pytest
from click.testing import CliRunner

from asyncembed.cli.accuracy import Accuracy
from asyncembed.cli.bench_command import draw_measured, table
from asyncembed.cli.commands import main
from asyncembed.cli.measuring import Ingest, Measured
from tests.support import posix
from tests.support.models import write_self_describing_model
from tests.support.waiting import until, worker_processes

MEASURED = Measured(
    model="org/model",
    description="org/model on CPUExecutionProvider, 2 workers x 1 threads on 2 cores",
    machine="a CPU, Linux",
    unit="texts",
    query="embed_query",
    open_seconds=1.234,
    alone=Ingest(1000.0, 40_000.0, 0.025, [(0.5, 990.0), (1.0, 1010.0)]),
    with_queries=Ingest(900.0, 36_000.0, 0.03, [(0.5, 900.0)]),
    batch_seconds=0.1,
    latency_alone=[0.004, 0.005, 0.006],
    latency_in_ingest=[0.05, 0.1],
    memory_bytes=362_000_000,
)


def test_the_table_can_be_pasted() -> None:
    assert (
        table(MEASURED)
        == """\
| org/model | measured |
|---|---|
| opened in, s | 1.2 |
| ingest, texts/s | 1000.0 |
| of it, tokens/s | 40,000 (about 40 each) |
| padding of the computed tokens | 2.5% |
| median batch, ms | 100.0 |
| embed_query alone, p50 and p99, ms | 5.0 and 6.0 |
| embed_query in an ingest, p50 and p99, ms | 50.0 and 100.0 |
| ingest with 20 of them a second, texts/s | 900.0 |
| memory of all processes | 362.0 MB |

org/model on CPUExecutionProvider, 2 workers x 1 threads on 2 cores; a CPU, Linux"""
    )


def test_the_table_says_how_near_8_bits_are() -> None:
    lines = table(replace(MEASURED, accuracy=Accuracy(300, 0.99912, 0.99834, 0.97))).splitlines()
    assert lines[-4:-2] == [
        "| cosine to fp32 of 300 texts, mean and least | 0.9991 and 0.9983 |",
        "| ten nearest texts as in fp32 | 97.0% |",
    ]


def test_the_chart_shows_both_ingests_and_both_latencies() -> None:
    svg = ElementTree.fromstring(draw_measured(MEASURED))
    texts = {each.text for each in svg.iter("{http://www.w3.org/2000/svg}text")}
    assert {"asyncembed bench org/model", "Ingest", "Latency of embed_query", "in an ingest"} <= texts
    assert len(list(svg.iter("{http://www.w3.org/2000/svg}polyline"))) == 4


@pytest.mark.slow
def test_a_real_model_is_measured_with_workers(tmp_path: Path) -> None:
    model = write_self_describing_model(tmp_path / "model")
    chart = tmp_path / "chart.svg"
    command = [sys.executable, "-m", "asyncembed", "bench", str(model), "--seconds", "0.5", "--workers", "1", "--json"]
    done = subprocess.run([*command, "--chart", str(chart)], capture_output=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["alone"]["per_second"] > 0
    assert re.search(r" [12] workers x", found["description"])  # a second one comes if queries meet the ingest
    ElementTree.parse(chart)


@pytest.mark.slow
@pytest.mark.posix
async def test_ctrl_c_ends_it_with_its_workers(tmp_path: Path) -> None:
    model = write_self_describing_model(tmp_path / "model")
    command = [sys.executable, "-m", "asyncembed", "bench", str(model), "--seconds", "600", "--workers", "1"]
    with subprocess.Popen(  # noqa: ASYNC220 (a program as short as this)
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", start_new_session=True
    ) as program:
        await until(lambda: bool(worker_processes(program.pid)))
        workers = worker_processes(program.pid)
        posix.press_ctrl_c(program.pid)
        output, errors = program.communicate(timeout=15)
    assert (program.returncode, output) == (130, "")
    assert errors.splitlines()[-1] == "Interrupted."
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive


@pytest.mark.slow
def test_texts_of_ones_own_come_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNCEMBED_FAKE", "1")
    texts = tmp_path / "texts.txt"
    texts.write_text("one\ntwo\n\n", encoding="utf-8")
    done = CliRunner().invoke(main, ["bench", "org/any", "--seconds", "0.2", "--texts", str(texts)])
    assert done.exit_code == 0
    assert done.stdout.startswith("| org/any | measured |")
    texts.write_text("\n", encoding="utf-8")
    empty = CliRunner().invoke(main, ["bench", "org/any", "--texts", str(texts)])
    assert empty.exit_code == 2
    assert "has no line of text" in empty.stderr


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["bench", "org/any", "--texts", str(tmp_path / "none")])
    assert done.exit_code == 1
    assert "No such file" in done.stderr


def test_a_chart_for_nowhere_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["bench", "org/any", "--chart", str(tmp_path / "none" / "chart.svg")])
    assert done.exit_code == 2
    assert "there is no directory" in done.stderr
