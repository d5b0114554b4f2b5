"""From texts to token ids: a repo's tokenizer, configured once and never changed afterwards.

The rules are those of transformers' fast tokenizers, read from the same files: `tokenizer.json` (required),
`tokenizer_config.json`, `special_tokens_map.json` and `config.json`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer, normalizers

from asyncembed.encoders.long_texts import Cutter
from asyncembed.encoders.tokenizer_files import TokenizerSettings
from asyncembed.errors import InputError, OptionError

IntArray = npt.NDArray[np.int64]

# A text is cut before tokenization only if it is longer than this many characters per token of the limit.
_CHARACTERS_PER_TOKEN = 8
# How much of a text is counted at once.
_COUNTED_CHARACTERS = 2**16
# How much longer the next start is, where one was too short to tell.
_GROWTH = 4


@dataclass(slots=True)
class Tokenized:
    """The inputs of one batch that could be tokenized.

    Attributes:
        encodings: One per usable input. Their `ids` and `type_ids` count; `tokens` and `offsets` are empty.
        positions: Where each of them stands in the batch.
        failures: Position in the batch → why that input could not be used.
    """

    encodings: list[Encoding]
    positions: list[int]
    failures: dict[int, InputError] = field(default_factory=dict)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each encoding, special tokens included."""
        return [len(encoding) for encoding in self.encodings]


