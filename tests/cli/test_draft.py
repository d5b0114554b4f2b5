"""Drafts: what a process leaves that was killed, and what the next one makes of it."""

import json
from pathlib import Path
from threading import Event, Thread

import pytest

from asyncembed.cli.draft import Draft, Mark, about_file
from asyncembed.errors import OptionError
from tests.support.posix import make_pipe

ORIGIN = {"model": "m"}


def begun(target: Path) -> None:
    """A draft with a header and a record, of a process that was killed while it wrote the next one."""
    with Draft(target) as draft:
        draft.begin(ORIGIN, b"head ")
        draft.append(b"one ", b"a failure ")
        draft.commit(Mark(read=2, written=1, size_bytes=9, failed_bytes=10))
        draft.append(b"tw")
    with (draft.folder / "journal").open("ab") as journal:
        journal.write(b'{"read": 4, "writ')


def test_what_the_journal_does_not_speak_of_is_cut_off(tmp_path: Path) -> None:
    target = tmp_path / "out"
    begun(target)
    with Draft(target) as draft:
        assert draft.origin == ORIGIN
        draft.resume()
        assert draft.mark == Mark(read=2, written=1, size_bytes=9, failed_bytes=10)
        assert (draft.data.read_bytes(), draft.failed.read_bytes()) == (b"head one ", b"a failure ")
        draft.append(b"two")
        draft.commit(Mark(read=3, written=2, size_bytes=12, failed_bytes=10, is_whole=True))
        assert not target.exists()
        draft.publish(draft.data, b"about", tmp_path / "failed")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "out": b"head one two",
        "out.meta.json": b"about",
        "failed": b"a failure ",
    }


def test_one_of_which_nothing_is_certain_is_none(tmp_path: Path) -> None:
    with Draft(tmp_path / "out") as draft:
        draft.begin(ORIGIN, b"head")
    for line in (b"", b'{"version": 1', b'{"version": 1, "origin": {}}\n', b'{"version": 1, "origin": {}}\n{"re'):
        (draft.folder / "journal").write_bytes(line)
        with Draft(tmp_path / "out") as again:
            assert again.origin is None
    (draft.folder / "journal").unlink()
    with Draft(tmp_path / "out") as again:
        assert again.origin is None
    assert not draft.folder.exists()


def test_beginning_anew_leaves_nothing_of_what_was_there(tmp_path: Path) -> None:
    begun(tmp_path / "out")
    with Draft(tmp_path / "out") as draft:
        draft.begin({"model": "other"}, b"")
        assert draft.origin == {"model": "other"}
        assert (draft.mark, draft.data.read_bytes(), draft.failed.read_bytes()) == (Mark(), b"", b"")


