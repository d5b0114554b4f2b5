"""Where documents are cut, and which tokens go through the model together: with tokenizers of the usual kinds."""

from collections.abc import Iterable, Iterator
from itertools import islice, pairwise, repeat
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncembed.encoders.chunking import MOST_OVERLAPPING, Chunker, ChunkPlan, Piece, Place
from asyncembed.encoders.encoder import TokenWindow
from asyncembed.encoders.tokenization import TextTokenizer
from asyncembed.errors import InputError, OptionError
from tests.support.tokenizers import WORDS, byte_level_bpe, unigram, wordpiece, write_tokenizer

KINDS = {"wordpiece": wordpiece, "byte_level_bpe": byte_level_bpe, "unigram": unigram}
LIMIT = 64


@pytest.fixture(scope="module", params=KINDS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    pad = "[PAD]" if request.param == "wordpiece" else "<pad>"
    write_tokenizer(directory, KINDS[request.param](), pad_token=pad)
    return TextTokenizer(directory, pads=False)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    directory = tmp_path_factory.mktemp("words")
    write_tokenizer(directory, wordpiece())
    return TextTokenizer(directory, pads=False)


def chunker(source: TextTokenizer, *, late: bool = True, limit: int | None = LIMIT, **plan: Any) -> Chunker:
    return Chunker(ChunkPlan(is_late=late, **plan), source, limit, "a/model")


def places(pieces: Iterable[Piece]) -> list[Place]:
    return [place for piece in pieces for place in piece.places]


def all_ids(source: TextTokenizer, text: str) -> list[int]:
    return source._untruncated.encode(text, add_special_tokens=False).ids


PARTS = st.sampled_from(
    ["the", " way", "  ", "\n", "long", "quickly", "你好", "é", "👩‍👩‍👧", "ﬁ", ". ", "\u200b", "\t", "x" * 40]
)
TEXTS = st.lists(PARTS, max_size=60).map("".join)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(text=TEXTS, size=st.integers(1, 30), late=st.booleans(), by=st.sampled_from(["tokens", "sentences"]))
def test_every_character_is_in_a_chunk_and_every_token_in_one(
    source: TextTokenizer, text: str, size: int, late: bool, by: Any
) -> None:
    found = places(chunker(source, late=late, chunk_tokens=size, boundaries=by).pieces(text))
    count = len(all_ids(source, text))
    if not count or not text.strip():
        return
    # Between two there may be tokens of white space alone.
    assert all(after.first >= before.last for before, after in pairwise(found))
    bounds = [0, *(position for place in found for position in place[:2]), len(text)]
    assert bounds == sorted(bounds)
    outside = "".join(text[end:start] for end, start in zip(bounds[::2], bounds[1::2], strict=True))
    assert not outside.replace("\u200b", "").strip() or len(all_ids(source, outside)) == 0
    # A character alone may have more tokens than that.
    assert all(place.last - place.first <= max(size, 28) for place in found)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(text=TEXTS, size=st.integers(1, 40), overlap=st.integers(0, 10), context=st.integers(0, 30))
def test_a_window_holds_the_tokens_of_its_chunks_and_context_before_them(
    source: TextTokenizer, text: str, size: int, overlap: int, context: int
) -> None:
    plan: dict[str, Any] = {"chunk_tokens": size, "overlap": min(overlap, size - 1), "context_tokens": context}
    ids = all_ids(source, text)
    before, behind = source.around()
    room = LIMIT - len(before) - len(behind)
    for number, piece in enumerate(chunker(source, **plan).pieces(text)):
        window = piece.value
        assert isinstance(window, TokenWindow)
        assert len(window.ids) == piece.tokens <= LIMIT
        assert list(window.ids[: len(before)]) == before
        assert list(window.ids[-len(behind) :]) == behind
        for place, (first, last) in zip(piece.places, window.spans, strict=True):
            assert list(window.ids[first:last]) == ids[place.first : place.last][first - last :]
        place = piece.places[0]
        had = window.spans[0][0] - len(before)
        most = max(0, room - (place.last - place.first))
        assert had == (place.first if number == 0 else min(place.first, context, most))


def test_a_document_within_the_limit_is_one_window(source: TextTokenizer) -> None:
    text = "how can you make it long"
    (piece,) = chunker(source, chunk_tokens=2).pieces(text)
    assert isinstance(piece.value, TokenWindow)
    assert list(piece.value.ids) == source.tokenize([text])[0].ids
    assert len(piece.places) > 1


def test_what_a_function_leaves_out_is_context_all_the_same(words: TextTokenizer) -> None:
    text = "how can you make it long"
    (piece,) = chunker(words, boundaries=lambda _: [(4, 7)]).pieces(text)
    assert isinstance(piece.value, TokenWindow)
    assert list(piece.value.ids) == words.tokenize([text])[0].ids
    assert piece.value.spans == [(2, 3)]


def test_plain_pieces_are_the_texts_of_the_chunks(words: TextTokenizer) -> None:
    pieces = list(chunker(words, late=False, chunk_tokens=3).pieces("  how can you make it  long \n"))
    assert [piece.value for piece in pieces] == ["how can you", "make it  long"]
    assert [piece.tokens for piece in pieces] == [5, 5]


def test_a_chunk_ends_with_a_word_where_there_is_one(words: TextTokenizer) -> None:
    text = "they zebra would"  # z ##e ##b ##r ##a
    assert [text[place.start : place.end] for place in places(chunker(words, chunk_tokens=5).pieces(text))] == [
        "they",
        "zebra",
        "would",
    ]
    long = "z" * 70
    found = places(chunker(words, chunk_tokens=32).pieces(long))
    assert [(place.start, place.end) for place in found] == [(0, 32), (32, 64), (64, 70)]


def test_neighbours_overlap_by_whole_words(words: TextTokenizer) -> None:
    text = " ".join(WORDS[:12])
    found = places(chunker(words, chunk_tokens=5, overlap=2).pieces(text))
    assert [(place.first, place.last) for place in found] == [(0, 5), (3, 8), (6, 11), (9, 12)]
    zebras = "zebra " * 4
    found = places(chunker(words, chunk_tokens=10, overlap=7).pieces(zebras))
    assert [(place.first, place.last) for place in found] == [(0, 10), (5, 15), (10, 20)]


def test_sentences_that_fit_together_are_one_chunk_and_a_long_one_is_several(words: TextTokenizer) -> None:
    text = "How can you. Make it. Long.\nThe the the the the the the. See."
    found = places(chunker(words, chunk_tokens=7, boundaries="sentences").pieces(text))
    assert [text[place.start : place.end] for place in found] == [
        "How can you. Make it.",
        "Long.",
        "The the the the the the",
        "the. See.",
    ]
    text = "How can. Make it. Long. See the day."
    found = places(chunker(words, chunk_tokens=8, overlap=5, boundaries="sentences").pieces(text))
    assert [text[place.start : place.end] for place in found] == [
        "How can. Make it. Long.",
        "Long. See the day.",
    ]


def test_a_functions_spans_are_the_chunks_and_those_that_are_too_long_are_cut(words: TextTokenizer) -> None:
    text = "how can you make it long"
    found = places(chunker(words, chunk_tokens=3, boundaries=lambda _: [(0, 7), (4, 11), (8, 24)]).pieces(text))
    assert [text[place.start : place.end] for place in found] == ["how can", "can you", "you make it", "long"]


def test_a_functions_span_within_a_word_is_a_chunk(words: TextTokenizer) -> None:
    text = "how " + "x" * 30  # which the tokenizer does not know: one token
    for late in (True, False):
        found = places(chunker(words, late=late, boundaries=lambda _: [(0, 4), (4, 14), (14, 34)]).pieces(text))
        assert [(place.start, place.end) for place in found] == [(0, 3), (4, 14), (14, 34)]


@pytest.mark.parametrize("spans", [[(0, 0)], [(5, 3)], [(0, 99)], [(-1, 3)], [(4, 7), (0, 3)], ["ab"], [3], [(0.5, 2)]])
def test_a_function_that_gives_no_spans_of_its_text_is_named(words: TextTokenizer, spans: Any) -> None:
    with pytest.raises(InputError, match="^boundaries= (gave|failed: TypeError)"):
        list(chunker(words, boundaries=lambda _: spans).pieces("how can you"))


def test_spans_without_end_are_read_window_by_window(words: TextTokenizer) -> None:
    pieces = chunker(words, boundaries=lambda _: repeat((0, 3))).pieces("how can you")
    first, second = islice(pieces, 2)
    assert len(first.places) == len(second.places) == MOST_OVERLAPPING
    (whole,) = chunker(words, boundaries=lambda _: [(0, 3)]).pieces("how can you")
    assert isinstance(whole.value, TokenWindow)
    assert isinstance(second.value, TokenWindow)
    assert whole.value.ids_bytes == second.value.ids_bytes  # all of them have seen the same


def test_the_tokens_of_a_prompt_are_in_no_chunk_and_before_each_window(source: TextTokenizer) -> None:
    text, prompt = " ".join(WORDS), "how to see: "
    whole = all_ids(source, prompt + text)
    pieces = list(chunker(source, prompt=prompt, chunk_tokens=16).pieces(text))
    before, _ = source.around()
    own = len(whole) - pieces[-1].places[-1].last
    assert len(pieces) > 1
    for piece in pieces:
        assert isinstance(piece.value, TokenWindow)
        assert list(piece.value.ids[: len(before) + own]) == before + whole[:own]
        assert piece.value.spans[0][0] >= len(before) + own
    assert places(pieces)[0].start == 0


def test_what_there_is_no_room_for_is_refused(words: TextTokenizer) -> None:
    assert len(places(chunker(words).pieces("the " * 62))) == 1  # as many as there is room for
    with pytest.raises(
        OptionError, match="chunk_tokens=63 is more than a/model has room for: its limit is 64 tokens, 2"
    ):
        chunker(words, chunk_tokens=63)
    with pytest.raises(OptionError, match="limit is 64 tokens, 66 of which are special ones or the prompt's"):
        chunker(words, prompt="the " * 64)
    with pytest.raises(OptionError, match="overlap=16 must be less than a chunk, which has at most 16 tokens"):
        chunker(words, chunk_tokens=16, overlap=16)


def test_no_more_of_a_document_is_tokenized_than_its_pieces_need(words: TextTokenizer) -> None:
    parts = 0

    class Counting(TextTokenizer):
        def __init__(self) -> None:
            self.__dict__ |= words.__dict__

        def placed(self, text: str, *, prefix: str = "") -> Iterator[tuple[list[int], list[int]]]:
            nonlocal parts
            for part in super().placed(text, prefix=prefix):
                parts += 1
                yield part

    text = "how can you make it long " * 40_000  # 1 MB
    pieces = chunker(Counting(), chunk_tokens=16).pieces(text)
    parts = 0
    for _ in range(50):
        next(pieces)
    assert parts == 1


@pytest.mark.slow
def test_a_text_that_cannot_be_cut_safely_is_read_in_parts_all_the_same(source: TextTokenizer) -> None:
    text = "longer" * 50_000
    parts = [part for _, part in source.placed(text)]
    assert len(parts) > 1
    starts = [start for part in parts for start in part]
    assert starts == sorted(starts)
    assert 0 <= starts[0] <= starts[-1] < len(text)


@pytest.mark.slow
def test_the_places_of_tokens_are_those_of_their_characters(source: TextTokenizer) -> None:
    text = "how  can 你 you\nmake" * 1000
    places = [place for _, part in source.placed(text) for place in part]
    ids = [id_ for part, _ in source.placed(text) for id_ in part]
    assert ids == all_ids(source, text)
    assert places == sorted(places)
    assert {text[place] for place in places} >= set("hc你ym")
