"""A vector per token, for comparison by MaxSim: ColBERT and its descendants.

Khattab and Zaharia 2020, https://arxiv.org/abs/2004.12832. The models differ in a few numbers, which their specs hold:
a marker that says whether a text is a query or a document, the mask tokens that lengthen a short query, and the tokens
whose vectors a document leaves out.
"""

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, ModelInfo
from asyncembed.encoders.finite import quietly
from asyncembed.encoders.pooling import IntArray
from asyncembed.encoders.postprocess import encoded_matrices
from asyncembed.encoders.settings import ColbertSettings, read_settings
from asyncembed.encoders.text_graph import TextGraph
from asyncembed.encoders.tokenization import TextTokenizer, count_tokens
from asyncembed.errors import UnsupportedModelError
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

    Mode "query" makes queries, "embed" and "passage" documents; "count" counts tokens, with `include_extension` marker
    and mask tokens, too.
    """

    def __init__(self, config: EncoderConfig) -> None:
        """Load tokenizer and graph; see `build` for the errors."""
        self._spec = spec = config.spec
        self._settings = settings = read_settings(ColbertSettings, spec, config.keywords)
        self._query_length = settings.query_pad_length or 0
        has_marker = settings.document_marker_id is not None
        tokenizer = TextTokenizer(
            config.directory,
            max_length=config.max_length or spec.max_length,
            # An explicit limit is one for all that the graph gets.
            reserve=int(has_marker) if config.max_length else settings.reserved_markers,
            extra=int(has_marker),
            truncation_side="right" if has_marker else None,
        )
        self._mask_id = self._find_mask_id(tokenizer) if self._query_length else tokenizer.pad_id
        self._skipped = np.array(sorted(self._find_skipped_ids(tokenizer)), dtype=np.int64)
        self._graph = TextGraph(config, settings, tokenizer, markers=int(has_marker))
        self.tokenizer: TextTokenizer = self._graph.tokenizer
        self._check_query_length()
        self.info: ModelInfo = self._graph.info

    @quietly
    def encode(self, inputs: Sequence[object], call: Call) -> Encoded:
        """Embed texts, or count their tokens; a text that cannot be tokenized is a failure."""
        if call.mode == "count":
            extra = self._extended(call.role) if call.include_extension else int
            return count_tokens(self.tokenizer.count(inputs, call), extra)
        done = self.tokenizer.encode(inputs, prefix=call.prompt or "", truncate=call.truncate)
        is_query = call.mode == "query"
        make_row = self._query if is_query else self._document
        rows = [make_row(np.array(encoding.ids, dtype=np.int64)) for encoding in done.values]
        matrices, padded = self._embed(rows)
        return encoded_matrices(
            matrices,
            call,
            self._graph.finite,
            done,
            scales=self._settings.normalize_queries if is_query else self._spec.normalize,
            counts=self.tokenizer.computed(done, [len(row.ids) for row in rows]),
            padded_tokens=padded,
        )

    def _document(self, ids: IntArray) -> Row:
        ids = _with_marker(ids, self._settings.document_marker_id)
        return Row(ids, len(ids), ~np.isin(ids, self._skipped))

    def _query(self, ids: IntArray) -> Row:
        missing = self._query_length - len(ids)
        if missing > 0:
            ids = np.concatenate([ids, np.full(missing, self._mask_id, dtype=np.int64)])
        ids = _with_marker(ids, self._settings.query_marker_id)
        attended = len(ids) if self._settings.query_mask_attended else len(ids) - max(0, missing)
        return Row(ids, attended, np.ones(len(ids), dtype=np.bool_))

    def _embed(self, rows: Sequence[Row]) -> tuple[list[Array], int]:
        """The kept vectors of each row, (kept, dim), and the tokens computed for all."""
        matrices: list[Array] = [np.empty(0)] * len(rows)
        runs = self._graph.runs([row.ids for row in rows])
        for run in runs:
            width = run.ids.shape[1]
            places = [self.tokenizer.places(len(rows[index].ids), width) for index in run.rows]
            for line, (index, place) in enumerate(zip(run.rows, places, strict=True)):
                run.mask[line, place][rows[index].attended :] = 0
            hidden = self._graph.run_text(run.ids, run.mask)
            if hidden.ndim != 3 or hidden.shape[:2] != run.ids.shape:
                raise UnsupportedModelError(
                    f"the graph gives an output of shape {hidden.shape} for ids of shape {run.ids.shape}; "
                    "a late interaction model has one vector for each token"
                )
            for line, (index, place) in enumerate(zip(run.rows, places, strict=True)):
                matrices[index] = hidden[line, place][rows[index].kept]
        return matrices, sum(run.ids.size for run in runs)

    def _extended(self, role: str) -> Callable[[int], int]:
        """From the tokens of a text to those that the graph gets."""
        if role == "query":
            return lambda count: max(count, self._query_length) + (self._settings.query_marker_id is not None)
        return lambda count: count + (self._settings.document_marker_id is not None)

    def _check_query_length(self) -> None:
        length = self._query_length + (self._settings.query_marker_id is not None)
        taken = self._graph.fixed_length
        if taken is not None and length > taken:
            raise self._graph.unsupported(
                f"takes exactly {taken} tokens, but a query of this model has at least {length}"
            )

    def _find_mask_id(self, tokenizer: TextTokenizer) -> int:
        token = self._settings.mask_token
        if token not in tokenizer.special_ids:
            raise UnsupportedModelError(
                f"the tokenizer has no special token {token!r}, with which short queries are lengthened",
                model=self._spec.name,
            )
        return tokenizer.special_ids[token]

    def _find_skipped_ids(self, tokenizer: TextTokenizer) -> set[int]:
        """The ids whose vectors a document leaves out.

        Of a punctuation mark that the tokenizer writes as several pieces it is the first piece, as in ColBERT's own
        code; with a SentencePiece vocabulary that may be the piece for a word boundary.
        """
        skipped: set[int] = set()
        if self._settings.skip_punctuation:
            skipped.update(*(tokenizer.ids_within(symbol)[:1] for symbol in string.punctuation))
        if self._settings.skip_padding_id:
            skipped.add(tokenizer.pad_id)
        return skipped


def _with_marker(ids: IntArray, marker: int | None) -> IntArray:
    """`ids` with `marker` after the first one, which is the start token."""
    if marker is None:
        return ids
    return np.concatenate([ids[:1], np.array([marker], dtype=np.int64), ids[1:]])
