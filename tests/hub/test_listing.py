"""Which files of a listing are meant."""

from huggingface_hub.utils import filter_repo_objects
from hypothesis import given
from hypothesis import strategies as st

from asyncembed.hub.listing import Wanted
from asyncembed.repo_files import is_commit

PARTS = st.sampled_from(["onnx", "model.onnx", "config.json", "1_Pooling", "a b", "*", "?", ".json", "model"])
PATHS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)
PATTERNS = st.lists(st.one_of(PATHS, st.sampled_from(["*.json", "onnx/", "onnx/*", "*/config.json", "*", "[mc]*"])))


@given(PATHS, PATTERNS)
def test_globs_mean_what_they_mean_to_huggingface_hub(path: str, patterns: list[str]) -> None:
    theirs = list(filter_repo_objects([path], allow_patterns=patterns))
    assert Wanted(tuple(patterns)).matches(path) == bool(theirs)


def test_a_required_path_is_no_glob() -> None:
    assert Wanted((), ("a[1].json",)).matches("a[1].json")
    assert not Wanted((), ("*.json",)).matches("a.json")


def test_only_a_full_hash_is_a_commit() -> None:
    assert is_commit("0" * 40)
    assert not any(map(is_commit, ["0" * 39, "0" * 41, "0" * 39 + "G", "main", "0" * 40 + "\n"]))
