"""Chunks of long documents: from the records of a caller's source to pieces, and from what comes of these to chunks.

A piece is what goes through the model as one input: a chunk, or, late, a window of several. To everything between the
source and the worker it is a record like any other: there is room for it, or the source waits, in the middle of a
document, too. So no more of one is tokenized, and waits, than of many small ones. Documents are cut where the source is
read: in the reader's thread, or, of an asynchronous source, piece by piece in a thread.
"""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from sys import getsizeof
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from anyio import to_thread

from asyncembed.checks import check_choice, check_count
from asyncembed.embedders.base import Opened, ReturningCall, StreamCall, StreamKeywords
from asyncembed.embedders.intake import Intake, Key, accept_text, read_record
from asyncembed.encoders.chunking import Boundaries, Chunker, ChunkPlan, Place
from asyncembed.encoders.encoder import TokenWindow
from asyncembed.encoders.registry import row_of, token_source
from asyncembed.encoders.sentences import check_sentences
from asyncembed.errors import OF_ONE_INPUT, AsyncEmbedError, InputError, OptionError
from asyncembed.faking import ENCODER
from asyncembed.feeding import Means, Recipient, Source, StreamState, close_generator
from asyncembed.results import Chunk
from asyncembed.window import Entry

if TYPE_CHECKING:
    from asyncembed.catalogue.spec import ModelSpec
    from asyncembed.engine.scheduler import Item


WINDOWS_PER_WORKER = 2
"""As many of the longest ones may wait in any case, for each worker: one that is computed, and the next."""


class ChunkCall(TypedDict, total=False):
    """What one call of `embed_chunks` may ask for.

    Keys:
        mode: "late" (unless said otherwise): the document goes through the model as a whole, and a chunk's vector is
            the mean of the hidden states of its own tokens, which have seen the rest of it. For models that are pooled
            by "mean". A document over the model's limit goes through in windows. "plain": each chunk by itself, as
            `embed` of `text[chunk.start : chunk.end]` gives it.
        chunk_tokens: Most tokens of a chunk: 256 unless said otherwise, or as many as the model has room for where that
            is fewer.
        overlap: About how many tokens, at most, a chunk has in common with the one before: 0 unless said otherwise.
        boundaries: Where chunks may end. "tokens" (unless said otherwise): behind a word, or, where there is no white
            space, behind a character. "sentences": behind a sentence; as many as are no longer than a chunk are one,
            and one that is longer is cut by tokens (needs `asyncembed[sentences]`). A function is given each text, in
            another thread, and gives the beginning and end of each chunk in characters, in the order of their
            beginnings; they may overlap, and what it leaves out is in no chunk. Those over `chunk_tokens` are cut by
            tokens.
        context_tokens: With "late", of documents over the model's limit: how many tokens each window has in common with
            the one before, as context for its first chunk. An eighth of the limit unless said otherwise. A window holds
            whole chunks only, so these should be a quarter of the limit or less.
        prompt: Text put before each chunk or, late, each window, instead of any prompt by name; "" for none. It is in
            no chunk.
        prompt_name: Name of the prompt put there.
        task: Task of a multi-task model, by name or number.
        truncate_dim: Keep only this many leading components, then normalise again (Matryoshka).
    """

    mode: Literal["late", "plain"]
    chunk_tokens: int | None
    overlap: int
    boundaries: Boundaries
    context_tokens: int | None
    prompt: str | None
    prompt_name: str | None
    task: str | int | None
    truncate_dim: int | None


class ChunkStreamCall(ChunkCall, StreamCall, total=False):
    """What a call may say that gives a stream of chunks."""


class ChunkReturningCall(ChunkCall, ReturningCall, total=False):
    """What a call may say that gives a stream with errors in the place of chunks."""


class ChunkStreamKeywords(ChunkCall, StreamKeywords, total=False):
    """What a call may say that gives either."""


def check_chunks(asked: ChunkCall) -> None:
    """See that a call can work, with a model for it.

    Raises:
        OptionError: It cannot.
        RuntimeMissingError: There is nothing that finds sentences.
    """
    boundaries = asked.get("boundaries", "tokens")
    check_choice("mode", asked.get("mode", "late"), ("late", "plain"))
    check_count("chunk_tokens", asked.get("chunk_tokens"), minimum=1)
    check_count("overlap", asked.get("overlap", 0), minimum=0, may_be_none=False)
    check_count("context_tokens", asked.get("context_tokens"), minimum=0)
    if not callable(boundaries):
        check_choice("boundaries", boundaries, ("tokens", "sentences"))
    elif asked.get("overlap"):
        raise OptionError(
            "overlap= goes with boundaries by tokens and sentences: spans of a function overlap as it says"
        )
    if not _is_late(asked) and asked.get("context_tokens") is not None:
        raise OptionError('context_tokens= goes with mode="late": plain chunks see no context')
    if boundaries == "sentences":
        check_sentences()


