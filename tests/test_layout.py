"""The map of the package is right: the layout in `asyncembed` and in the README names what is there, and all of it."""

import re
from pathlib import Path

import asyncembed
from tests.test_public_names import INTEGRATIONS, PUBLIC_MODULES

PACKAGE = Path(asyncembed.__file__).parent
README = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")

MODULES = {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("[!_]*.py")}
FOLDERS = {path.parent.name for path in PACKAGE.rglob("[!_]*.py")} - {PACKAGE.name}


def comment() -> list[str]:
    lines = (PACKAGE / "__init__.py").read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("# The layout."))
    return [line for line in lines[start:] if line.startswith("#")]


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_layout_comment_names_every_module_and_is_one_screen() -> None:
    named, folder = set[str](), ""
    for line in comment():
        if start := re.match(r"#   (\w+)/  ", line):
            folder = f"{start[1]}/"
        elif re.match(r"#   \w", line):
            folder = ""
        named |= {folder + word for word in re.findall(r"\w+", line)}
    left_out = {module for module in MODULES if module not in named and "_pyinstaller" not in module}
    assert not left_out
    assert len(comment()) <= 62


def test_the_drawings_name_modules_that_are_there() -> None:
    drawn = set(re.findall(rf"\b((?:{'|'.join(FOLDERS)})/\w+)", "\n".join(comment())))
    way = section("Layout").partition("A text goes, ")[2].partition(".\n")[0]
    drawn |= set(re.findall(r"`([a-z_]+(?:/[a-z_]+)?)`", way))
    assert "stream" in drawn
    assert drawn <= MODULES


def test_the_readme_says_which_modules_are_public() -> None:
    sentence = section("Layout").partition("Public are ")[2].partition(". ")[0]
    assert set(re.findall(r"`(asyncembed[.\w]*)`", sentence.partition("\n\n")[0])) == {
        "asyncembed.integrations" if module in INTEGRATIONS else module for module in PUBLIC_MODULES
    }


def test_the_readme_describes_every_folder() -> None:
    described = set(re.findall(r"^\| `(\w+)/` \|", section("Layout"), re.MULTILINE))
    assert described == {folder for folder in FOLDERS if not folder.startswith(("_", "rthooks"))}


def test_files_that_the_readme_names_are_there() -> None:
    for name in re.findall(r"`((?:asyncembed|tests|examples|benchmarks)/[\w./]+)`", README):
        assert (PACKAGE.parent / name).exists(), name


def test_the_changes_begin_with_this_version() -> None:
    newest = re.search(r"^### ([\d.]+)$", section("Changes"), re.MULTILINE)
    assert newest is not None
    assert asyncembed.__version__.startswith(newest[1])
