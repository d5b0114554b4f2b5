import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from fastembed.common.preprocessor_utils import load_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from asyncembed.encoders.encoder import Call
from asyncembed.encoders.tokenization import TextTokenizer, Tokenized
from asyncembed.errors import ModelLoadError, OptionError, UnsupportedModelError
from tests.support.models import TEXTS
from tests.support.tokenizers import WORDS, byte_level_bpe, unigram, wordpiece, write_tokenizer


def lengths(done: Tokenized) -> list[int]:
    return [len(encoding) for encoding in done.values]


KINDS: dict[str, tuple[Tokenizer, dict[str, Any]]] = {
    "wordpiece": (wordpiece(), {}),
    "bpe": (byte_level_bpe(), {"pad_token": "<pad>"}),
    "unigram": (unigram(), {"pad_token": "<pad>"}),
    "left": (byte_level_bpe(), {"pad_token": "<pad>", "padding_side": "left", "truncation_side": "left"}),
    "new pad token": (
        wordpiece(),
        {
            "pad_token": "<extra>",
            "special_tokens": {"more": ["<extra>", {"content": "<other>", "lstrip": True}]},
        },
    ),
    "two limits": (wordpiece(), {"limit": 12, "max_length": 9}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_masks_and_special_tokens_are_those_of_fastembed(kind: str, tmp_path: Path) -> None:
    tokenizer, options = KINDS[kind]
    write_tokenizer(tmp_path, tokenizer, **options)
    theirs, their_special_ids = load_tokenizer(tmp_path)
    ours = TextTokenizer(tmp_path)
    ids, mask = ours.pad([encoding.ids for encoding in ours.encode(TEXTS).values])
    expected = theirs.encode_batch(list(TEXTS))
    assert ids.tolist() == [encoding.ids for encoding in expected]
    assert mask.tolist() == [encoding.attention_mask for encoding in expected]
    assert ours.special_ids == their_special_ids


def test_settings_stored_in_the_tokenizer_count_where_the_config_is_silent(tmp_path: Path) -> None:
    tokenizer = wordpiece()
    tokenizer.enable_truncation(5, direction="left")
    tokenizer.enable_padding(direction="left", pad_id=0, pad_token="[PAD]", pad_to_multiple_of=8, length=128)
    write_tokenizer(tmp_path, tokenizer, limit=12)
    theirs, _ = load_tokenizer(tmp_path)
    ours = TextTokenizer(tmp_path)
    ids, _ = ours.pad([encoding.ids for encoding in ours.encode(TEXTS).values])
    assert ids.tolist() == [encoding.ids for encoding in theirs.encode_batch(list(TEXTS))]
    assert ids.shape[1] == 16


@pytest.mark.parametrize("limit", [None, 512.0, 10**30, 0, True])
def test_a_limit_that_is_none_must_be_given(limit: int | float | None, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, wordpiece(), limit=limit)
    with pytest.raises(UnsupportedModelError, match="max_length="):
        TextTokenizer(tmp_path)
    assert lengths(TextTokenizer(tmp_path, max_length=7).encode([TEXTS[3]])) == [7]


def test_a_limit_without_room_for_text_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, wordpiece())
    with pytest.raises(OptionError, match="max_length=2"):
        TextTokenizer(tmp_path, max_length=2)


def test_missing_and_broken_files_say_so(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.json"):
        TextTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json"):
        TextTokenizer(tmp_path)


def test_without_a_pad_token_the_model_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, wordpiece(), special_tokens={"mask_token": "[MASK]"})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 8}), encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match="pad_token"):
        TextTokenizer(tmp_path)


