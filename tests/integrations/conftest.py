"""Tests of frameworks that are not installed are not collected; what is needed for which, `frameworks` says."""

from tests.support.frameworks import FRAMEWORKS, is_installed

collect_ignore = [f"test_{name}.py" for name in FRAMEWORKS if not is_installed(name)]
