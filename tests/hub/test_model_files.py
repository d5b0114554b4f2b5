"""From a model's name to its files, in Python and from a shell."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from anyio import run_process

import asyncembed
from asyncembed.catalogue.lookup import CLASSES
from asyncembed.errors import (
    DownloadError,
    NotCachedError,
    OptionError,
    RepoFileNotFoundError,
    RepoNotFoundError,
    UnsupportedModelError,
)
from asyncembed.hub import FileFinished, HubAccess
from asyncembed.hub.model_files import download, download_repo
from asyncembed.testing import fake_models
from tests.hub.server import HubServer, Repo
from tests.support import posix
from tests.support.external_data import CONSTANT_FILE, graph_naming
from tests.support.models import files_of

pytestmark = pytest.mark.slow

CATALOGUED = "BAAI/bge-small-en"
ITS_REPO = "Qdrant/bge-small-en"
FILES: Mapping[str, bytes] = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b'{"model_max_length": 512}',
    "special_tokens_map.json": b"{}",
    "model_optimized.onnx": b"graph",
    "pytorch_model.bin": b"not wanted",
}
SENTENCE_TRANSFORMERS: Mapping[str, bytes] = {
    "config.json": b'{"model_type": "bert", "hidden_size": 384}',
    "modules.json": json.dumps(
        [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ]
    ).encode(),
    "1_Pooling/config.json": b'{"word_embedding_dimension": 384, "pooling_mode_mean_tokens": true}',
    "sentence_bert_config.json": b'{"max_seq_length": 256}',
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "onnx/model.onnx": graph_naming("model.onnx_data"),
    "onnx/model.onnx_data": b"weights",
    "onnx/model.onnx.data": b"not wanted",
    "onnx/model_quantized.onnx": b"not wanted",
    "pytorch_model.bin": b"not wanted",
}


@pytest.fixture(autouse=True)
def repos(hub: HubServer) -> None:
    from asyncembed.catalogue.lookup import require_model
    from asyncembed.catalogue.spec import HubOrigin

    spec = require_model(CATALOGUED, "text")
    source = spec.sources[0]
    assert isinstance(source, HubOrigin)
    assert spec.model_file is not None
    files = {name: content for name, content in FILES.items() if name != "model_optimized.onnx"}
    hub.repos[source.repo] = Repo({**files, spec.model_file: b"graph"}, large=frozenset({spec.model_file}))
    hub.repos["org/own"] = Repo(SENTENCE_TRANSFORMERS, large=frozenset({"onnx/model.onnx", "onnx/model.onnx_data"}))


def names_in(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


async def test_a_catalogued_model_is_downloaded_by_its_name_in_any_case() -> None:
    directory = await asyncembed.download(CATALOGUED.upper(), progress=False)
    assert isinstance(directory, Path)
    assert names_in(directory) == set(FILES) - {"pytorch_model.bin", "model_optimized.onnx"} | {
        name for name in names_in(directory) if name.endswith(".onnx")
    }
    assert any(name.endswith(".onnx") for name in names_in(directory))


async def test_a_repo_outside_the_catalogue_says_itself_what_it_needs() -> None:
    directory = await asyncembed.download("org/own", progress=False)
    assert isinstance(directory, Path)
    assert names_in(directory) == {path for path, content in SENTENCE_TRANSFORMERS.items() if content != b"not wanted"}


async def test_a_graph_says_which_files_it_needs(hub: HubServer) -> None:
    """As that of BAAI/bge-m3 does, with a file that no naming rule knows."""
    graph = graph_naming("model.onnx_data", CONSTANT_FILE, "parts/rest")
    weights = {f"onnx/{name}": name.encode() for name in ("model.onnx_data", CONSTANT_FILE, "parts/rest")}
    hub.repos["org/named"] = Repo({**SENTENCE_TRANSFORMERS, **weights, "onnx/model.onnx": graph, "onnx/other": b"no"})
    directory = await asyncembed.download("org/named", progress=False)
    assert isinstance(directory, Path)
    assert weights.keys() <= names_in(directory)
    assert "onnx/other" not in names_in(directory)
    asked = [request.path.rpartition("/")[2] for request in hub.requests if request.route == "resolve"]
    assert asked.index("model.onnx") < asked.index(CONSTANT_FILE)
    hub.requests.clear()
    assert await asyncembed.download("org/named", local_files_only=True) == directory
    (directory / "onnx" / CONSTANT_FILE).unlink()
    with pytest.raises(NotCachedError, match=CONSTANT_FILE):
        await asyncembed.download("org/named", local_files_only=True)
    assert hub.requests == []
    assert await asyncembed.download("org/named", progress=False) == directory
    assert (directory / "onnx" / CONSTANT_FILE).read_bytes() == CONSTANT_FILE.encode()


async def test_the_graph_of_a_catalogued_model_says_so_too(hub: HubServer, cache: Path) -> None:
    files = {**FILES, "model_optimized.onnx": graph_naming("weights")}
    hub.repos[ITS_REPO] = Repo({**files, "weights": b"weights"})
    directory = await asyncembed.download(CATALOGUED, progress=False)
    assert isinstance(directory, Path)
    assert (directory / "weights").read_bytes() == b"weights"
    folder = cache / "fast-bge-small-en"
    folder.mkdir()
    for name in ("model_optimized.onnx", "config.json"):
        (folder / name).write_bytes(files[name])
    (directory / "weights").unlink()
    with pytest.raises(DownloadError, match="weights"):
        await asyncembed.download(CATALOGUED, local_files_only=True)
    (folder / "weights").write_bytes(b"weights")
    assert await asyncembed.download(CATALOGUED, local_files_only=True) == folder


async def test_a_file_that_the_graph_names_and_the_repo_lacks_is_told(hub: HubServer) -> None:
    hub.repos["org/named"] = Repo({**SENTENCE_TRANSFORMERS, "onnx/model.onnx": graph_naming("absent", "../outside")})
    with pytest.raises(RepoFileNotFoundError, match=r"has no onnx/absent"):
        await asyncembed.download("org/named", progress=False)


async def test_an_index_says_which_shards_there_are(hub: HubServer) -> None:
    index = {"weight_map": {"a": "one.safetensors", "b": "model-00002-of-00002.safetensors"}}
    files = {path: content for path, content in SENTENCE_TRANSFORMERS.items() if not path.startswith("onnx/")}
    shards = dict.fromkeys(index["weight_map"].values(), b"weights")
    hub.repos["org/sharded"] = Repo(files | shards | {"model.safetensors.index.json": json.dumps(index).encode()})
    directory = await asyncembed.download("org/sharded", progress=False)
    assert isinstance(directory, Path)
    assert shards.keys() <= names_in(directory)


SPARSE_REPOS = Path(__file__).parents[1] / "embedders" / "data" / "sparse"
MLM = b'{"architectures": ["BertForMaskedLM"], "model_type": "bert"}'
CLASSIFIER = b'{"architectures": ["BertForSequenceClassification"], "num_labels": 1}'
LOOKUP_MODULES = json.dumps([{"idx": 0, "path": "", "type": "sentence_transformers.models.StaticEmbedding"}]).encode()


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": MLM, "onnx/model.onnx": b"graph"},
        {"config.json": CLASSIFIER, "onnx/model.onnx": b"graph"},
        {"preprocessor_config.json": b"{}", "config.json": b'{"architectures": ["ViTModel"]}', "model.onnx": b"graph"},
        {"modules.json": LOOKUP_MODULES, "tokenizer.json": b"{}", "model.safetensors": b"weights"},
        files_of(SPARSE_REPOS / "router"),
        files_of(SPARSE_REPOS / "idf"),
    ],
    ids=["sparse", "cross-encoder", "image", "static", "router", "table"],
)
async def test_what_any_class_opens_is_downloaded(files: dict[str, bytes], hub: HubServer) -> None:
    hub.repos["org/some"] = Repo({**files, "README.md": b"not wanted"})
    directory = await asyncembed.download("org/some", progress=False)
    assert isinstance(directory, Path)
    assert names_in(directory) == set(files)


async def test_what_no_class_opens_is_refused_with_each_ones_reason(hub: HubServer) -> None:
    hub.repos["org/decoder"] = Repo(
        {"config.json": b'{"architectures": ["LlamaForCausalLM"]}', "model.safetensors": b"weights"}
    )
    with pytest.raises(UnsupportedModelError) as caught:
        await asyncembed.download("org/decoder", progress=False)
    message = str(caught.value)
    assert all(f"\n{name}: " in message for name in CLASSES.values())
    assert "TextEmbedding: there is no modules.json" in message
    assert "TextCrossEncoder: config.json calls it LlamaForCausalLM" in message
    assert "ImageEmbedding: it has no preprocessor_config.json" in message


async def test_the_folder_of_an_earlier_fastembed_serves_too(hub: HubServer, cache: Path) -> None:
    folder = cache / "fast-bge-small-en"
    folder.mkdir(parents=True)
    (folder / "model_optimized.onnx").write_bytes(b"graph")
    assert await asyncembed.download("BAAI/bge-small-en") == folder
    assert hub.requests == []


async def test_a_repo_that_moved_is_described_and_downloaded_anew(hub: HubServer) -> None:
    old = await asyncembed.download("org/own", progress=False)
    hub.repos["org/own"] = Repo(
        {**SENTENCE_TRANSFORMERS, "onnx/model.onnx": b"better"}, large=frozenset({"onnx/model.onnx"}), commit="e" * 40
    )
    assert await asyncembed.download("org/own", progress=False) == old
    new = await asyncembed.download("org/own", refresh=True, progress=False)
    assert isinstance(new, Path)
    assert (new / "onnx/model.onnx").read_bytes() == b"better"


async def test_several_names_give_a_list_in_their_order(hub: HubServer) -> None:
    found = await asyncembed.download("org/own", CATALOGUED, progress=False)
    assert isinstance(found, list)
    assert [path.parents[1].name.startswith("models--org--own") for path in found] == [True, False]
    hub.requests.clear()
    assert await asyncembed.download("org/own", CATALOGUED, local_files_only=True) == found
    assert hub.requests == []


async def test_patterns_decide_instead() -> None:
    directory = await asyncembed.download("org/own", patterns=["*.bin"], progress=False)
    assert isinstance(directory, Path)
    assert names_in(directory) == {"pytorch_model.bin"}


async def test_what_cannot_be_had_is_told() -> None:
    with pytest.raises(RepoNotFoundError, match="org/absent"):
        await asyncembed.download("org/own", "org/absent", progress=False)
    with pytest.raises(NotCachedError):
        await asyncembed.download("org/unknown", local_files_only=True)
    with pytest.raises(OptionError):
        await asyncembed.download()
    with pytest.raises(OptionError, match="sequence"):
        await asyncembed.download("org/own", patterns="*.json")


async def test_a_repo_that_says_too_little_is_told(hub: HubServer) -> None:
    hub.repos["org/bare"] = Repo({"config.json": b'{"model_type": "bert"}', "weights.bin": b"x"})
    with pytest.raises(UnsupportedModelError):
        await asyncembed.download("org/bare", progress=False)


async def test_a_repo_describes_itself_offline_too(hub: HubServer) -> None:
    spec, _ = await download_repo("org/own", HubAccess(progress=False), families=("text",))
    assert (spec.model_file, spec.pooling, spec.max_length) == ("onnx/model.onnx", "mean", 256)
    await asyncembed.download("org/own", progress=False)
    hub.requests.clear()
    offline = HubAccess(local_files_only=True)
    assert (await download_repo("org/own", offline, families=("text",)))[0] == spec
    assert hub.requests == []


def run(hub: HubServer, home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "asyncembed", *arguments]
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", check=False, env=environment(hub, home, **variables)
    )


def environment(hub: HubServer, home: Path, **variables: str) -> dict[str, str]:
    return os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "*",
        **variables,
    }


def test_the_shell_prints_the_directory_of_each(hub: HubServer, tmp_path: Path) -> None:
    done = run(hub, tmp_path, "download", "org/own", CATALOGUED)
    assert done.returncode == 0, done.stderr
    first, second = map(Path, done.stdout.split())
    assert (first / "onnx/model.onnx").is_file()
    assert any(second.glob("*.onnx"))
    assert "org/own" not in done.stderr  # no terminal, no bar


def test_the_shell_says_in_a_sentence_what_is_wrong(hub: HubServer, tmp_path: Path) -> None:
    done = run(hub, tmp_path, "download", "org/absent")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the hub shows no repo 'org/absent'")
    assert "Traceback" not in done.stderr
    assert run(hub, tmp_path, "download", "org/own", HF_HUB_OFFLINE="1").returncode == 1


def test_the_catalogue_is_a_table_or_json(hub: HubServer, tmp_path: Path) -> None:
    table = run(hub, tmp_path, "models").stdout
    assert table.splitlines()[0].split() == ["NAME", "FAMILY", "LANGUAGES", "LIMIT", "DIM", "GB", "LICENSE"]
    assert CATALOGUED in table
    specs = json.loads(run(hub, tmp_path, "models", "--json", "--family", "sparse").stdout)
    assert {spec["family"] for spec in specs} == {"sparse"}


@pytest.mark.posix
@pytest.mark.parametrize(
    ("variables", "arguments", "has_bar"),
    [({}, (), True), ({"HF_HUB_DISABLE_PROGRESS_BARS": "1"}, (), False), ({}, ("--quiet",), False)],
)
def test_a_terminal_gets_one_bar(
    variables: dict[str, str], arguments: tuple[str, ...], has_bar: bool, hub: HubServer, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "asyncembed", "download", "org/own", "--pattern=*.json", *arguments]
    shown = posix.shown_in_terminal(command, env=environment(hub, tmp_path, **variables))
    assert (b"org/own: 100%" in shown) == has_bar
    assert shown == b"" or has_bar


IMPORT_LIGHT = """
import sys, asyncembed, asyncembed.hub, multiprocessing.context
heavy = {"httpx", "httpcore", "onnxruntime", "PIL", "tqdm", "huggingface_hub.utils", "huggingface_hub.file_download"}
sys.exit(", ".join(sorted(heavy & set(sys.modules))) or None)
"""


def test_importing_the_hub_loads_no_client() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_LIGHT], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr


CACHED = """
import sys, anyio
from pathlib import Path
from asyncembed.catalogue.spec import HubOrigin
from asyncembed.hub import HubAccess, download_files
anyio.run(lambda: download_files([HubOrigin("org/own")], HubAccess(cache_dir=sys.argv[1]), patterns=["*.json"]))
heavy = {"httpx", "huggingface_hub.utils", "huggingface_hub.file_download"}
sys.exit(", ".join(sorted(heavy & set(sys.modules))) or None)
"""


async def test_a_cached_model_loads_no_client_either(tmp_path: Path) -> None:
    await asyncembed.download("org/own", patterns=["*.json"], cache_dir=tmp_path, progress=False)
    done = await run_process([sys.executable, "-c", CACHED, str(tmp_path)], check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [3, None, b"org/own", ["org/own"]])
async def test_a_name_that_is_no_text_is_told(name: object) -> None:
    with pytest.raises(OptionError, match="names are"):
        await asyncembed.download("org/own", name, progress=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["no such thing", "", "a/b/c", "../x", "org/\ud800", "org/" + "x" * 5000])
async def test_a_name_that_no_repo_has_is_told(name: str, hub: HubServer) -> None:
    with pytest.raises(OptionError, match="no repo id"):
        await asyncembed.download(name, progress=False)
    assert hub.requests == []


class OwnError(Exception):
    """Of a caller's callback."""


