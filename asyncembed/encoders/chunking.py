"""Where a document is cut into chunks, and which of its tokens go through the model together.

Late chunking: Günther et al. 2024, "Late Chunking: Contextual Chunk Embeddings Using Long-Context Embedding Models",
https://arxiv.org/abs/2409.04701. The whole text goes through the model once; a chunk's vector is the mean of the states
of its own tokens, so that it has seen what is before and behind it. A text over the limit goes through in windows, each
of which begins with tokens that were in the one before, for context alone: each token counts with one state.

Windows begin and end where chunks do, so no chunk is made of two of them. All of it is lazy: however long a text is, no
more of it is tokenized than the pieces that are asked for need.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import index
from typing import Literal, NamedTuple, TypeAlias

from asyncembed.encoders.encoder import TokenWindow
from asyncembed.encoders.registry import TokenSource
from asyncembed.encoders.sentences import sentences
from asyncembed.errors import InputError, OptionError, in_words

Boundaries: TypeAlias = Literal["tokens", "sentences"] | Callable[[str], Iterable[tuple[int, int]]]
"""Where chunks may end; a function gives the beginning and end of each chunk of a text, in characters."""

CHUNK_TOKENS = 256
"""As many as one states that users ask for; models with a limit of 256 take the two fewer that they have room for."""

CONTEXT_SHARE = 1 / 8
"""The part of a window that is context from the one before: a seventh more time at most. With MiniLM, and windows of
128 tokens in texts of 500, the twentieth of the chunks that is least like those of the whole text comes from a cosine
of 0.61 without context to 0.65; a quarter would give 0.66. (The paper's program has 512 tokens, of 8,192.)"""

WORD_TOKENS = 16
"""How far back from the last token that fits the beginning of a word is looked for."""


MOST_OVERLAPPING = 1024
"""Chunks of one window where they are more than its tokens: a function may give spans without end, and they are read
as others are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkPlan:
    """What one call asks of its chunks.

    Attributes:
        is_late: Whether chunks see their context.
        chunk_tokens: Most tokens of one; None: `CHUNK_TOKENS`, or as many as the model has room for.
        overlap: Tokens at most that a chunk shares with the one before.
        boundaries: Where it may end.
        context_tokens: Tokens that a window has in common with the one before; None: `CONTEXT_SHARE` of it.
        prompt: Text before each chunk or, late, each window. Its tokens belong to no chunk.
    """

    is_late: bool
    chunk_tokens: int | None = None
    overlap: int = 0
    boundaries: Boundaries = "tokens"
    context_tokens: int | None = None
    prompt: str = ""


class Place(NamedTuple):
    """Where a chunk is.

    Attributes:
        start, end: In characters of the document, the end exclusive.
        first, last: In its tokens, the last one exclusive; special tokens and those of a prompt do not count.
    """

    start: int
    end: int
    first: int
    last: int


class Piece(NamedTuple):
    """What goes through the model as one input, and which chunks it gives."""

    value: str | TokenWindow
    tokens: int
    places: list[Place]


class Chunker:
    """Cuts documents for one call; in any thread, one document at a time."""

    def __init__(
        self, plan: ChunkPlan, source: TokenSource, limit: int | None, name: str, *, gives_texts: bool = False
    ) -> None:
        """Prepare for documents.

        Args:
            plan: What is asked for.
            source: Reads them.
            limit: Of the model, in tokens, special ones included; None: there is none.
            name: Its name.
            gives_texts: Whether windows bring the texts of their chunks along.

        Raises:
            OptionError: There is no room for what `plan` asks for.
        """
        self._plan = plan
        self._source = source
        self._gives_texts = gives_texts
        self._before, self._behind = source.around()
        around = len(self._before) + len(self._behind)
        prompt = sum(place < 0 for _, places in source.placed("a", prefix=plan.prompt) for place in places)
        self._extra_tokens = around + prompt
        self._room = None if limit is None else limit - self._extra_tokens
        self._size = self._chunk_tokens(plan, name, limit)
        if plan.overlap >= self._size:
            raise OptionError(
                f"overlap={plan.overlap} must be less than a chunk, which has at most {self._size} tokens"
            )
        share = 0 if self._room is None else int(self._room * CONTEXT_SHARE)
        self._context = share if plan.context_tokens is None else plan.context_tokens

    def _chunk_tokens(self, plan: ChunkPlan, name: str, limit: int | None) -> int:
        wanted = plan.chunk_tokens or CHUNK_TOKENS
        room = wanted if self._room is None else self._room
        if room < 1 or (plan.chunk_tokens is not None and wanted > room):
            raise OptionError(
                f"chunk_tokens={wanted} is more than {name} has room for: its limit is {limit} tokens, "
                f"{self._extra_tokens} of which are special ones or the prompt's"
            )
        return min(wanted, room)

    def pieces(self, text: str) -> Iterator[Piece]:
        """The pieces of one document.

        Raises:
            InputError: The function that is to give its boundaries fails.
        """
        if self._plan.is_late:
            tokens = _Tokens(self._source.placed(text, prefix=self._plan.prompt))
            return self._windows(text, tokens)
        tokens = _Tokens(self._source.placed(text))
        return self._texts(text, tokens)

    # ---------------------------------------------------------------- pieces

    def _texts(self, text: str, tokens: "_Tokens") -> Iterator[Piece]:
        """Each chunk by itself."""
        for place in self._places(text, tokens):
            tokens.forget(place.first)
            yield Piece(text[place.start : place.end], place.last - place.first + self._extra_tokens, [place])

    def _windows(self, text: str, tokens: "_Tokens") -> Iterator[Piece]:
        """As many chunks together as there is room for."""
        begin, end = 0, 0
        places: list[Place] = []
        for place in self._places(text, tokens):
            is_full = self._room is not None and max(end, place.last) - begin > self._room
            if places and is_full:
                yield self._window(text, tokens, begin, end, places)
                places = []
            elif len(places) >= max(MOST_OVERLAPPING, end - begin):
                yield self._last_window(text, tokens, begin, end, places)
                places = []
            if self._room is not None and is_full:
                # Rather less context than a part of a chunk.
                begin = max(begin, place.first - self._context, place.last - self._room)
                tokens.forget(begin)
                end = 0
            places.append(place)
            end = max(end, place.last)
        if places:
            yield self._last_window(text, tokens, begin, end, places)

    def _last_window(self, text: str, tokens: "_Tokens", begin: int, end: int, places: list[Place]) -> Piece:
        """One that nothing need follow: what a function has put into no chunk is context all the same."""
        most = tokens.until(None if self._room is None else begin + self._room)
        return self._window(text, tokens, begin, max(end, most), places)

    def _window(self, text: str, tokens: "_Tokens", begin: int, end: int, places: list[Place]) -> Piece:
        head = [*self._before, *tokens.prompt_ids]
        ids = [*head, *tokens.ids(begin, end), *self._behind]
        shift = len(head) - begin
        spans = [(max(place.first, begin) + shift, place.last + shift) for place in places]
        texts = [text[place.start : place.end] for place in places] if self._gives_texts else ()
        return Piece(TokenWindow.of(ids, spans, texts), len(ids), places)

    # ---------------------------------------------------------------- chunks

    def _places(self, text: str, tokens: "_Tokens") -> Iterator[Place]:
        """The chunks that have characters other than white space, and tokens."""
        boundaries = self._plan.boundaries
        if boundaries == "tokens":
            found = self._by_tokens(text, tokens)
        elif boundaries == "sentences":
            found = self._packed(self._units(text, tokens, sentences(text)))
        else:
            found = self._units(text, tokens, _given(boundaries, text))
        for place in found:
            start, end = _stripped(text, place.start, place.end)
            if start < end and place.first < place.last:
                yield place._replace(start=start, end=end)

    def _by_tokens(self, text: str, tokens: "_Tokens") -> Iterator[Place]:
        first = start = 0
        while start < len(text):
            last = self._last(text, tokens, first)
            end = tokens.start(last) if tokens.reaches(last + 1) else len(text)
            yield Place(start, end, first, last)
            if end == len(text):
                return
            first = self._next_first(text, tokens, first, last)
            start = tokens.start(first)

    def _last(self, text: str, tokens: "_Tokens", first: int) -> int:
        """Where a chunk ends that begins with the token `first`: with a word, or else with a character."""
        last = first + self._size
        if not tokens.reaches(last + 1):
            return tokens.until(last)
        for token in range(last, max(first, last - WORD_TOKENS), -1):
            if tokens.begins_word(token, text):
                return token
        token = last
        while token > first and not tokens.begins_character(token):
            token -= 1
        if token > first:
            return token
        # All of them are one character.
        while tokens.reaches(last + 1) and not tokens.begins_character(last):
            last += 1
        return last

    def _next_first(self, text: str, tokens: "_Tokens", first: int, last: int) -> int:
        """Where the next chunk begins: up to `overlap` tokens before the end of this one."""
        wanted = max(first + 1, last - self._plan.overlap)
        for token in range(wanted, min(last, wanted + WORD_TOKENS)):
            if tokens.begins_word(token, text):
                return token
        while wanted < last and not tokens.begins_character(wanted):
            wanted += 1
        return wanted

    def _units(self, text: str, tokens: "_Tokens", spans: Iterable[tuple[int, int]]) -> Iterator[Place]:
        """Spans of characters with their tokens; those that are too long for a chunk in several parts."""
        for start, end in spans:
            first, bound = tokens.at(start), tokens.at(end)
            if first == bound and first > 0:
                first -= 1  # the span lies within a token, as an unknown word is one
            while bound - first > self._size:
                last = min(self._last(text, tokens, first), bound)
                middle = tokens.start(last) if last < bound else end
                yield Place(start, middle, first, last)
                first, start = last, middle
            if start < end:
                yield Place(start, end, first, bound)

    def _packed(self, units: Iterable[Place]) -> Iterator[Place]:
        """As many neighbours together as are no longer than a chunk."""
        group: list[Place] = []
        for unit in units:
            if group and unit.last - group[0].first > self._size:
                yield _joined(group)
                most = min(self._plan.overlap, self._size - (unit.last - unit.first))
                group = [one for one in group[1:] if unit.first - one.first <= most]
            group.append(unit)
        if group:
            yield _joined(group)


class _Tokens:
    """The tokens of a text, as far as they were asked for and not forgotten; they count from 0, without the prompt."""

    def __init__(self, parts: Iterator[tuple[list[int], list[int]]]) -> None:
        self.prompt_ids: list[int] = []
        self._parts = parts
        self._ids: list[int] = []
        self._starts: list[int] = []
        self._forgotten = 0
        self._wanted = 0
        self._is_whole = False

    @property
    def _read(self) -> int:
        return self._forgotten + len(self._ids)

    def reaches(self, count: int) -> bool:
        """Whether there are as many."""
        while self._read < count and not self._is_whole:
            self._read_on()
        return self._read >= count

    def until(self, count: int | None) -> int:
        """How many there are, up to `count`."""
        if count is None:
            while not self._is_whole:
                self._read_on()
            return self._read
        return count if self.reaches(count) else self._read

    def at(self, character: int) -> int:
        """The first token that begins there or later."""
        while not self._is_whole and (not self._starts or self._starts[-1] < character):
            self._read_on()
        return self._forgotten + bisect_left(self._starts, character)

    def start(self, token: int) -> int:
        """Where it begins, in characters."""
        return self._starts[token - self._forgotten]

    def begins_character(self, token: int) -> bool:
        """Whether the one before is of another character."""
        return self.start(token) > self.start(token - 1)

    def begins_word(self, token: int, text: str) -> bool:
        """Whether white space is before it."""
        start = self.start(token)
        return start > 0 and text[start - 1].isspace() and self.begins_character(token)

    def ids(self, first: int, last: int) -> list[int]:
        """Their ids."""
        return self._ids[first - self._forgotten : last - self._forgotten]

    def forget(self, token: int) -> None:
        """Those before it are not asked for any more."""
        count = token - self._forgotten
        if count > len(self._ids) // 2:  # else it would cost more than it gives back
            del self._ids[:count], self._starts[:count]
            self._forgotten = token

    def _read_on(self) -> None:
        part = next(self._parts, None)
        if part is None:
            self._is_whole = True
            return
        ids, starts = part
        if not self._read:
            prompt = bisect_left(starts, 0)
            self.prompt_ids += ids[:prompt]
            ids, starts = ids[prompt:], starts[prompt:]
        self._ids += ids
        self._starts += starts


def _given(boundaries: Callable[[str], Iterable[tuple[int, int]]], text: str) -> Iterator[tuple[int, int]]:
    """What a caller's function gives."""
    before = 0
    try:
        for given in boundaries(text):
            start, end = map(index, given)
            if not before <= start < end <= len(text):
                raise InputError(
                    f"boundaries= gave ({start}, {end}) for a text of {len(text)} characters: it gives the beginning "
                    "and end of each chunk, none empty, in the order of their beginnings"
                )
            before = start
            yield start, end
    except (InputError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise InputError(f"boundaries= failed: {in_words(error)}") from error


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """The same span without white space around it."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def _joined(places: list[Place]) -> Place:
    return Place(places[0].start, places[-1].end, places[0].first, places[-1].last)