def test_a_pad_token_may_be_an_object(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, wordpiece())
    config = {"model_max_length": 8, "pad_token": {"content": "[MASK]", "lstrip": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert TextTokenizer(tmp_path).pad_id == wordpiece().token_to_id("[MASK]")


def test_unusable_inputs_fail_alone(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, wordpiece())
    done = TextTokenizer(tmp_path).encode(["one", None, "a\ud800b", b"one", ("a", "b"), "two", "nul\0nul"])
    assert done.positions == [0, 5, 6]
    assert len(done.values) == 3
    assert {position: str(error) for position, error in done.failures.items()} == {
        1: "expected a string, got NoneType",
        2: "not valid Unicode: a lone surrogate (U+D800) at character 1",
        3: "expected a string, got bytes",
        4: "expected a string, got tuple",
    }


def test_texts_over_the_limit_fail_where_cutting_is_forbidden(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, wordpiece(), limit=8)
    texts = ["the the the the the the", "the the the the the the the", "the " * 5000, "the"]
    done = TextTokenizer(tmp_path).encode(texts, long="error")
    assert done.positions == [0, 3]
    assert lengths(done) == [8, 3]
    assert set(done.failures) == {1, 2}
    assert "limit of 8 tokens" in str(done.failures[1])


def test_pairs_share_the_limit_and_keep_their_types(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, wordpiece(), limit=8)
    done = TextTokenizer(tmp_path).encode_pairs([("the a", "of and to in is"), ("the", 3), "the", ("", "\udfff")])
    assert done.values[0].type_ids == [0, 0, 0, 0, 1, 1, 1, 1]
    assert list(done.failures) == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_whole_texts_are_counted_as_the_library_counts_them(kind: str, tmp_path: Path) -> None:
    """Whatever their length, with the prompt, and pairs likewise; the cut ones are no more than the limit."""
    tokenizer, options = KINDS[kind]
    write_tokenizer(tmp_path, tokenizer, **options)
    theirs, _ = load_tokenizer(tmp_path)
    theirs.no_truncation()
    theirs.no_padding()
    ours = TextTokenizer(tmp_path)
    texts = [*TEXTS, "they said that there was a way, " * 10_000, "x" * 1000, 3]
    whole = Call(mode="count", prompt="how many: ", truncated=False, long="error")
    counts = ours.count(texts, whole)
    assert counts.failures.keys() == {len(texts) - 1}
    assert counts.values == [len(theirs.encode(f"how many: {text}")) for text in texts[:-1]]
    assert ours.count(texts, Call(mode="count", prompt="how many: ")).values == [
        min(count, ours.limit) for count in counts.values
    ]
    pairs = list(zip(texts[:-1], TEXTS, strict=False))
    assert ours.count_pairs(pairs, whole).values == [len(theirs.encode(*pair)) for pair in pairs]


def test_letters_keep_their_case_unless_asked(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, byte_level_bpe(), pad_token="<pad>")
    plain = TextTokenizer(tmp_path).encode(["The WAY"]).values[0]
    changed = TextTokenizer(tmp_path, lower_case=True).encode(["The WAY"]).values[0]
    assert changed.ids == TextTokenizer(tmp_path).encode(["the way"]).values[0].ids
    assert plain.ids != changed.ids


def test_the_length_of_a_prefix_excludes_the_closing_token(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, wordpiece())
    tokenizer = TextTokenizer(tmp_path)
    assert tokenizer.prefix_length("the way ") == 3
    with_prefix = tokenizer.encode(["they"], prefix="the way ").values[0].ids
    assert with_prefix == tokenizer.encode(["the way they"]).values[0].ids


SEPARATORS = st.sampled_from(
    [" ", "  ", "\n", "\t", "\u00a0", "\u3000", " \n ", "", "-", "\u0301", " \u0301", "\u200b"]
)
PIECES = st.sampled_from([*WORDS[:20], "[MASK]", "<mask>", "ﬁ", "e\u0301", "\u00c5", "日本", "x" * 120, "12", "..."])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_cutting_a_long_text_early_changes_no_token(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer, options = KINDS[kind]
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory, tokenizer, limit=6, **options)
    ours = TextTokenizer(directory)
    reference, _ = load_tokenizer(directory)
    reference.no_padding()
    assert ours._cuts_early

    @given(st.lists(st.tuples(PIECES, SEPARATORS), min_size=15, max_size=60))
    def check(parts: list[tuple[str, str]]) -> None:
        text = "".join(piece + separator for piece, separator in parts)
        assert ours.encode([text]).values[0].ids == reference.encode(text).ids

    check()


def test_a_tokenizer_that_may_look_ahead_gets_the_whole_text(tmp_path: Path) -> None:
    ids = {"[PAD]": 0, "[UNK]": 1, **{word: number for number, word in enumerate(WORDS, start=2)}}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("the way", "isolated")
    write_tokenizer(tmp_path, tokenizer)
    assert not TextTokenizer(tmp_path)._cuts_early


@pytest.mark.parametrize("wanted", [None, 16, 14])
@pytest.mark.parametrize("limit", [16, 100, 10**9])
def test_no_limit_exceeds_the_positions_of_the_model(limit: int, wanted: int | None, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, wordpiece(), limit=limit)
    config = {"model_type": "roberta", "max_position_embeddings": 16}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert lengths(TextTokenizer(tmp_path, max_length=wanted).encode(["the " * 50])) == [14]
    # A marker of the encoder's own takes a position, too.
    assert TextTokenizer(tmp_path, max_length=wanted, extra=1).limit == 13
    assert TextTokenizer(tmp_path, max_length=12).limit == 12


RUNS = st.sampled_from(
    [
        *WORDS[:12], "日本", "中文", "東", "。", "\uff0c", "ひらがな", "한국어", "x" * 30, "ab1", "!?", "'re", "'", "é",
        "ß", "[MASK]", "<mask>", "\u0301", "ﬁ", "\u0e33", "\u200b", "\x00", " ", "the way",
    ]
)  # fmt: skip
LONG_KINDS = {**KINDS, "plain unigram": (unigram(), {"pad_token": "<pad>"})}
LONG_KINDS["plain unigram"][0].pre_tokenizer = pre_tokenizers.Metaspace(split=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram", "plain unigram"])
def test_cutting_a_run_without_spaces_changes_no_token(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer, options = LONG_KINDS[kind]
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory, tokenizer, limit=6, **options)
    ours = TextTokenizer(directory)
    reference, _ = load_tokenizer(directory)
    reference.no_padding()
    assert ours._cutter.within_runs
    was_cut = False

    @given(st.lists(RUNS, min_size=40, max_size=120))
    def check(parts: list[str]) -> None:
        nonlocal was_cut
        text = "".join(parts)
        was_cut |= len(ours.start_of(text)) < len(text)
        done = ours.encode([text])
        assert done.values[0].ids == reference.encode(text).ids
        assert bool(done.values[0].overflowing) == bool(reference.encode(text).overflowing)

    check()
    assert was_cut


WITHIN = st.tuples(
    st.sampled_from(
        [
            "x",
            "É",
            "İ",
            "क",
            "ि",
            "가",
            "😀",
            "\u0301",
            "\u200d",
            "\0",
            "_",
            "!",
            " ",
            "\t",
            "\u3000",
            "中",
            "[MASK]",
            "[mask]",
            "the",
        ]
    ),
    st.sampled_from([1, 2, 300, 700]),
)


@given(st.lists(WITHIN, min_size=1, max_size=6))
def test_a_word_that_is_too_long_to_be_known_and_a_long_gap_are_the_same_without_their_middles(
    parts: list[tuple[str, int]],
) -> None:
    ours = middles()
    text = "".join(part * count for part, count in parts)
    shortened = ours._cutter.shortened(text)
    assert ours.ids_within(shortened) == ours.ids_within(text)
    if any(part in ("x", " ", "\t", "\u3000") and count == 700 for part, count in parts):
        assert len(shortened) < len(text)


@cache
def middles() -> TextTokenizer:
    with TemporaryDirectory() as directory:
        write_tokenizer(Path(directory), wordpiece(), limit=10_000)
        return TextTokenizer(Path(directory))


@pytest.mark.parametrize(
    "word", ["x" * 3_000_000, "the " * 40 + "é" * 3_000_000 + " way", "the" + " " * 3_000_000 + "way"]
)
def test_of_a_word_and_a_gap_of_megabytes_only_the_ends_are_tokenized(word: str) -> None:
    seen: list[str] = []
    ours = middles().limited(64)

    def encode(texts: list[str]) -> list[list[int]]:
        seen.extend(texts)
        return [ours.ids_within(text) for text in texts]

    (ids,) = ours.filled([word], encode, lambda ids: len(ids) >= 64)
    assert ids[-1] in (ours.vocabulary["way"], ours.vocabulary["[UNK]"])
    assert max(map(len, seen)) < 5000


@pytest.mark.parametrize("kind", LONG_KINDS)
def test_a_gap_of_a_thousand_blanks_after_a_word_is_passed(kind: str, tmp_path: Path) -> None:
    """The one place near the limit where a cut is safe is the same one however much is looked at."""
    tokenizer, options = LONG_KINDS[kind]
    write_tokenizer(tmp_path, tokenizer, **{**options, "limit": 32})
    ours = TextTokenizer(tmp_path)
    reference, _ = load_tokenizer(tmp_path)
    reference.no_padding()
    for gap in (" ", "\n", " \t"):
        text = f"the{gap * 1000}way"
        assert ours.encode([text]).values[0].ids == reference.encode(text).ids
        assert ours.encode_pairs([(text, "the")]).values[0].ids == reference.encode(text, "the").ids


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram", "plain unigram"])
@pytest.mark.parametrize("piece", ["the, way。", "日本 the", "aGVsbG8+", "中文the"])
def test_of_megabytes_without_a_space_only_the_beginning_is_tokenized(kind: str, piece: str, tmp_path: Path) -> None:
    tokenizer, options = LONG_KINDS[kind]
    write_tokenizer(tmp_path, tokenizer, limit=32, **options)
    ours = TextTokenizer(tmp_path)
    text = piece * (2**18 // len(piece))
    start = ours.start_of(text)
    assert len(start) < 20_000
    assert ours.encode([text]).values[0].ids == ours.encode([text[: 4 * len(start)]]).values[0].ids
    assert lengths(ours.encode([text])) == [32]
    assert [len(part) < 50_000 for part in ours._starts_of_pair((text, text + piece))] == [True, True]


def test_a_pair_of_which_a_cut_lies_in_a_long_word_is_that_of_the_library(tmp_path: Path) -> None:
    """The word is one token, and its beginning is many: the other text is never the longer one by the count."""
    tokenizer, options = KINDS["wordpiece"]
    write_tokenizer(tmp_path, tokenizer, limit=10, **options)
    reference, _ = load_tokenizer(tmp_path)
    reference.no_padding()
    beginning = "of\tÅ his \n [MASK]is\t日本<mask>\n[MASK]\t"
    middle = "his with \u030112-of \n be\tfor [MASK]\tfor you\n[MASK]  that-that\u3000"
    first, second = beginning + middle + 101 * "x", beginning + 150 * "x"
    assert TextTokenizer(tmp_path).encode_pairs([(first, second)]).values[0].ids == reference.encode(first, second).ids


@pytest.mark.slow
@pytest.mark.parametrize("limit", [9, 10])
@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_pairs_are_those_of_the_library_however_long_their_texts_are(
    kind: str, limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokenizer, options = KINDS[kind]
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory, tokenizer, limit=limit, **options)
    ours = TextTokenizer(directory)
    reference, _ = load_tokenizer(directory)
    reference.no_padding()
    were_cut = False
    # Not longer: the library's own time grows with the product of the two lengths.
    runs = st.lists(RUNS, max_size=15) | st.lists(RUNS, min_size=40, max_size=45)
    words = st.lists(st.tuples(PIECES, SEPARATORS).map("".join), min_size=25, max_size=28)
    text = (runs | words).map("".join)

    @settings(max_examples=25)
    @given(text, text)
    @example("the way " * 60, "of and " * 60)  # long enough to be cut, which those drawn at random may not be
    def check(first: str, second: str) -> None:
        nonlocal were_cut
        were_cut |= ours._starts_of_pair((first, second)) != (first, second)
        (encoding,) = ours.encode_pairs([(first, second)]).values
        expected = reference.encode(first, second)
        assert encoding.ids == expected.ids
        assert encoding.type_ids == expected.type_ids
        assert bool(encoding.overflowing) == bool(expected.overflowing)

    check()
    assert were_cut


def test_a_replacement_that_doubles_again_and_again_is_refused(tmp_path: Path) -> None:
    doubling = [normalizers.Replace("a", "aa")] * 30
    for rules in (doubling, [normalizers.Replace("a", "b" * 20_000)], [normalizers.Prepend("b" * 20_000)]):
        tokenizer = wordpiece()
        tokenizer.normalizer = normalizers.Sequence(rules)
        write_tokenizer(tmp_path, tokenizer)
        with pytest.raises(UnsupportedModelError, match="64 times as long"):
            TextTokenizer(tmp_path)
    # Each of these has its own letter.
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(mark, f" {mark} ") for mark in "!?.,;:()[]"])
    write_tokenizer(tmp_path, tokenizer)
    assert lengths(TextTokenizer(tmp_path).encode(["the!way"])) == [5]


@pytest.mark.parametrize("kind", KINDS)
def test_windows_have_all_tokens_of_a_text_once_and_in_order(kind: str, tmp_path: Path) -> None:
    tokenizer, options = KINDS[kind]
    write_tokenizer(tmp_path, tokenizer, **options)
    ours = TextTokenizer(tmp_path)
    text = " ".join(WORDS) * 30
    windows = ours.windows(text)
    assert all(len(ids) == ours.limit for ids in windows[:-1])
    assert 0 < len(windows[-1]) <= ours.limit
    (empty,) = ours.encode([""]).values
    start = ours.prefix_length("")
    end = len(empty) - start
    assert [ids[:start] + ids[len(ids) - end :] for ids in windows] == [empty.ids] * len(windows)
    assert [id_ for ids in windows for id_ in ids[start : len(ids) - end]] == ours.whole_ids(text)
