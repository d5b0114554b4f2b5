"""Results without a model, for tests of programs: made up of hashes of the words, for every family.

They depend on the input, its prompt and its task only, on any machine: the hash is SHAKE-256. Inputs that share words
are nearer than others (less so for words of one to three letters). A token is a word; there are no special ones.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import shake_256
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from asyncembed.encoders.batch import Usable, read_pair, read_text, split
from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, ModelInfo, TokenWindow
from asyncembed.encoders.finite import Finite
from asyncembed.encoders.pooling import FloatArray
from asyncembed.encoders.postprocess import encoded_matrices, encoded_rows
from asyncembed.encoders.projection import sigmoid
from asyncembed.errors import InputError, InputFailure, OptionError
from asyncembed.faking import SETTING
from asyncembed.results import HYBRID_OUTPUTS, HybridBatch, sparse_batch

if TYPE_CHECKING:
    from asyncembed.faking import Fakes

WHOLE_WEIGHT = 0.25
"""How much of a vector is the text as a whole, with its prompt and task, beside its words."""

QUERY_ROWS = 32
"""Of a late interaction query at least, where the catalogue does not say: as of most such models."""

TOKENS_PER_IMAGE = 64

POLL_SECONDS = 0.005

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Words:
    """A text as it is computed: its words, and those of its prompt; `text` is the whole of it, as far as it goes."""

    words: Sequence[str]
    text: str
    tokens: int
    is_cut: bool

    @property
    def count(self) -> int:
        """See `Encoded.counts`."""
        return -self.tokens if self.is_cut else self.tokens


class WordSource:
    """Reads texts as fakes do: see `asyncembed.encoders.registry.TokenSource`."""

    def placed(self, text: str, *, prefix: str = "") -> Iterator[tuple[list[int], list[int]]]:
        """All at once; ids say nothing."""
        starts = [match.start() - len(prefix) for match in _WORD.finditer(prefix + text)]
        yield [0] * len(starts), starts

    def around(self) -> tuple[list[int], list[int]]:
        """There are none."""
        return [], []


class HashedEncoder:
    """The encoder of fakes, of all families; what they do besides stands in the setting `fakes` of the spec."""

    def __init__(self, config: EncoderConfig) -> None:
        self._spec = spec = config.spec
        self._fakes = cast("Fakes", spec.settings[SETTING])
        self._limit = config.max_length or spec.max_length
        self._dim = spec.dim or 0
        self._finite = Finite(spec)
        self._keywords = config.keywords
        self._query_rows = _query_rows(config)
        self._vocabulary_size = cast(int, spec.settings.get("vocabulary_size") or 2**31 - 1)
        self.info: ModelInfo = ModelInfo(
            max_length=None if spec.family == "image" else self._limit,
            special_tokens=0,
            dim=spec.dim,
            tokens_per_image=TOKENS_PER_IMAGE,
            providers=("fakes",),
            outputs=HYBRID_OUTPUTS if spec.family == "hybrid" else (),
            token_dim=spec.dim if spec.family == "hybrid" else None,
        )

    def encode(self, inputs: Sequence[object], call: Call) -> Encoded:
        """Make results up, or count words; takes as long as the fakes are told to."""
        began = monotonic()
        done = self._encode(inputs, call)
        done.failures = {**done.failures, **self._injected(inputs)}
        while monotonic() < began + self._fakes.seconds:
            sleep(POLL_SECONDS)
        return done

    def _encode(self, inputs: Sequence[object], call: Call) -> Encoded:
        if call.mode == "image":
            return self._images(inputs, call)
        if call.mode == "chunks":
            return self._chunks(cast("Sequence[TokenWindow]", inputs), call)
        if self._spec.family == "cross_encoder":
            return self._pairs(inputs, call)
        texts = split(map(read_text, inputs))
        is_whole = call.long == "mean" or (call.mode == "count" and not call.truncated)
        read = partial(self._read, prompt=call.prompt or "", whole=is_whole)
        words = self._within_limit(texts.become([read(text) for text in texts.values]), call)
        if call.mode == "count":
            return _counted(words, self._query_rows if call.include_extension and call.role == "query" else 0)
        if self._spec.family == "sparse":
            return self._sparse(words, call)
        if self._spec.family == "text":
            return self._dense(words, call)
        return self._hybrid(words, call) if self._spec.family == "hybrid" else self._matrices(words, call)

    def _hybrid(self, texts: Usable[Words], call: Call) -> Encoded:
        compute = {"dense": self._dense, "sparse": self._sparse, "late_interaction": self._matrices}
        found: dict[str, Any] = {name: compute[name](texts, call) for name in call.outputs or HYBRID_OUTPUTS}
        done: Encoded = next(iter(found.values()))
        done.results = HybridBatch(texts.batch_size, **{name: one.results for name, one in found.items()})
        return done

    # ---------------------------------------------------------------- texts

    def _read(self, text: str, *, prompt: str = "", whole: bool = False, taken: int = 0) -> Words:
        """The words of a text, up to the limit unless the `whole` is asked for; `taken` are those before it."""
        before = taken + len(_WORD.findall(prompt))
        found = list(_WORD.finditer(text))
        room = len(found) if whole or self._limit is None else max(0, self._limit - before)
        kept = found[:room]
        if len(kept) < len(found):
            text = text[: kept[-1].end()] if kept else ""
        tokens = before - taken + len(kept)
        return Words([match[0].lower() for match in kept], text, tokens, len(kept) < len(found))

    def _within_limit(self, words: Usable[Words], call: Call) -> Usable[Words]:
        if call.long != "error":
            return words
        reason = f'longer than the model\'s limit of {self._limit} tokens, and long="error"'
        return words.without([each.is_cut for each in words.values], reason)

    def _dense(self, texts: Usable[Words], call: Call) -> Encoded:
        context = f"{call.prompt or ''}\0{self._task(call)}"
        vectors = [self._vector(each, context) for each in texts.values]
        rows: FloatArray = np.array(vectors, np.float32).reshape(-1, self._dim)
        return encoded_rows(rows, call, self._finite, texts, counts=_counts(texts), padded_tokens=_tokens(texts))

    def _chunks(self, windows: Sequence[TokenWindow], call: Call) -> Encoded:
        """The vectors of each window's chunks, in which all of its words count a little."""
        context = f"{call.prompt or ''}\0{self._task(call)}\0"
        matrices = [
            np.stack([self._vector(self._read(text), context + " ".join(window.texts)) for text in window.texts])
            for window in windows
        ]
        counts = [len(window.ids) for window in windows]
        usable = Usable(windows, range(len(windows)), {})
        return encoded_matrices(matrices, call, self._finite, usable, counts=counts, padded_tokens=sum(counts))

    def _vector(self, text: Words, context: str) -> FloatArray:
        whole = _hashed(f"{context}\0{text.text}", self._dim)
        if not text.words:
            return whole
        words = sum(_weight(word) * _hashed_word(word, self._dim) for word in text.words)
        return _unit(_unit(words) + WHOLE_WEIGHT * whole)

    def _task(self, call: Call) -> object:
        """What stands for the call's task; of a catalogued model only one of its own."""
        tasks = cast("dict[str, int]", self._spec.settings.get("tasks", {}))
        if call.task is not None and self._spec.is_catalogued and call.task not in {*tasks, *tasks.values()}:
            raise OptionError(f"{self._spec.name} has no task {call.task!r}; it has {', '.join(tasks) or 'none'}")
        return tasks.get(cast(str, call.task), call.task)

    def _matrices(self, texts: Usable[Words], call: Call) -> Encoded:
        least = self._query_rows if call.mode == "query" else 1
        matrices = [self._matrix(each.words, least) for each in texts.values]
        counts = [-len(rows) if text.is_cut else len(rows) for rows, text in zip(matrices, texts.values, strict=True)]
        return encoded_matrices(
            matrices, call, self._finite, texts, counts=counts, padded_tokens=sum(map(len, matrices))
        )

    def _matrix(self, words: Sequence[str], least: int) -> FloatArray:
        """A row for each word; a short one is lengthened by its own words, which change no ranking."""
        known = words or [""]
        lengthened = [known[position % len(known)] for position in range(max(least, len(known)))]
        return np.stack([_hashed_word(word, self._dim) for word in lengthened])

    def _sparse(self, texts: Usable[Words], call: Call) -> Encoded:
        entries = texts.in_batch((self._entries(each.words, call) for each in texts.values), {})
        batch = sparse_batch(
            [np.fromiter(each, np.int32, len(each)) for each in entries],
            [np.fromiter(each.values(), np.float32, len(each)) for each in entries],
        )
        return Encoded(batch, texts.failures, padded_tokens=_tokens(texts), counts=texts.in_batch(_counts(texts), 0))

    def _entries(self, words: Sequence[str], call: Call) -> dict[int, float]:
        """The weight of each word: of a document it grows with its occurrences, of a query it is 1."""
        return {
            _number(word) % self._vocabulary_size: 1.0 if call.mode == "query" else 1.0 + float(np.log(count))
            for word, count in Counter(words).items()
        }

    # ---------------------------------------------------------------- pairs, images

    def _pairs(self, inputs: Sequence[object], call: Call) -> Encoded:
        """A logit for each pair, between about -4 and 4: the share of the query's words that the document has.

        An instruction's words count as the query's.
        """
        texts = split(map(read_pair, inputs))
        if call.instruction is not None:
            texts = texts.become([(f"{call.instruction} {query}", document) for query, document in texts.values])
        whole = call.mode == "count" and not call.truncated
        read = [self._read_pair(query, document, whole=whole) for query, document in texts.values]
        joined = texts.become([Words((), "", one.tokens + two.tokens, one.is_cut or two.is_cut) for one, two in read])
        usable = self._within_limit(joined, call)
        if call.mode == "count":
            return _counted(usable)
        pairs = dict(zip(texts.positions, read, strict=True))
        scores = np.zeros(len(inputs), np.float32)
        for position in usable.positions:
            scores[position] = _logit(*pairs[position])
        if call.activation != "none":
            scores = sigmoid(scores)
        counts = usable.in_batch(_counts(usable), 0)
        return Encoded(scores, usable.failures, padded_tokens=_tokens(usable), counts=counts)

    def _read_pair(self, query: str, document: str, *, whole: bool) -> tuple[Words, Words]:
        first = self._read(query, whole=whole)
        return first, self._read(document, whole=whole, taken=first.tokens)

    def _images(self, inputs: Sequence[object], call: Call) -> Encoded:
        """Of an image's pixels, whatever it comes in; it is decoded, so that a broken one is refused."""
        digests = split(map(self._digest, inputs))
        counts = [TOKENS_PER_IMAGE] * len(digests.values)
        if self._spec.family == "image":
            vectors = [_hashed(digest, self._dim) for digest in digests.values]
            rows: FloatArray = np.array(vectors, np.float32).reshape(-1, self._dim)
            return encoded_rows(rows, call, self._finite, digests, counts=counts, padded_tokens=sum(counts))
        matrices = [
            np.stack([_hashed(f"{digest}\0{row}", self._dim) for row in range(TOKENS_PER_IMAGE)])
            for digest in digests.values
        ]
        return encoded_matrices(matrices, call, self._finite, digests, counts=counts, padded_tokens=sum(counts))

    def _digest(self, value: object) -> str | InputError:
        from asyncembed.images.decode import DecodeOptions, decode
        from asyncembed.images.inputs import MAX_IMAGE_PIXELS

        options = DecodeOptions(
            apply_orientation=bool(self._keywords.get("apply_orientation")),
            max_pixels=cast(int, self._keywords.get("max_image_pixels") or MAX_IMAGE_PIXELS),
        )
        try:
            image = decode(value, options)
        except InputError as error:
            return error
        return shake_256(f"{image.size}".encode() + image.tobytes()).hexdigest(16)

    # ---------------------------------------------------------------- what tests ask for

    def _injected(self, inputs: Sequence[object]) -> dict[int, Any]:
        """The failures that inputs shall have."""
        causes = list(self._fakes.failures.items())
        if not causes:
            return {}
        found = ((position, _injected(value, causes)) for position, value in enumerate(inputs))
        return {position: error for position, error in found if error is not None}