class TextTokenizer:
    """The tokenizer of the model in `directory`.

    Attributes:
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
        settings = TokenizerSettings.read(directory)
        self.tokenizer: Tokenizer = settings.tokenizer
        if lower_case:
            present = [self.tokenizer.normalizer] if self.tokenizer.normalizer is not None else []
            self.tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *present])
        self.pad_id: int = settings.required_pad_id if pads else settings.pad_id or 0
        self.pad_type_id: int = settings.pad_type_id
        self.pads_left: bool = settings.pads_left
        self.pad_to_multiple_of: int | None = settings.pad_to_multiple_of
        self.special_ids: dict[str, int] = settings.special_ids
        self._add_special_tokens = add_special_tokens
        self.truncates_left: bool = (truncation_side or settings.truncation_side) == "left"
        self._cutter = Cutter(self.tokenizer)
        self._cuts_early = not self.truncates_left and self._cutter.at_spaces
        self.tokenizer.no_padding()
        self._set_limit(settings.limit(max_length, reserve=reserve, extra=extra))

    def special_tokens(self, *, is_pair: bool = False) -> int:
        """How many special tokens are put around an input."""
        return self.tokenizer.num_special_tokens_to_add(is_pair) if self._add_special_tokens else 0

    def lower_limit(self, most: int) -> None:
        """Cut texts at `most` tokens, where that is less than the limit so far; before the first text only.

        Raises:
            OptionError: It leaves no room for a token of the text.
        """
        if most < self.limit:
            self._set_limit(most)

    def encode(self, inputs: Sequence[object], *, prefix: str = "", truncate: bool = True) -> Tokenized:
        """Tokenize texts, each with `prefix` before it.

        An input that is no string, is not valid Unicode, or (with `truncate=False`) is over the limit is a
        failure.
        """
        usable, failures = sort_out(inputs)
        texts = [prefix + inputs[position] for position in usable]  # type: ignore[operator]
        done = Tokenized(self._encode_all(texts), usable, failures)
        if not truncate:
            self._reject_truncated(done)
        return done

    def encode_pairs(self, inputs: Sequence[object], *, truncate: bool = True) -> Tokenized:
        """Tokenize pairs of texts, which share the limit: the longer text of a pair is cut first."""
        usable, failures = sort_out(inputs, _why_unusable_pair)
        pairs = [self._starts_of_pair(cast(Sequence[str], inputs[position])) for position in usable]
        encodings = self.tokenizer.encode_batch_fast(pairs, add_special_tokens=self._add_special_tokens)
        done = Tokenized(encodings, usable, failures)
        if not truncate:
            self._reject_truncated(done)
        return done

    def too_long(self) -> InputError:
        """The failure of a text over the limit that must not be cut."""
        return InputError(f"longer than the model's limit of {self.limit} tokens, and truncate=False")

    def prefix_length(self, prefix: str) -> int:
        """Tokens that `prefix` takes at the start of an input: its markers included, a closing one not."""
        encoding = self.tokenizer.encode(prefix, add_special_tokens=self._add_special_tokens)
        closes = bool(encoding.ids) and encoding.ids[-1] in self.special_ids.values()
        return len(encoding) - closes

    def pad(self, encodings: Sequence[Encoding], *, length: int | None = None) -> tuple[IntArray, IntArray]:
        """Put encodings into one rectangle.

        Returns:
            Ids and attention mask (1 for a real token, 0 for padding), both int64 (len(encodings), tokens),
            as wide as the longest or, if that is more, `length`.
        """
        # An empty text has no token at all where the tokenizer adds no markers; graphs need at least one position.
        width = max((len(encoding) for encoding in encodings), default=1) or 1
        if length is not None:
            width = max(width, length)
        elif self.pad_to_multiple_of:
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of
        ids = np.full((len(encodings), width), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(encodings), width), dtype=np.int64)
        for row, encoding in enumerate(encodings):
            count = len(encoding)
            columns = slice(width - count, width) if self.pads_left else slice(0, count)
            ids[row, columns] = encoding.ids
            mask[row, columns] = 1
        return ids, mask

    def _set_limit(self, limit: int) -> None:
        markers = self.special_tokens()
        if limit <= markers:
            # The library would not truncate at all.
            raise OptionError(f"max_length={limit} leaves no room for text: the model adds {markers} special tokens")
        self.limit = limit
        self.tokenizer.enable_truncation(limit, direction="left" if self.truncates_left else "right")

    def _encode_all(self, texts: list[str]) -> list[Encoding]:
        """Tokenize; a text far over the limit is cut first where that provably changes nothing."""
        starts = [self.start_of(text) for text in texts]
        encodings = self.tokenizer.encode_batch_fast(starts, add_special_tokens=self._add_special_tokens)
        for row, (text, start) in enumerate(zip(texts, starts, strict=True)):
            # A start that did not fill the limit (long words, white space, ...) says nothing about the rest.
            while len(start) < len(text) and not encodings[row].overflowing:
                start = self.start_of(text, after=start)
                (encodings[row],) = self.tokenizer.encode_batch_fast(
                    [start], add_special_tokens=self._add_special_tokens
                )
        return encodings

    def start_of(self, text: str, *, after: str = "") -> str:
        """As much of `text` as will probably fill the limit, and several times as much as the start `after`.

        Its tokens begin like those of `text`; if they are over the limit, the rest of `text` does not matter.
        """
        size = max(self.limit * _CHARACTERS_PER_TOKEN, len(after) * _GROWTH)
        while len(text) > 2 * size and not self.truncates_left:
            end = self._cutter.end(text, size, self.limit)
            if end is not None:
                return text[:end]
            size *= _GROWTH
        return text

    def _filling_start_of(self, text: str) -> str:
        """The first start that is over the limit; else the text."""
        start = self.start_of(text)
        while len(start) < len(text) and not self._is_over_limit(start):
            start = self.start_of(text, after=start)
        return start

    def _starts_of_pair(self, pair: Sequence[str]) -> tuple[str, str]:
        """A pair, or as much of its texts as truncation can leave something of.

        What it leaves of two texts over the limit depends on which is the longer, so that must not change. And the
        library's time grows with the product of two such texts' lengths.
        """
        first, second = pair
        starts = self._filling_start_of(first), self._filling_start_of(second)
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
        """The starts of two texts, one of them lengthened until it is the longer as it is in the pair."""
        first, second = starts
        while (self._count(first) > self._count(second)) != is_first_longer:
            if is_first_longer:
                first = self.start_of(pair[0], after=first)
            else:
                second = self.start_of(pair[1], after=second)
        return first, second

    def _is_over_limit(self, text: str) -> bool:
        return bool(self.tokenizer.encode(text, add_special_tokens=False).overflowing)

    def _count(self, text: str) -> int:
        """Tokens of `text` before truncation, without special ones; piece by piece, as they take much memory."""
        pieces = self._cutter.pieces(text, _COUNTED_CHARACTERS)
        return sum(len(self._untruncated.encode(piece, add_special_tokens=False)) for piece in pieces)

    @cached_property
    def _untruncated(self) -> Tokenizer:
        """A copy for counting: what truncation cuts off, the library keeps, at a price that grows with its square."""
        tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        tokenizer.no_truncation()
        return tokenizer

    def _reject_truncated(self, done: Tokenized) -> None:
        kept = [row for row, encoding in enumerate(done.encodings) if not encoding.overflowing]
        if len(kept) == len(done.encodings):
            return
        for row in sorted(set(range(len(done.encodings))).difference(kept)):
            done.failures[done.positions[row]] = self.too_long()
        done.encodings = [done.encodings[row] for row in kept]
        done.positions = [done.positions[row] for row in kept]


def sort_out(
    inputs: Sequence[object], why_unusable: Callable[[object], str | None] | None = None
) -> tuple[list[int], dict[int, InputError]]:
    """The positions of the usable inputs, texts unless told otherwise, and the failures of the others."""
    check = why_unusable or _why_unusable
    failures = {
        position: InputError(reason) for position, value in enumerate(inputs) if (reason := check(value)) is not None
    }
    if not failures:
        return list(range(len(inputs))), failures
    return [position for position in range(len(inputs)) if position not in failures], failures


def _why_unusable(value: object) -> str | None:
    if not isinstance(value, str):
        return f"expected a string, got {type(value).__name__}"
    if value.isascii():
        return None
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code_point = ord(value[error.start])
        return f"not valid Unicode: a lone surrogate (U+{code_point:04X}) at character {error.start}"
    return None


def _why_unusable_pair(value: object) -> str | None:
    if not isinstance(value, tuple | list) or len(value) != 2:
        return f"expected a pair of strings, got {type(value).__name__}"
    return _why_unusable(value[0]) or _why_unusable(value[1])
