"""The tests that concern other packages' files, run again with other versions of these packages.

The environment of the suite also holds fastembed, which keeps huggingface_hub at 1.x, and the newest onnxruntime, which
reads weights that earlier ones refuse. The other ends of both get an environment of their own, made by uv.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # makes an environment first, and may download it

ROOT = Path(__file__).parents[2]
PACKAGES = (
    *("huggingface-hub>=2.4,<3", "onnxruntime==1.24.2", "onnx>=1.17"),
    *("hypothesis>=6.150", "psutil>=7", "pytest>=9", "pytest-timeout>=2.4", "trio>=0.31"),
)
TESTS = ("tests/hub/test_interop.py", "tests/runtime/test_loadable_path.py")
SHOW_VERSIONS = "import huggingface_hub as h, onnxruntime as o; print('versions', h.__version__, o.__version__)"


def test_newest_huggingface_hub_and_oldest_onnxruntime() -> None:
    """The cache is shared with huggingface_hub 2.x, and what lies in it loads with onnxruntime 1.24.2."""
    uv = os.environ.get("UV") or shutil.which("uv")
    assert uv is not None, "run the tests with uv"
    command = [
        *(uv, "run", "--isolated", "--no-project", "--python", sys.executable),
        *(f"--with={package}" for package in PACKAGES),
        f"--with-editable={ROOT}",
        *("python", "-c"),
        f"{SHOW_VERSIONS}; import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))",
        # The event loop makes no difference to what lies on disk: one of the two will do.
        *("-q", "-p", "no:cacheprovider", "-k", "not trio and not openvino", *TESTS),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"versions 2\.\S+ 1\.24\.2", done.stdout)
    assert re.search(r"\d+ passed", done.stdout)