def test_publishing_may_be_interrupted_after_the_file_is_there(tmp_path: Path) -> None:
    target = tmp_path / "out"
    begun(target)
    with Draft(target) as draft:
        draft.resume()
        draft.commit(Mark(read=2, written=1, size_bytes=9, failed_bytes=10, is_whole=True))
    draft.data.replace(target)
    about_file(target).write_bytes(b"about")
    with Draft(target) as again:
        again.resume()
        again.publish(again.data, b"about", None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.meta.json"]
    assert target.read_bytes().startswith(b"head one ")


def test_an_older_file_goes_together_with_what_was_said_about_it(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"older")
    about_file(target).write_bytes(b"about the older one")
    begun(target)
    assert target.read_bytes() == b"older"
    with Draft(target) as draft:
        draft.resume()
        draft.publish(draft.data, None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_cannot_write_the_same(tmp_path: Path) -> None:
    with Draft(tmp_path / "out"):
        with pytest.raises(OptionError, match="is being written by another process"):
            with Draft(tmp_path / "out"):
                pass


def test_who_begins_while_another_ends_has_all_of_it_or_is_told(tmp_path: Path) -> None:
    """Either it has a draft of its own, whose files are there, or it is told that another process is not done yet."""
    problems: list[str] = []
    end = Event()

    def write_again_and_again() -> None:
        while not end.is_set():
            try:
                with Draft(tmp_path / "out") as draft:
                    draft.begin(ORIGIN, b"head")
                    draft.commit(Mark(size_bytes=4, is_whole=True))
                    draft.publish(draft.data, None, None)
            except OptionError as error:
                if "is being written by another process" not in str(error):
                    problems.append(str(error))
            except OSError as error:
                problems.append(repr(error))

    writers = [Thread(target=write_again_and_again) for _ in range(3)]
    for writer in writers:
        writer.start()
    end.wait(0.5)
    end.set()
    for writer in writers:
        writer.join()
    assert not problems
    with Draft(tmp_path / "out") as draft:
        assert draft.origin is None, "at most the lock is left, of one who was told"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_version_is_not_gone_on_with(tmp_path: Path) -> None:
    begun(tmp_path / "out")
    journal = tmp_path / "out.partial/journal"
    first, *others = journal.read_bytes().splitlines()
    journal.write_bytes(b"\n".join([json.dumps({**json.loads(first), "version": 0}).encode(), *others]))
    with Draft(tmp_path / "out") as draft, pytest.raises(OptionError, match="another version"):
        draft.resume()


HEAD = b'{"version": 1, "origin": {"model": "m"}}\n'


@pytest.mark.parametrize(
    "journal",
    [
        b"no JSON\nno JSON\n",
        b"[]\n[]\n",
        b"\xff\n\n",
        100_000 * b"[" + b"\n{}\n",
        b'{"version": 1}\n{}\n',
        HEAD + b"5\n",
        HEAD + b'{"more": 1}\n',
        HEAD + b'{"size_bytes": -5}\n',
        HEAD + b'{"size_bytes": "5"}\n',
        HEAD + b'{"size_bytes": 5}\n',
        HEAD + b'{"failed_bytes": 1000000000000000}\n',
    ],
)
def test_a_broken_one_is_said_to_be_and_can_be_begun_anew(journal: bytes, tmp_path: Path) -> None:
    begun(tmp_path / "out")
    with Draft(tmp_path / "out") as draft:
        (draft.folder / "journal").write_bytes(journal)
        draft.data.write_bytes(b"less")
        with pytest.raises(OptionError, match="--restart"):
            assert draft.origin is not None
            draft.resume()
        assert draft.data.read_bytes() == b"less"
        draft.begin(ORIGIN, b"head ")
        assert draft.origin == ORIGIN


@pytest.mark.posix
@pytest.mark.parametrize("name", ["", "data", "failed", "journal", "lock", "about", "whole"])
def test_a_link_that_somebody_has_put_there_is_not_written_through(name: str, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    folder = tmp_path / "out.partial"
    if name:
        folder.mkdir()
        kept.write_bytes(b"kept")
    else:
        kept.mkdir()
    (folder / name).symlink_to(kept)
    with pytest.raises(OptionError, match="is a link"), Draft(tmp_path / "out"):
        pass
    if name:  # nor is a pipe waited for
        (folder / name).unlink()
        make_pipe(folder / name)
        with pytest.raises(OptionError, match="or no file"), Draft(tmp_path / "out"):
            pass
    assert kept.is_dir() if not name else kept.read_bytes() == b"kept"


def test_a_file_in_the_place_of_the_folder_is_no_run_of_another_process(tmp_path: Path) -> None:
    (tmp_path / "out.partial").write_bytes(b"kept")
    with pytest.raises(OptionError, match="that a run has left: remove it"), Draft(tmp_path / "out"):
        pass
    assert (tmp_path / "out.partial").read_bytes() == b"kept"


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    thesis = tmp_path / "out.partial" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_bytes(b"years")
    with pytest.raises(OptionError, match=r"thesis\.txt is of no run"), Draft(tmp_path / "out"):
        pass
    assert thesis.read_bytes() == b"years"


@pytest.mark.posix
def test_a_link_in_the_place_of_the_copy_of_what_failed_is_not_written_through(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(b"kept")
    begun(tmp_path / "out")
    with Draft(tmp_path / "out") as draft:
        draft.resume()
        (tmp_path / "failed.jsonl.partial").symlink_to(kept)
        draft.publish(draft.data, None, tmp_path / "failed.jsonl")
    assert kept.read_bytes() == b"kept"
    assert (tmp_path / "failed.jsonl").read_bytes() == b"a failure "
