"""Ray Data's own datasets, on a cluster of this machine that starts with this module and ends with it."""

import inspect
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest

os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"  # see `ray_settings`; Ray reads it when it is imported

import ray
import ray.data

import asyncembed.integrations.ray
from asyncembed import SparseTextEmbedding, TextEmbedding
from asyncembed.errors import InputError, OptionError
from asyncembed.integrations.ray import Embed, EmbedSparse
from asyncembed.testing import Fakes, fake_models
from tests.hub.server import HubServer
from tests.support import snippets
from tests.support.arrow import no_utf_8
from tests.support.encoders import ECHO
from tests.support.models import write_self_describing_model
from tests.support.programs import ROOT
from tests.support.ray_settings import ray_settings
from tests.support.waiting import worker_processes

# A cluster takes some ten seconds to start where the machine has other things to do.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(150),
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\."),  # what Ray does itself
]

NAME = "BAAI/bge-small-en-v1.5"
TEXTS = ["how cats sleep", "a full queue makes its writer wait", "the way home"]


@pytest.fixture
def fakes() -> Iterator[Fakes]:
    with fake_models() as switched_on:
        yield switched_on


def table(*texts: str | None, **columns: Any) -> Any:
    return pa.table({"text": pa.array(texts, pa.string()), **columns})


ONE_COLUMN = {"on_error": "return", "error_column": "vector"}
"""One of them would be lost."""


# ---------------------------------------------------------------- a batch


async def test_a_column_of_vectors_is_added_and_all_others_stay(fakes: Fakes) -> None:
    given = table(*TEXTS, id=[1, 2, 3])
    batch = await Embed(NAME)(given)
    assert batch.select(["text", "id"]) == given
    assert batch.schema.field("vector").type == pa.list_(pa.float32(), 384)
    async with TextEmbedding(NAME) as model:
        expected = await model.embed_documents(TEXTS)
    np.testing.assert_array_equal(batch["vector"].combine_chunks().flatten().to_numpy(), expected.ravel())


async def test_columns_have_the_names_that_they_are_given(fakes: Fakes) -> None:
    given = pa.table({"body": TEXTS, "embedding": ["old"] * 3, "id": [1, 2, 3]})
    batch = await Embed(NAME, column="body", vector_column="embedding")(given)
    assert batch.column_names == ["body", "embedding", "id"]
    assert batch.schema.field("embedding").type == pa.list_(pa.float32(), 384)


async def test_a_column_in_several_chunks_is_one(fakes: Fakes) -> None:
    chunks = pa.concat_tables([table(TEXTS[0]), table(*TEXTS[1:])])
    assert (await Embed(NAME)(chunks))["vector"].to_pylist() == (await Embed(NAME)(table(*TEXTS)))["vector"].to_pylist()


async def test_queries_have_the_prompt_of_queries(fakes: Fakes) -> None:
    prompts = {"query": "find: ", "passage": "kept: "}
    async with TextEmbedding(NAME, prompts=prompts) as model:
        expected = {"query": await model.embed_query("cats"), "passage": (await model.embed_documents(["cats"]))[0]}
    for role in ("query", "passage"):
        batch = await Embed(NAME, prompts=prompts, role=role)(table("cats"))
        np.testing.assert_array_equal(batch["vector"][0].values.to_numpy(), expected[role])


async def test_a_sparse_vector_is_a_struct_of_two_lists(fakes: Fakes) -> None:
    batch = await EmbedSparse("Qdrant/bm25")(table(*TEXTS))
    lists = [("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float32()))]
    assert batch.schema.field("vector").type == pa.struct(lists)
    async with SparseTextEmbedding("Qdrant/bm25") as model:
        expected = await model.embed_documents(TEXTS)
    assert batch["vector"].to_pylist() == [
        {"indices": one.indices.tolist(), "values": one.values.tolist()} for one in expected
    ]


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"dtype": "float16"}, pa.list_(pa.float16(), 384)),
        ({"output": "binary"}, pa.list_(pa.int8(), 48)),
        ({"truncate_dim": 64}, pa.list_(pa.float32(), 64)),
    ],
)
async def test_vectors_have_the_type_and_length_that_was_asked_for(
    options: dict[str, Any], kind: Any, fakes: Fakes
) -> None:
    for texts in ([], TEXTS):
        assert (await Embed(NAME, **options)(table(*texts))).schema.field("vector").type == kind
    assert (await Embed(NAME, on_error="return", **options)(table(None))).schema.field("vector").type == kind