@pytest.mark.parametrize("error", [OwnError("enough"), BrokenPipeError("gone"), NotCachedError("mine"), TimeoutError()])
@pytest.mark.parametrize("names", [["org/own"], ["org/own", CATALOGUED]])
async def test_what_a_callback_raises_ends_the_download_as_it_is(error: Exception, names: list[str]) -> None:
    """Whatever it is: it is no failure of the hub or of the disk, and no group of errors."""

    def complain(event: object) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        await asyncembed.download(*names, progress=complain)
    assert caught.value is error


async def test_what_a_callback_raises_late_ends_the_download_as_it_is() -> None:
    """In one of the tasks that fetch files at once."""
    error = OSError("no window")

    def complain(event: object) -> None:
        if isinstance(event, FileFinished):
            raise error

    with pytest.raises(OSError, match="no window") as caught:
        await asyncembed.download("org/own", progress=complain)
    assert caught.value is error


async def test_fakes_have_no_files_so_nobody_is_asked_for_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with fake_models():
        directory = await download("nosuch/model")
        assert isinstance(directory, Path)
        assert list(directory.iterdir()) == []
        assert await download("nosuch/model", "BAAI/bge-small-en-v1.5", refresh=True) == [directory] * 2
        with pytest.raises(OptionError, match="name at least one"):
            await download()
