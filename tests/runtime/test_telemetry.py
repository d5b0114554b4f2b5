"""What onnxruntime means to report it keeps in the user's folder: without such a folder, nothing is reported."""

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support import programs
from tests.support.models import write_model

pytestmark = pytest.mark.slow

# Where it takes a machine for one that builds software, onnxruntime reports nothing at all.
BUILD_MACHINE_VARIABLES = (
    *("APPVEYOR", "BITBUCKET_BUILD_NUMBER", "BUILDKITE", "CI", "CIRCLECI", "CODEBUILD_BUILD_ID", "GITHUB_ACTIONS"),
    *("GITLAB_CI", "JENKINS_URL", "TEAMCITY_VERSION", "TF_BUILD", "TRAVIS"),
)

HAS_TELEMETRY = tuple(map(int, version("onnxruntime").split(".")[:2])) >= (1, 29)

PROGRAM = """
import os, sys
import anyio
from pathlib import Path
from asyncembed.embedders.text import TextEmbedding
from tests.support.models import spec_for

os.environ["HOME"] = os.environ["USERPROFILE"] = sys.argv[2]
os.environ.pop("ORT_DISABLE_TELEMETRY", None)
if sys.argv[4] != "unset":
    os.environ["ORT_DISABLE_TELEMETRY"] = sys.argv[4]

async def main():
    spec = spec_for(Path(sys.argv[1]), pooling="mean")
    async with TextEmbedding(spec, model_path=sys.argv[1], workers=int(sys.argv[3]), device="cpu") as model:
        await model.embed_query("the way")
    print(os.environ.get("ORT_DISABLE_TELEMETRY", "unset"))

anyio.run(main)
"""


@pytest.fixture(autouse=True)
def no_build_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in BUILD_MACHINE_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def report_files(tmp_path: Path, workers: int, setting: str) -> tuple[list[Path], str]:
    """What onnxruntime left in a new home, and the variable in the program afterwards."""
    home = tmp_path / "home"
    home.mkdir()
    done = programs.run(PROGRAM, tmp_path, str(write_model(tmp_path / "model")), str(home), str(workers), setting)
    assert done.returncode == 0, done.stderr
    return [path for path in home.rglob("*") if "onnxruntime" in path.name], done.stdout.strip()


@pytest.mark.parametrize("workers", [0, 1])
def test_onnxruntime_reports_to_nobody(workers: int, tmp_path: Path) -> None:
    files, _ = report_files(tmp_path, workers, "unset")
    assert files == []


@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_user_has_set_stays(workers: int, tmp_path: Path) -> None:
    files, setting = report_files(tmp_path, workers, "0")
    assert setting == "0"
    if sys.platform == "linux" and HAS_TELEMETRY:
        assert files, "onnxruntime keeps no reports here, so that the other test shows nothing"


def test_the_users_own_process_is_left_alone_where_it_does_not_load_onnxruntime(tmp_path: Path) -> None:
    _, setting = report_files(tmp_path, 1, "unset")
    assert setting == "unset"
