"""Texts as columns of Arrow."""

from pathlib import Path

import pytest

from asyncembed.cli.record_files import arrow_texts
from tests.support import programs

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "values",
    [[], [""], ["one", "", "zwei und drei: äöü \0 𝄞", "x" * 1000], ["one", None, ""], [None, None]],
    ids=["none", "an empty one", "some", "one missing", "all missing"],
)
def test_texts_become_the_column_that_arrow_makes_of_them(values: list[str | None]) -> None:
    import pyarrow as pa

    found = arrow_texts(values)
    found.validate(full=True)
    assert found.equals(pa.array(values, pa.string()))


def test_half_a_character_is_no_text() -> None:
    with pytest.raises(UnicodeEncodeError):
        arrow_texts(["\ud83d"])


PROGRAM = """
import sys
from click.testing import CliRunner
from asyncembed.cli.commands import main

for source in ("in.txt", "in.csv"):
    done = CliRunner().invoke(main, ["embed", "nosuch/model", source, "-o", f"{source}.parquet"])
    assert done.exit_code == 0, done.output
print("pandas" in sys.modules, "pyarrow" in sys.modules)
"""


def test_texts_are_written_without_pandas_which_arrow_would_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNCEMBED_FAKE", "1")
    (tmp_path / "in.txt").write_text("one\ntwo\n", "utf-8")
    (tmp_path / "in.csv").write_text("id,text\n1,one\n2,two\n", "utf-8")
    done = programs.run(PROGRAM, tmp_path)
    assert done.stdout == "False True\n", done.stderr