def check_pooling(asked: ChunkCall, spec: "ModelSpec") -> None:
    """See that a model can do what is asked. Raises `OptionError`."""
    is_fake = spec.encoder == ENCODER
    if not _is_late(asked):
        return
    if not is_fake and not row_of(spec).pools_spans:
        raise OptionError(f'{spec.name} gives no vectors to parts of a text: say mode="plain"')
    if spec.pooling != "mean" and not (is_fake and spec.pooling == "none"):
        raise OptionError(
            f"{spec.name} is pooled by {spec.pooling!r}, and late chunking takes the mean of a chunk's tokens: say "
            'mode="plain", or pooling="mean" in the constructor if that is what you want of this model'
        )


def chunk_plan(asked: ChunkCall, prompt: str) -> ChunkPlan:
    """What a call asks of its chunks."""
    return ChunkPlan(
        is_late=_is_late(asked),
        chunk_tokens=asked.get("chunk_tokens"),
        overlap=asked.get("overlap", 0),
        boundaries=asked.get("boundaries", "tokens"),
        context_tokens=asked.get("context_tokens"),
        prompt=prompt,
    )


def _is_late(asked: ChunkCall) -> bool:
    return asked.get("mode", "late") == "late"


# ---------------------------------------------------------------- from documents to pieces


@dataclass(slots=True)
class Piece:
    """What goes through the model as one input, and which chunks of a document it gives.

    Attributes:
        document: The record of the source.
        number: Which record, from 0 on.
        value: As the worker takes it; or why there is none.
        tokens: Of it.
        index: Of its first chunk.
        places: Of its chunks.
        is_last: Whether it ends its document.
        size_bytes: What it keeps in memory, and, if it is the last one, what its document does.
    """

    document: object
    number: int
    value: object
    tokens: int = 0
    index: int = 0
    places: tuple[Place, ...] | list[Place] = ()
    is_last: bool = True
    size_bytes: int = 0


class Cutting:
    """Makes pieces of the documents of one source.

    Attributes:
        plan: How; there before anything is read.
        read: How many records were read.
    """

    plan: ChunkPlan

    def __init__(self, opened: Opened, key: Key | None) -> None:
        self.read: int = 0
        self._opened = opened
        self._key = key
        self._cut: Callable[[str], Iterator[Any]] | None = None

    @property
    def limit(self) -> int | None:
        """Most tokens of a piece."""
        return self._opened.model.info.max_length

    def pieces(self, source: Source[Any]) -> Iterable[Piece] | AsyncIterable[Piece]:
        """Those of all documents, as lazily as the source is read."""
        if hasattr(type(source), "__aiter__"):
            return self._awaited(cast("AsyncIterable[Any]", source))
        return self._read(cast("Iterable[Any]", source))

    def _read(self, source: Iterable[Any]) -> Generator[Piece]:
        iterator = iter(source)
        try:
            for record in iterator:
                yield from self._of(record)
        finally:
            if isinstance(iterator, Generator):
                iterator.close()

    async def _awaited(self, source: AsyncIterable[Any]) -> AsyncGenerator[Piece]:
        limiter = self._opened.engine.limiter
        iterator = aiter(source)
        try:
            async for record in iterator:
                pieces = self._of(record)
                while (piece := await to_thread.run_sync(next, pieces, None, limiter=limiter)) is not None:
                    yield piece
        finally:
            await close_generator(iterator)

    def _of(self, record: object) -> Iterator[Piece]:
        """The pieces of one document, the last of them marked; none if it has no tokens."""
        number, index = self.read, 0
        self.read += 1
        last: Piece | None = None
        try:
            text, _, size_bytes = read_record(record, number, self._key, accept_text)
            for value, tokens, places in self._chunker()(_checked(cast(str, text))):
                if last is not None:
                    yield last
                last = Piece(record, number, value, tokens, index, places, False, _bytes_of(value, len(places)))
                index += len(places)
        except InputError as error:
            error.index = number
            if last is not None:
                yield last
            last = Piece(record, number, error)
            size_bytes = getsizeof(record)
        if last is not None:
            last.is_last = True
            last.size_bytes += size_bytes
            yield last

    def _chunker(self) -> Callable[[str], Iterator[Any]]:
        """What cuts documents; made with the first of them, as it reads the tokenizer."""
        if self._cut is None:
            opened, model = self._opened, self._opened.model
            if opened.token_source is None:
                opened.token_source = token_source(model.config)  # in two threads at once: one is dropped
            is_fake = model.config.spec.encoder == ENCODER
            chunker = Chunker(self.plan, opened.token_source, self.limit, model.name, gives_texts=is_fake)
            self._cut = chunker.pieces
        return self._cut


