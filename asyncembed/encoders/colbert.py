"""A vector per token, for comparison by MaxSim: ColBERT and its descendants.

Khattab and Zaharia 2020, https://arxiv.org/abs/2004.12832. The models differ in a few numbers, which their specs hold:
a marker that says whether a text is a query or a document, the mask tokens that lengthen a short query, and the tokens
whose vectors a document leaves out.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from asyncembed.encoders.dense import counted
from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, ModelInfo
from asyncembed.encoders.finite import Finite, quietly
from asyncembed.encoders.pooling import FloatArray, IntArray, normalize
from asyncembed.encoders.postprocess import finish
from asyncembed.encoders.text_graph import TextGraph
from asyncembed.encoders.tokenization import TextTokenizer, Tokenized
from asyncembed.errors import InputError, UnsupportedModelError
from asyncembed.results import matrix_batch
from asyncembed.runtime.session import Array

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Row:
    """One input as the graph takes it.

    Attributes:
        ids: Its token ids, int64 (tokens,), markers and mask tokens included.
        attended: How many of them, from the first, the others may attend to.
        kept: Which of them have a vector in the result, bool (tokens,).
    """

    ids: IntArray
    attended: int
    kept: BoolArray


class LateInteractionEncoder:
    """The encoder of all late interaction text models. Results are matrices (tokens, dim).

    Mode "query" makes queries, "embed" and "passage" documents; "count" counts tokens, with the settings of the call
    `role` ("query" or "document") and `include_extension` (whether marker and mask tokens count too).

    Of `spec.settings` it reads:
        query_marker_id, document_marker_id: Id put after a text's first token; absent: none.
        mask_token: What lengthens a short query.
        query_pad_length: Tokens to which it is lengthened, the marker not included; absent: not at all.
        query_mask_attended: Whether the mask tokens are attended to.
        reserved_markers: By how many tokens the tokenizer's limit is too high to leave room for the marker.
        skip_punctuation: Whether a document leaves out the vectors of ASCII punctuation.
        skip_padding_id: Whether a document leaves out a pad token that stands in its text.
        normalize_queries: Whether queries are scaled to unit length; documents are as `spec.normalize` says.
    """

    def __init__(self, config: EncoderConfig) -> None:
        """Load tokenizer and graph; see `build` for the errors."""
        spec = config.spec
        settings = spec.settings
        self._spec = spec
        self._document_marker = _optional_int(settings, "document_marker_id")
        self._query_marker = _optional_int(settings, "query_marker_id")
        self._query_length = _optional_int(settings, "query_pad_length") or 0
        self._attends_to_masks = bool(settings.get("query_mask_attended", False))
        self._normalizes_queries = bool(settings.get("normalize_queries", False))
        has_marker = self._document_marker is not None
        self.tokenizer: TextTokenizer = TextTokenizer(
            config.directory,
            max_length=config.max_length or spec.max_length,
            # An explicit limit is one for all that the graph gets.
            reserve=int(has_marker) if config.max_length else _optional_int(settings, "reserved_markers") or 0,
            extra=int(has_marker),
            truncation_side="right" if has_marker else None,
        )
        self._mask_id = self._find_mask_id() if self._query_length else self.tokenizer.pad_id
        self._skipped = np.array(sorted(self._find_skipped_ids()), dtype=np.int64)
        self._graph = TextGraph(config)
        self._graph.fit(self.tokenizer, config.max_length, reserve=int(has_marker))
        self._check_query_length()
        self._finite = self._graph.finite
        self.info: ModelInfo = replace(
            self._graph.info,
            max_length=self.tokenizer.limit + has_marker,
            special_tokens=self.tokenizer.special_tokens() + has_marker,
        )

    @quietly
    def encode(self, inputs: Sequence[object], call: Call) -> Encoded:
        """Embed texts, or count their tokens; a text that cannot be tokenized is a failure."""
        done = self.tokenizer.encode(inputs, prefix=call.prompt or "", truncate=call.truncate)
        if call.mode == "count":
            return self._count(len(inputs), done, call)
        is_query = call.mode == "query"
        make_row = self._query if is_query else self._document
        rows = [make_row(np.array(encoding.ids, dtype=np.int64)) for encoding in done.encodings]
        vectors, padded = self._embed(rows)
        if self._normalizes_queries if is_query else self._spec.normalize:
            vectors = normalize(vectors)
        counts = [0] * len(inputs)
        for position, row in zip(done.positions, rows, strict=True):
            counts[position] = int(row.kept.sum())
        return encoded_matrices(
            vectors,
            counts,
            call,
            self._finite,
            failures=done.failures,
            tokens=sum(len(row.ids) for row in rows),
            padded_tokens=padded,
        )

    def _document(self, ids: IntArray) -> Row:
        ids = _with_marker(ids, self._document_marker)
        return Row(ids, len(ids), ~np.isin(ids, self._skipped))

    def _query(self, ids: IntArray) -> Row:
        attended = len(ids)
        missing = self._query_length - attended
        if missing > 0:
            ids = np.concatenate([ids, np.full(missing, self._mask_id, dtype=np.int64)])
        ids = _with_marker(ids, self._query_marker)
        attended = len(ids) if self._attends_to_masks else attended + (self._query_marker is not None)
        return Row(ids, attended, np.ones(len(ids), dtype=np.bool_))

    def _embed(self, rows: Sequence[Row]) -> tuple[FloatArray, int]:
        """The kept vectors of all rows, one row after the other, and the tokens computed for them."""
        vectors, padded = run_rows(self._graph, rows, self.tokenizer.pad_id)
        if vectors is None:
            return np.empty((0, self._spec.dim or 0), dtype=np.float32), 0
        if self._spec.dim is not None and vectors.shape[1] != self._spec.dim:
            raise UnsupportedModelError(
                f"the model is declared with dim={self._spec.dim}, but its vectors have {vectors.shape[1]}",
                model=self._spec.name,
            )
        return vectors, padded

    def _count(self, batch_size: int, done: Tokenized, call: Call) -> Encoded:
        encoded = counted(batch_size, done)
        settings = dict(call.settings)
        if not settings.get("include_extension"):
            return encoded
        counts = [0] * batch_size
        is_query = settings.get("role") == "query"
        for position, length in zip(done.positions, done.lengths, strict=True):
            marker = self._query_marker if is_query else self._document_marker
            counts[position] = (max(length, self._query_length) if is_query else length) + (marker is not None)
        return Encoded(counts, done.failures)

    def _check_query_length(self) -> None:
        length = self._query_length + (self._query_marker is not None)
        most = self._graph.fixed_length
        if most is not None and length > most:
            raise self._graph.unsupported(
                f"takes exactly {most} tokens, but a query of this model has at least {length}"
            )

    def _find_mask_id(self) -> int:
        token = str(self._spec.settings.get("mask_token", "[MASK]"))
        if token not in self.tokenizer.special_ids:
            raise UnsupportedModelError(
                f"the tokenizer has no special token {token!r}, with which short queries are lengthened",
                model=self._spec.name,
            )
        return self.tokenizer.special_ids[token]

    def _find_skipped_ids(self) -> set[int]:
        """The ids whose vectors a document leaves out.

        Of a punctuation mark that the tokenizer writes as several pieces it is the first piece, as in ColBERT's own
        code; with a SentencePiece vocabulary that may be the piece for a word boundary.
        """
        skipped: set[int] = set()
        settings = self._spec.settings
        if settings.get("skip_punctuation"):
            for symbol in string.punctuation:
                skipped.update(self.tokenizer.tokenizer.encode(symbol, add_special_tokens=False).ids[:1])
        if settings.get("skip_padding_id"):
            skipped.add(self.tokenizer.pad_id)
        return skipped


def encoded_matrices(
    vectors: FloatArray,
    counts: Sequence[int],
    call: Call,
    finite: Finite,
    *,
    failures: Mapping[int, InputError],
    tokens: int,
    padded_tokens: int,
) -> Encoded:
    """The answer to a batch with a matrix per input: `counts` are the rows that each of them has in `vectors`."""
    results = finish(vectors, call)
    owners = np.repeat(np.arange(len(counts)), counts)
    not_finite = finite.failures_of_form(vectors, results, owners)
    return Encoded(
        matrix_batch(results, counts), {**failures, **not_finite}, tokens=tokens, padded_tokens=padded_tokens
    )


def run_rows(graph: TextGraph, rows: Sequence[Row], pad_id: int, **extra: Array) -> tuple[FloatArray | None, int]:
    """Run rows of any lengths in micro-batches.

    Returns:
        The kept token vectors, float32 (sum of kept, dim), in the order of `rows`, and the tokens computed, padding
        included. None instead of the vectors if there are no rows.
    """
    ends = np.cumsum([int(row.kept.sum()) for row in rows])
    vectors: FloatArray | None = None
    padded = 0
    for run in graph.plan([len(row.ids) for row in rows]):
        ids = np.full((len(run.rows), run.length), pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for line, index in enumerate(run.rows):
            row = rows[index]
            ids[line, : len(row.ids)] = row.ids
            mask[line, : row.attended] = 1
        padded += ids.size
        hidden = graph.run_text(ids, mask, **extra)
        if hidden.ndim != 3 or hidden.shape[:2] != ids.shape:
            raise UnsupportedModelError(
                f"the graph gives an output of shape {hidden.shape} for ids of shape {ids.shape}; "
                "a late interaction model has one vector for each token"
            )
        if vectors is None:
            vectors = np.empty((int(ends[-1]), hidden.shape[2]), dtype=np.float32)
        for line, index in enumerate(run.rows):
            row = rows[index]
            end = int(ends[index])
            kept = hidden[line, : len(row.ids)][row.kept]
            vectors[end - len(kept) : end] = kept
    return vectors, padded


def _with_marker(ids: IntArray, marker: int | None) -> IntArray:
    """`ids` with `marker` after the first one, which is the start token."""
    if marker is None:
        return ids
    return np.concatenate([ids[:1], np.array([marker], dtype=np.int64), ids[1:]])


def _optional_int(settings: Mapping[str, object], name: str) -> int | None:
    value = settings.get(name)
    assert value is None or isinstance(value, int)
    return value