# ---------------------------------------------------------------- bad rows


@pytest.mark.parametrize("kind", [Embed, EmbedSparse])
async def test_a_bad_row_fails_the_batch_unless_told_otherwise(kind: Any, fakes: Fakes) -> None:
    with pytest.raises(InputError) as caught:
        await kind(NAME if kind is Embed else "Qdrant/bm25")(table("cats", None))
    assert caught.value.index == 1


@pytest.mark.parametrize("kind", [Embed, EmbedSparse])
async def test_bad_rows_are_left_out(kind: Any, fakes: Fakes) -> None:
    embed = kind(NAME if kind is Embed else "Qdrant/bm25", on_error="skip")
    batch = await embed(table(None, "cats", None, "dogs", id=[1, 2, 3, 4]))
    assert batch["id"].to_pylist() == [2, 4]
    assert batch["vector"].to_pylist() == (await embed(table("cats", "dogs")))["vector"].to_pylist()
    assert (await embed(table(None))).schema == (await embed(table("cats"))).schema


@pytest.mark.parametrize("kind", [Embed, EmbedSparse])
async def test_bad_rows_are_kept_with_their_errors(kind: Any, fakes: Fakes) -> None:
    embed = kind(NAME if kind is Embed else "Qdrant/bm25", on_error="return", error_column="why")
    batch = await embed(table(None, "cats", None, "dogs"))
    good = (await embed(table("cats", "dogs")))["vector"].to_pylist()
    assert batch["vector"].to_pylist() == [None, good[0], None, good[1]]
    assert batch["why"].to_pylist() == ["expected a str, got NoneType", None] * 2
    assert (await embed(table(None))).schema == (await embed(table("cats"))).schema == batch.schema


@pytest.mark.parametrize("kind", [Embed, EmbedSparse])
async def test_a_text_that_is_no_utf_8_fails_alone(kind: Any, fakes: Fakes) -> None:
    """Files may hold such texts, which nobody has looked at before they are read."""
    name = NAME if kind is Embed else "Qdrant/bm25"
    given = pa.table({"text": no_utf_8("cats", b"\xff\xfe", None, "dogs")})
    with pytest.raises(InputError, match="input 1: .*can't decode byte 0xff"):
        await kind(name)(given)
    batch = await kind(name, on_error="return")(given)
    assert batch["vector"].is_null().to_pylist() == [False, True, True, False]
    assert batch["error"].is_null().to_pylist() == [True, False, False, True]
    assert (await kind(name, on_error="skip")(given)).num_rows == 2


# ---------------------------------------------------------------- what cannot work


async def test_another_batch_format_is_answered_with_what_to_write() -> None:
    with pytest.raises(OptionError, match='batch_format="pyarrow"'):
        await Embed(NAME)({"text": np.array(TEXTS)})


async def test_a_missing_column_is_answered_with_those_there_are() -> None:
    with pytest.raises(OptionError, match=r"'body'.*\['text'\]"):
        await Embed(NAME, column="body")(table("cats"))


@pytest.mark.parametrize(
    "wrong", [{"on_error": "ignore"}, {"role": "document"}, {"column": ""}, {"thread": 4}, ONE_COLUMN]
)
def test_what_cannot_work_is_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Embed(NAME, **wrong)


async def test_it_is_pickled_as_configuration(fakes: Fakes) -> None:
    embed = Embed(NAME, column="body", on_error="skip", prompts={"passage": "kept: "})
    given = pa.table({"body": ["cats", None]})
    before = await embed(given)
    assert await pickle.loads(pickle.dumps(embed))(given) == before


