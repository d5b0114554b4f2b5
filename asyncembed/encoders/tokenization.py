"""From texts to token ids: a repo's tokenizer, configured once and never changed afterwards.

The rules are those of transformers' fast tokenizers, read from the same files: `tokenizer.json` (required),
`tokenizer_config.json`, `special_tokens_map.json` and `config.json`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from asyncembed.encoders.batch import Usable, ValueT, read_pair, read_text, split
from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, Long
from asyncembed.encoders.long_texts import Cutter
from asyncembed.encoders.tokenizer_files import TokenizerFiles
from asyncembed.errors import EncodeError, OptionError

IntArray = npt.NDArray[np.int64]

Ids: TypeAlias = Sequence[int] | IntArray
"""The token ids of a text."""

Tokenized: TypeAlias = Usable[Encoding]
"""What the library gives for each input. Its `ids` and `type_ids` count; `tokens` and `offsets` are empty."""

# A text is cut before tokenization only if it is longer than this many characters per token of the limit.
_CHARACTERS_PER_TOKEN = 8
# How much of a text is counted at once.
_COUNTED_CHARACTERS = 2**16
# How much of a text is read at once where the places of its tokens matter: some milliseconds' work.
_PLACED_CHARACTERS = 2**14
# And at most, where no cut is safe: it would take gigabytes. There, two tokens of so many may be others.
_MOST_PLACED_CHARACTERS = 2**18
# How much longer the next start is, where one was too short to tell.
_GROWTH = 4


class TextTokenizer:
    """The tokenizer of the model in `directory`.

    Attributes:
        files: What they say.
        limit: Most tokens of one input, special tokens included.
        pad_id: Id that fills a row of a batch.
        pads_left: Whether that filling comes before the tokens.
        truncates_left: Whether the beginning of a text that is too long is dropped, not its end.
        special_ids: Text → id of every special token.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_length: int | None = None,
        lower_case: bool = False,
        add_special_tokens: bool = True,
        reserve: int = 0,
        extra: int = 0,
        truncation_side: str | None = None,
        pads: bool = True,
    ) -> None:
        """Read the files of `directory`.

        Args:
            directory: Where `tokenizer.json` lies.
            max_length: Limit in tokens; None: the smaller of `model_max_length` and `max_length` in
                `tokenizer_config.json`. Neither counts beyond the positions that the model has.
            lower_case: Lower the letters of each text first.
            add_special_tokens: Whether markers such as [CLS] are put around the text.
            reserve: By how many tokens the limit is lowered, for markers that the encoder itself puts in.
            extra: How many positions of the model are taken by such markers, beside the limit.
            truncation_side: Which end is cut off, "left" or "right"; None: as the files say.
            pads: Whether `pad` will be used, so that the repo must have a pad token.

        Raises:
            UnsupportedModelError: The files do not say what is needed; the message names the way out.
            ModelLoadError: A file is broken.
            OptionError: `max_length` leaves no room for a token of the text.
        """
        files = TokenizerFiles.read(directory, lower_case=lower_case)
        self.files: TokenizerFiles = files
        self._library = files.tokenizer
        self._library.no_padding()
        self.pad_id: int = files.required_pad_id if pads else files.pad_id or 0
        self.pad_type_id: int = files.pad_type_id
        self.pads_left: bool = files.pads_left
        self.special_ids: dict[str, int] = files.special_ids
        self.truncates_left: bool = (truncation_side or files.truncation_side) == "left"
        self._add_special_tokens = add_special_tokens
        self._cutter = Cutter(files)
        self._cuts_early = not self.truncates_left and self._cutter.at_spaces
        self._set_limit(files.limit(max_length, reserve=reserve, extra=extra))

    @property
    def vocabulary(self) -> dict[str, int]:
        """The id of every token, added ones included."""
        return self._library.get_vocab()

    def special_tokens(self, *, is_pair: bool = False) -> int:
        """How many special tokens are put around an input."""
        return self._library.num_special_tokens_to_add(is_pair) if self._add_special_tokens else 0

    def limited(self, limit: int) -> "TextTokenizer":
        """One that cuts texts at `limit` tokens, where that is less than this one's own limit.

        Raises:
            OptionError: It leaves no room for a token of the text.
        """
        return self if limit >= self.limit else self._with_limit(limit)

    def relimited(self, limit: int, *, extra: int = 0) -> "TextTokenizer":
        """One that cuts texts at `limit` tokens, `extra` more being put in, as far as the model has positions for them.

        Raises:
            OptionError: It leaves no room for a token of the text.
        """
        limit = self.files.limit(limit, extra=extra)
        return self if limit == self.limit else self._with_limit(limit)

    def padding_behind(self) -> "TextTokenizer":
        """One that puts the filling behind the tokens, wherever the files want it."""
        other = copy(self)
        other.pads_left = False
        return other

    def encode(self, inputs: Sequence[object], *, prefix: str = "", long: Long = "truncate") -> Tokenized:
        """Tokenize texts, each with `prefix` before it.

        An input that is no string, is not valid Unicode, or (with `long="error"`) is over the limit is a
        failure.
        """
        texts = split(map(read_text, inputs))
        whole = [prefix + text for text in texts.values] if prefix else texts.values
        return self._checked(texts.become(self.filled(whole, self.tokenize, _is_over)), long=long)

    def encode_pairs(self, inputs: Sequence[object], *, prefix: str = "", long: Long = "truncate") -> Tokenized:
        """Tokenize pairs of texts, `prefix` before the first, which share the limit: the longer text is cut first."""
        pairs = _pairs(inputs, prefix)
        return self._checked(pairs.become(self.tokenize(list(map(self._starts_of_pair, pairs.values)))), long=long)

    def tokenize(self, inputs: Sequence[str] | Sequence[tuple[str, str]]) -> list[Encoding]:
        """Tokenize texts or pairs as they are, cut at the limit; a text may be of any length.

        Raises:
            EncodeError: The tokenizer's file loads, but asks for what it does not have.
        """
        try:
            return self._library.encode_batch_fast(inputs, add_special_tokens=self._add_special_tokens)
        except (Exception, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library panics where it should raise: that is no `Exception`
            raise _as_broken(error) from error

    def ids_within(self, text: str) -> list[int]:
        """The ids of a text without special tokens around it."""
        return list(self._library.encode(text, add_special_tokens=False).ids)

    def placed(self, text: str, *, prefix: str = "") -> Iterator[tuple[list[int], list[int]]]:
        """The tokens of a text with `prefix` before it, uncut and without special ones, a part at a time.

        Returns:
            The ids of a part, and for each of them the position in `text` (less than 0: in the prefix) of its first
            character, a leading space not counted. Of a token that is a part of a character, that character's.

        Raises:
            EncodeError: See `tokenize`.
        """
        start = -len(prefix)
        for piece in _bounded(self._cutter.pieces(prefix + text, _PLACED_CHARACTERS)):
            try:
                encoding = self._untruncated.encode(piece, add_special_tokens=False)
            except (Exception, KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                raise _as_broken(error) from error
            places = [start + first + (end - first > 1 and piece[first].isspace()) for first, end in encoding.offsets]
            yield encoding.ids, places
            start += len(piece)

    def around(self) -> tuple[list[int], list[int]]:
        """The ids of the special tokens before a text, and of those behind it."""
        encoding = self._untruncated.encode("a", add_special_tokens=self._add_special_tokens)
        are_special = encoding.special_tokens_mask
        before = are_special.index(0) if 0 in are_special else len(are_special)
        behind = are_special[::-1].index(0) if 0 in are_special else 0
        return encoding.ids[:before], encoding.ids[len(encoding) - behind :]

    @property
    def too_long(self) -> str:
        """Why a text over the limit that must not be cut is a failure."""
        return f'longer than the model\'s limit of {self.limit} tokens, and long="error"'

    def windows(self, text: str, *, prefix: str = "") -> list[list[int]]:
        """The ids of a text in rows within the limit: in order, each with the markers and the tokens of `prefix`."""
        ids = self.whole_ids(prefix + text)
        before, after = self._markers
        head = ids[: self.prefix_length(prefix) - len(before)] if prefix else []
        room = self.limit - len(before) - len(after) - len(head)
        if room <= 0:  # the prefix alone is over the limit
            head, room = [], room + len(head)
        return [
            [*before, *head, *ids[start : start + room], *after]
            for start in range(len(head), max(len(ids), len(head) + 1), room)
        ]

    def whole_ids(self, text: str) -> list[int]:
        """The ids of a text of any length, uncut, without special ones."""
        pieces = self._cutter.pieces(self._cutter.shortened(text), _COUNTED_CHARACTERS)
        return [id_ for piece in pieces for id_ in self._untruncated.encode(piece, add_special_tokens=False).ids]

    @cached_property
    def _markers(self) -> tuple[list[int], list[int]]:
        """The ids of the special tokens that stand before a text, and behind it."""
        encoding = self._untruncated.encode("a", add_special_tokens=self._add_special_tokens)
        is_text = [not is_marker for is_marker in encoding.special_tokens_mask]
        start = is_text.index(True) if any(is_text) else len(is_text)
        stop = len(is_text) - is_text[::-1].index(True) if any(is_text) else start
        return encoding.ids[:start], encoding.ids[stop:]

    def computed(self, done: Tokenized, lengths: Iterable[int] | None = None) -> list[int]:
        """`Encoded.counts` of the usable inputs: their tokens, or `lengths` if the encoder itself puts some in."""
        return [
            -length if len(encoding) >= self.limit and _is_over(encoding) else length
            for encoding, length in zip(done.values, lengths or map(len, done.values), strict=True)
        ]

    def count(self, inputs: Sequence[object], call: Call) -> Usable[int]:
        """How many tokens texts have, as `call` asks: cut at the limit or not."""
        prefix = call.prompt or ""
        if call.truncated and call.long != "mean":
            done = self.encode(inputs, prefix=prefix, long=call.long)
            return done.become(list(map(len, done.values)))
        texts = split(map(read_text, inputs))
        special = self.special_tokens()
        return texts.become([special + count for count in self._counts([prefix + text for text in texts.values])])

    def count_pairs(self, inputs: Sequence[object], call: Call, *, prefix: str = "") -> Usable[int]:
        """Likewise for pairs of texts."""
        if call.truncated:
            done = self.encode_pairs(inputs, prefix=prefix, long=call.long)
            return done.become(list(map(len, done.values)))
        pairs = _pairs(inputs, prefix)
        special = self.special_tokens(is_pair=True)
        counts = self._counts([text for pair in pairs.values for text in pair])
        return pairs.become([special + sum(pair) for pair in zip(counts[::2], counts[1::2], strict=True)])

    def whole_lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, uncut, without special ones."""
        return self._counts(texts)

    def _checked(self, done: Tokenized, *, long: Long) -> Tokenized:
        return done.without(list(map(_is_over, done.values)), self.too_long) if long == "error" else done

    def prefix_length(self, prefix: str) -> int:
        """Tokens that `prefix` takes at the start of an input: its markers included, a closing one not."""
        encoding = self._library.encode(prefix, add_special_tokens=self._add_special_tokens)
        closes = bool(encoding.ids) and encoding.ids[-1] in self.special_ids.values()
        return len(encoding) - closes

    def pad(
        self, rows: Sequence[Ids], *, length: int | None = None, filler: int | None = None
    ) -> tuple[IntArray, IntArray]:
        """Put rows of token ids, or of numbers that belong to tokens, into one rectangle.

        Returns:
            The numbers, with `filler` (None: the pad token) in the other places, and the mask (1 for a real token, 0
            for padding), both int64 (len(rows), tokens), as wide as the longest or, if that is more, `length`.
        """
        # An empty text has no token at all where the tokenizer adds no markers; graphs need at least one position.
        width = max(map(len, rows), default=1) or 1
        if length is not None:
            width = max(width, length)
        elif multiple := self.files.pad_to_multiple_of:
            width = -(-width // multiple) * multiple
        ids = np.full((len(rows), width), self.pad_id if filler is None else filler, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for line, row in enumerate(rows):
            columns = self.places(len(row), width)
            ids[line, columns] = row
            mask[line, columns] = 1
        return ids, mask

    def places(self, count: int, width: int) -> slice:
        """Where in a padded row of `width` its `count` tokens stand."""
        return slice(width - count, width) if self.pads_left else slice(0, count)

    def token_id(self, token: str) -> int | None:
        """The id of a token as it stands in the vocabulary, added ones included; None where it does not."""
        found: int | None = self._library.token_to_id(token)
        return found

    def _with_limit(self, limit: int) -> "TextTokenizer":
        other = copy(self)
        other._cut_at(limit)  # noqa: SLF001 (it is of this class)
        return other

    def _cut_at(self, limit: int) -> None:
        """Set a limit on a library of its own."""
        self._library = Tokenizer.from_str(self._library.to_str())
        self._set_limit(limit)

    def _set_limit(self, limit: int) -> None:
        markers = self.special_tokens()
        if limit <= markers:
            # The library would not truncate at all.
            raise OptionError(f"max_length={limit} leaves no room for text: the model adds {markers} special tokens")
        self.limit = limit
        self._library.enable_truncation(limit, direction="left" if self.truncates_left else "right")

    def filled(
        self, texts: Sequence[str], encode: Callable[[list[str]], list[ValueT]], is_over: Callable[[ValueT], object]
    ) -> list[ValueT]:
        """What `encode` makes of each text, or of as much of it as is over the limit.

        A text far over it is cut first, where that provably changes nothing.
        """
        texts = [self._without_middles(text) for text in texts]
        starts = [self.start_of(text) for text in texts]
        results = encode(starts)
        for row, (text, start) in enumerate(zip(texts, starts, strict=True)):
            # A start that did not fill the limit (long words, white space, ...) says nothing about the rest.
            if len(start) < len(text) and not is_over(results[row]):
                results[row] = self._grown(self._cutter.shortened(text), encode, is_over)
        return results

    def _grown(
        self, text: str, encode: Callable[[list[str]], list[ValueT]], is_over: Callable[[ValueT], object]
    ) -> ValueT:
        start = self.start_of(text)
        (result,) = encode([start])
        while len(start) < len(text) and not is_over(result):
            start = self.start_of(text, after=start)
            (result,) = encode([start])
        return result

    def _without_middles(self, text: str) -> str:
        """The same text, or, where it begins with so long a word that it cannot be cut, one of the same tokens."""
        size = self.limit * _CHARACTERS_PER_TOKEN
        if len(text) <= 2 * size or self._cutter.end(text, size, self.limit) is not None:
            return text
        return self._cutter.shortened(text)

    def start_of(self, text: str, *, after: str = "") -> str:
        """As much of `text` as will probably fill the limit, and several times as much as the start `after`.

        Its tokens begin like those of `text`; if they are over the limit, the rest of `text` does not matter.
        """
        size = max(self.limit * _CHARACTERS_PER_TOKEN, len(after) * _GROWTH)
        while len(text) > 2 * size and not self.truncates_left:
            end = self._cutter.end(text, size, self.limit)
            if end is not None and end > len(after):  # before a long gap between two words it may be the same place
                return text[:end]
            size *= _GROWTH
        return text

    def _starts_of_pair(self, pair: Sequence[str]) -> tuple[str, str]:
        """A pair, or as much of its texts as truncation can leave something of.

        What it leaves of two texts over the limit depends on which is the longer, so that must not change. And the
        library's time grows with the product of two such texts' lengths.
        """
        first, second = pair
        start, other = self.filled(pair, list, self._is_over_limit)
        starts = start, other
        if starts == (first, second) or not all(map(self._is_over_limit, starts)):
            # At most one is over the limit, and then it stays the longer.
            return starts
        if (self.limit - self.special_tokens(is_pair=True)) % 2 == 0:
            return starts  # the two get equally many
        is_first_longer = self._count(first) > self._count(second)
        return self._grown_to_order(pair, starts, is_first_longer=is_first_longer)

    def _grown_to_order(
        self, pair: Sequence[str], starts: tuple[str, str], *, is_first_longer: bool
    ) -> tuple[str, str]:
        """The starts of two texts, one lengthened until it is the longer, as it is in the pair; or both whole."""
        first, second = starts
        while (self._count(first) > self._count(second)) != is_first_longer:
            if (first if is_first_longer else second) == pair[not is_first_longer]:
                # The other one's end is in a long word, which may have fewer tokens whole: what is whole is right.
                return pair[0], pair[1]
            if is_first_longer:
                first = self.start_of(pair[0], after=first)
            else:
                second = self.start_of(pair[1], after=second)
        return first, second

    def _is_over_limit(self, text: str) -> bool:
        return _is_over(self._library.encode(text, add_special_tokens=False))

    def _count(self, text: str) -> int:
        """Tokens of `text` before truncation, without special ones; piece by piece, as they take much memory."""
        pieces = self._cutter.pieces(self._cutter.shortened(text), _COUNTED_CHARACTERS)
        return sum(self._lengths([piece])[0] for piece in pieces)

    def _counts(self, texts: Sequence[str]) -> list[int]:
        """`_count` of each; all that are short in one go, which takes a fraction of the time."""
        short = iter(self._lengths([text for text in texts if len(text) <= _COUNTED_CHARACTERS]))
        return [next(short) if len(text) <= _COUNTED_CHARACTERS else self._count(text) for text in texts]

    def _lengths(self, pieces: list[str]) -> list[int]:
        return list(map(len, self._untruncated.encode_batch_fast(pieces, add_special_tokens=False)))

    @cached_property
    def _untruncated(self) -> Tokenizer:
        """A copy for counting: what truncation cuts off, the library keeps, at a price that grows with its square."""
        tokenizer = Tokenizer.from_str(self._library.to_str())
        tokenizer.no_truncation()
        return tokenizer


def _bounded(pieces: Iterable[str]) -> Iterator[str]:
    """The same pieces, those that take too much memory cut once more."""
    for piece in pieces:
        for start in range(0, max(1, len(piece)), _MOST_PLACED_CHARACTERS):
            yield piece[start : start + _MOST_PLACED_CHARACTERS]


def _as_broken(error: BaseException) -> EncodeError:
    return EncodeError(f"the tokenizer fails, as its tokenizer.json is broken: {error}")


def _is_over(encoding: Encoding) -> bool:
    return bool(encoding.overflowing)


def tokenizer_of(config: EncoderConfig, *, lower_case: bool = False) -> TextTokenizer:
    """The tokenizer of a model, with the limit that applies."""
    return TextTokenizer(
        config.directory, max_length=config.max_length or config.spec.max_length, lower_case=lower_case
    )


def count_tokens(counts: Usable[int], extra: Callable[[int], int] = int) -> Encoded:
    """The answer to mode "count": an int per input, 0 where it could not be tokenized."""
    return Encoded(counts.in_batch(map(extra, counts.values), 0), counts.failures)


def _pairs(inputs: Sequence[object], prefix: str) -> "Usable[tuple[str, str]]":
    """Those of the inputs that are pairs of texts, with `prefix` before the first text of each."""
    pairs = split(map(read_pair, inputs))
    return pairs.become([(prefix + first, second) for first, second in pairs.values]) if prefix else pairs