def _checked(text: str) -> str:
    from asyncembed.encoders.batch import read_text

    checked = read_text(text)
    if isinstance(checked, InputError):
        raise checked
    return checked


def _bytes_of(value: object, chunks: int) -> int:
    """About how many bytes a piece keeps in memory."""
    own = getsizeof(value.ids_bytes) if isinstance(value, TokenWindow) else getsizeof(value)
    return own + 128 * chunks


class PieceIntake(Intake):
    """From a piece to an item."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(accept_text, *arguments)

    def item(self, record: object, index: int, sink: Recipient) -> "tuple[Item, int]":
        """See `asyncembed.feeding.Intake`."""
        piece = cast(Piece, record)
        if isinstance(piece.value, AsyncEmbedError):
            raise piece.value
        return self._maker.sized_item(piece.value, piece.tokens, sink, index), piece.size_bytes


# ---------------------------------------------------------------- from results of pieces to chunks


class ChunkState(StreamState[Piece]):
    """That of a stream of chunks: its records are pieces, and to its consumer they are documents."""

    def __init__(self, cutting: Cutting, *arguments: Any, **keywords: Any) -> None:
        self._cutting = cutting
        super().__init__(*arguments, **keywords)
        self.keeps_inputs = True  # a result is nothing without its piece
        self._next = self._next_chunk
        self._chunks: deque[Entry] = deque()
        """Of the piece that was taken last: those that were not."""
        # Documents of which everything was taken, those before them included; and those that something failed of.
        self._through = self._through_then = 0
        self._failed_documents: set[int] = set()

    def _next_chunk(self) -> Entry | None:
        """The next chunk, or the next error."""
        while not self._chunks:
            self._through = self._through_then
            entry = self._window.take()
            if entry is None:
                return None
            piece = cast(Piece, entry.record)
            self._through_then = max(self._through, piece.number + piece.is_last)
            if entry.error is not None:
                return self._as_documents(entry, piece)
            self._chunks.extend(_chunks_of(entry, piece))
        chunk = self._chunks.popleft()
        if not self._chunks:
            self._through = self._through_then
        return chunk

    def _as_documents(self, entry: Entry, piece: Piece) -> Entry:
        """A piece's error as its document's."""
        self._through = self._through_then
        self._failed_documents.add(piece.number)
        if isinstance(entry.error, OF_ONE_INPUT):
            entry.error.index = piece.number
        entry.record = piece.document
        return entry

    def _counts(self) -> tuple[int, int, int]:
        failed = len(self._failed_documents)
        is_over = self._is_source_done and self._source_error is None and not self._window and not self._chunks
        through = self._cutting.read if is_over else self._through
        return self._cutting.read, max(0, through - failed), failed

    @property
    def _is_ready(self) -> bool:
        return bool(self._chunks) or super()._is_ready

    def close(self, end: BaseException | None = None) -> None:
        """See `StreamState`."""
        super().close(end)
        self._chunks.clear()
        self._next = self._window.take  # no circle, which only the collector would find

    def _compute_with(self, means: Means) -> None:
        super()._compute_with(means)
        longest = self._cutting.limit or 0
        self._window.max_tokens = max(self._window.max_tokens, WINDOWS_PER_WORKER * self.engine.size * longest)


def _chunks_of(entry: Entry, piece: Piece) -> Iterator[Entry]:
    """What the answer of a piece is, chunk by chunk, as if each had been an input."""
    vectors = entry.result if entry.result.ndim == 2 else entry.result[None]
    # What was computed besides the chunks' own tokens (context, special tokens) is the first one's.
    count = abs(entry.count) - sum(place.last - place.first for place in piece.places[1:])
    for index, (place, vector) in enumerate(zip(piece.places, vectors, strict=True)):
        tokens = place.last - place.first
        chunk = Entry(entry.index, piece.document, None, 0.0, vector.nbytes)
        chunk.result = Chunk(piece.document, piece.index + index, place.start, place.end, tokens, vector)
        chunk.count = tokens if index else (-max(1, count) if entry.count < 0 else count)
        yield chunk