# ---------------------------------------------------------------- a cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """It has small models for those that the README names."""
    before = set(worker_processes())
    with HubServer() as hub, ray_settings() as settings, pytest.MonkeyPatch.context() as patch:
        snippets.serve(hub, NAME, tmp_path_factory.mktemp("models"))
        settings |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path_factory.mktemp("home"))}
        for name, value in settings.items():
            patch.setenv(name, value)
        ray.init(num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        try:
            yield
        finally:
            started = set(worker_processes()) - before
            ray.shutdown()
            _, alive = psutil.wait_procs(started, timeout=20)
            assert not alive


def embedded(texts: list[Any], *, blocks: int = 1, calls: int = 1, gpus: int | None = None, **keywords: Any) -> Any:
    """A dataset of these texts and the answers of one actor; the second number of each is a worker's process id."""
    rows = [{"id": number, "text": text} for number, text in enumerate(texts)]
    return ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
        Embed,
        fn_constructor_args=(keywords.pop("model", ECHO),),
        fn_constructor_kwargs=keywords,
        batch_format="pyarrow",
        batch_size=4,
        num_cpus=2,
        num_gpus=gpus,
        compute=ray.data.ActorPoolStrategy(size=1, max_concurrent_calls_per_actor=calls),
    )


@pytest.mark.parametrize("calls", [1, 2])
def test_a_dataset_comes_out_whole_with_its_vectors(calls: int, cluster: None) -> None:
    texts = [f"text {'x' * (number % 7)} #{number}" for number in range(100)]
    rows = embedded(texts, blocks=3, calls=calls).take_all()
    assert sorted(row["id"] for row in rows) == list(range(100))
    for row in rows:
        assert row["text"] == texts[row["id"]]
        length, process, number = row["vector"]
        assert (length, number) == (len(row["text"]), row["id"])
        assert process > 0


def logging_model(log: Path) -> Any:
    """It says which processes have loaded it, for which device, and with how many threads."""
    return replace(ECHO, settings={"load_log": str(log)})


def loads(log: Path) -> list[tuple[str, str]]:
    """Device and threads of each process that has loaded the model; all of them are gone, or go soon."""
    lines = [line.split() for line in log.read_text("utf-8").splitlines()]
    running = []
    for process, *_ in lines:
        with suppress(psutil.NoSuchProcess):
            running.append(psutil.Process(int(process)))
    _, alive = psutil.wait_procs(running, timeout=20)
    assert not alive
    return [(device, threads) for _, device, threads in lines]


def test_an_actor_has_as_many_workers_as_cores_and_ends_with_them(cluster: None, tmp_path: Path) -> None:
    embedded([f"text #{number}" for number in range(100)], model=logging_model(tmp_path / "log")).materialize()
    assert loads(tmp_path / "log") == [("None", "1"), ("None", "1")]


def test_an_actor_with_a_device_has_a_worker_for_it(cluster: None, tmp_path: Path) -> None:
    embedded(["one", "two"], model=logging_model(tmp_path / "log"), gpus=1).materialize()
    assert loads(tmp_path / "log") == [("0", "2")]


def test_a_bad_row_fails_the_job_with_its_error(cluster: None) -> None:
    with pytest.raises(ray.exceptions.RayTaskError, match="refused"):
        embedded(["good", "bad"]).take_all()


def test_bad_rows_go_aside(cluster: None) -> None:
    done = embedded(["good", "bad", None, "better"], on_error="return").materialize()
    aside = done.filter(expr=ray.data.expressions.col("error").is_not_null()).take_all()
    assert sorted((row["id"], row["error"]) for row in aside) == [(1, "refused"), (2, "expected a str, got NoneType")]
    assert all(row["vector"] is None for row in aside)
    assert embedded(["good", "bad", None, "better"], on_error="skip").count() == 2


def test_the_snippet_of_the_readme_adds_vectors(cluster: None) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    names = {"Embed": Embed, "articles": ray.data.from_items([{"text": text} for text in TEXTS])}
    rows = eval(snippets.of_integration(readme, "ray"), names).take_all()
    assert sorted(row["text"] for row in rows) == sorted(TEXTS)
    assert all(len(row["vector"]) == 384 for row in rows)


def test_the_example_of_the_module_comes_to_what_it_says(cluster: None, capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = snippets.fenced(inspect.getdoc(asyncembed.integrations.ray) or "")
    exec(snippets.as_program(snippet, "asyncembed.integrations.ray"), {})
    snippets.assert_printed(capsys.readouterr().out, snippet)


def test_the_example_stores_a_corpus_with_its_vectors(cluster: None, tmp_path: Path) -> None:
    """As a program of its own, that joins the cluster."""
    model = write_self_describing_model(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-m", "examples.ray_corpus", "--model", str(model), "--cores", "2"],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        capture_output=True,
        encoding="utf-8",
        timeout=140,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "201 rows, 1 of them without a vector: ['expected a str, got NoneType']\n"