def _injected(value: object, causes: Sequence[tuple[str, InputFailure]]) -> InputFailure | None:
    values = value.texts if isinstance(value, TokenWindow) else value if isinstance(value, tuple) else (value,)
    parts = [part for part in values if isinstance(part, str)]
    return next((error for cause, error in causes if any(cause in part for part in parts)), None)


def _query_rows(config: EncoderConfig) -> int:
    spec = config.spec
    if spec.family != "late_interaction":
        return 1
    if not spec.is_catalogued or "query_pad_length" not in spec.settings:
        return 1 if spec.is_catalogued else QUERY_ROWS
    length = cast("int | None", spec.settings["query_pad_length"])
    return 1 if length is None else length + 1  # the marker


def _logit(query: Words, document: Words) -> float:
    wanted = set(query.words)
    share = sum(map(_weight, wanted.intersection(document.words))) / (sum(map(_weight, wanted)) or 1.0)
    # No two documents are equally good, as with a model.
    return 8 * share - 4 + _number(f"{query.text}\0{document.text}") / 2**33


def _weight(word: str) -> float:
    """How much a word counts: the shortest ones say little."""
    return min(1.0, (len(word) / 4) ** 2)


def _counted(words: Usable[Words], least: int = 0) -> Encoded:
    return Encoded(words.in_batch((max(each.tokens, least) for each in words.values), 0), words.failures)


def _counts(words: Usable[Words]) -> list[int]:
    return [each.count for each in words.values]


def _tokens(words: Usable[Words]) -> int:
    return sum(each.tokens for each in words.values)


def _number(text: str) -> int:
    """From 0 to 2**31 - 1."""
    return int.from_bytes(shake_256(text.encode()).digest(4), "big") >> 1


def _hashed(text: str, dim: int) -> FloatArray:
    """A vector of unit length in the direction that the text's hash says: those of two texts are nearly orthogonal."""
    levels = np.frombuffer(shake_256(text.encode()).digest(dim), np.uint8)
    return _unit(levels.astype(np.float32) - 127.5)


_hashed_word: Callable[[str, int], FloatArray] = lru_cache(maxsize=4096)(_hashed)


def _unit(vector: Any) -> FloatArray:
    scaled: FloatArray = (vector / np.linalg.norm(vector)).astype(np.float32)
    return scaled
