"""A vector per token, for comparison by MaxSim: ColBERT and its descendants.

Khattab and Zaharia 2020, https://arxiv.org/abs/2004.12832. The models differ in a few numbers, which their specs hold:
a marker that says whether a text is a query or a document, the mask tokens that lengthen a short query, the tokens
whose vectors a document leaves out, and linear layers on the hidden states, where the graph does not have them.
"""

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, ModelInfo
from asyncembed.encoders.finite import quietly
from asyncembed.encoders.pooling import IntArray, normalize
from asyncembed.encoders.postprocess import encoded_matrices
from asyncembed.encoders.projection import Projection, read_inner_projection, read_projections
from asyncembed.encoders.settings import ColbertSettings, read_settings
from asyncembed.encoders.text_graph import TextGraph
from asyncembed.encoders.token_pooling import TokenPooling
from asyncembed.encoders.tokenization import TextTokenizer, count_tokens
from asyncembed.errors import UnsupportedModelError
from asyncembed.runtime.safetensors import find_weights
from asyncembed.runtime.session import Array

BoolArray = npt.NDArray[np.bool_]

_STATES = ("last_hidden_state", "token_embeddings", "hidden_states")
"""What exporters call hidden states."""


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
        in_document, in_query = (_has(settings, role) for role in ("document", "query"))
        tokenizer = TextTokenizer(
            config.directory,
            max_length=config.max_length or spec.max_length,
            lower_case=settings.lower_case,
            # An explicit limit is one for all that the graph gets.
            reserve=int(in_document) if config.max_length else settings.reserved_markers,
            extra=int(in_document),
            truncation_side="right" if in_document or in_query else None,
        )
        self._document_marker = _marker(tokenizer, settings.document_marker, settings.document_marker_id)
        self._query_marker = _marker(tokenizer, settings.query_marker, settings.query_marker_id)
        self._mask_id = self._find_mask_id(tokenizer) if self._query_length else tokenizer.pad_id
        self._skipped = np.array(sorted(self._find_skipped_ids(tokenizer)), dtype=np.int64)
        self._graph = TextGraph(config, settings, tokenizer, markers=int(in_document))
        self.tokenizer: TextTokenizer = self._graph.tokenizer
        self._query_tokenizer = self._find_query_tokenizer(config)
        self._check_query_length()
        self._layers = _read_layers(config, settings)
        self._has_results = self._whether_graph_finishes()
        self._pooling = _pooling(settings)
        self.info: ModelInfo = replace(self._graph.info, dim=self._find_dim())

    @quietly
    def encode(self, inputs: Sequence[object], call: Call) -> Encoded:
        """Embed texts, or count their tokens; a text that cannot be tokenized is a failure."""
        if call.mode == "count":
            extra = self._extended(call.role) if call.include_extension else int
            return count_tokens(self._tokenizer_of(is_query=call.role == "query").count(inputs, call), extra)
        is_query = call.mode == "query"
        tokenizer = self._tokenizer_of(is_query=is_query)
        done = tokenizer.encode(inputs, prefix=call.prompt or "", long=call.long)
        make_row = self._query if is_query else self._document
        rows = [make_row(np.array(encoding.ids, dtype=np.int64)) for encoding in done.values]
        matrices, padded = self._embed(rows)
        scales = self._settings.normalize_queries if is_query else self._spec.normalize
        if self._pooling is not None and not is_query:
            matrices = [self._pooling(normalize(matrix) if scales else matrix) for matrix in matrices]
            scales = False
        return encoded_matrices(
            matrices,
            call,
            self._graph.finite,
            done,
            scales=scales,
            counts=tokenizer.computed(done, [len(row.ids) for row in rows]),
            padded_tokens=padded,
        )

    def _document(self, ids: IntArray) -> Row:
        ids = _with_marker(ids, self._document_marker)
        return Row(ids, len(ids), ~np.isin(ids, self._skipped))

    def _query(self, ids: IntArray) -> Row:
        missing = self._query_length - len(ids)
        if missing > 0:
            ids = np.concatenate([ids, np.full(missing, self._mask_id, dtype=np.int64)])
        ids = _with_marker(ids, self._query_marker)
        attended = len(ids) if self._settings.query_mask_attended else len(ids) - max(0, missing)
        skips = self._settings.skips_in_queries
        return Row(ids, attended, ~np.isin(ids, self._skipped) if skips else np.ones(len(ids), dtype=np.bool_))

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
                matrices[index] = self._results(hidden[line, place][rows[index].kept])
        return matrices, sum(run.ids.size for run in runs)

    def _results(self, states: Array) -> Array:
        """The vectors of a text's tokens, of what the graph gives for them: (tokens, width) each."""
        if self._has_results is None:
            self._has_results = self._are_results(states.shape[1])
        if self._has_results:
            return states
        if not self._layers:
            raise self._graph.unsupported(
                f"gives hidden states of length {states.shape[1]}, not the vectors that the model's last layer makes "
                "of them; name another one with onnx_file="
            )
        for layer in self._layers:
            states = layer(states.astype(np.float32, copy=False))
        return states

    def _whether_graph_finishes(self) -> bool | None:
        """Whether what the graph gives are results; None: its first output will tell."""
        if not self._layers and not self._settings.finishes:
            return True
        shape = self._graph.session.output_shape(self._graph.output)
        return None if not shape or shape[-1] is None else self._are_results(shape[-1])

    def _are_results(self, width: int) -> bool:
        if not self._layers:
            return width != self.tokenizer.files.model_config.get("hidden_size")
        first, last = self._layers[0].weight, self._layers[-1].weight
        return width == len(last) and (width != first.shape[1] or self._graph.output not in _STATES)

    def _find_dim(self) -> int | None:
        """Length of the vectors, as far as it is declared."""
        if self._layers:
            return len(self._layers[-1].weight)
        shape = self._graph.session.output_shape(self._graph.output)
        return shape[-1] if len(shape) == 3 and self._has_results else None

    def _tokenizer_of(self, *, is_query: bool) -> TextTokenizer:
        return self._query_tokenizer if is_query else self.tokenizer

    def _find_query_tokenizer(self, config: EncoderConfig) -> TextTokenizer:
        limit, marker = self._settings.query_max_length, int(self._query_marker is not None)
        if limit is None:
            return self.tokenizer
        bounds = [limit, *(each for each in (config.max_length, self._graph.fixed_length) if each is not None)]
        return self.tokenizer.relimited(min(bounds) - marker, extra=marker)

    def _extended(self, role: str) -> Callable[[int], int]:
        """From the tokens of a text to those that the graph gets."""
        if role == "query":
            return lambda count: max(count, self._query_length) + (self._query_marker is not None)
        return lambda count: count + (self._document_marker is not None)

    def _check_query_length(self) -> None:
        length = self._query_length + (self._query_marker is not None)
        taken = self._graph.fixed_length
        if taken is not None and length > taken:
            raise self._graph.unsupported(
                f"takes exactly {taken} tokens, but a query of this model has at least {length}"
            )

    def _find_mask_id(self, tokenizer: TextTokenizer) -> int:
        token, roles = self._settings.mask_token, tokenizer.files.ids_by_role
        found = roles.get("mask_token", roles.get("eos_token")) if token is None else tokenizer.token_id(token)
        if found is None:
            raise UnsupportedModelError(
                f"the tokenizer has no {'mask token' if token is None else f'token {token!r}'}, with which short "
                "queries are lengthened",
                model=self._spec.name,
            )
        return found

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
        words = [tokenizer.token_id(word) for word in self._settings.skip_words]
        if None in words and self._settings.skip_unknown:
            words.append(tokenizer.files.ids_by_role.get("unk_token"))
        skipped.update(word for word in words if word is not None)
        return skipped


def _has(settings: ColbertSettings, role: Literal["query", "document"]) -> bool:
    """Whether texts of a role have a marker."""
    if role == "query":
        return settings.query_marker_id is not None or bool(settings.query_marker)
    return settings.document_marker_id is not None or bool(settings.document_marker)


def _marker(tokenizer: TextTokenizer, token: str | None, marker: int | None) -> int | None:
    if not token:
        return marker
    found = tokenizer.token_id(token)
    if found is None:
        raise UnsupportedModelError(
            f"the tokenizer in {tokenizer.files.directory} has no token {token!r}, which is to mark what a text is",
            model=str(tokenizer.files.directory),
        )
    return found


def _read_layers(config: EncoderConfig, settings: ColbertSettings) -> list[Projection]:
    if settings.projection_in_weights:
        return [read_inner_projection(*find_weights(config.directory))]
    return read_projections(config.directory, settings.projections)


def _pooling(settings: ColbertSettings) -> TokenPooling | None:
    if settings.pool_factor is None:
        return None
    return TokenPooling(settings.pool_factor, settings.protected_tokens, settings.normalize_pooled)


def _with_marker(ids: IntArray, marker: int | None) -> IntArray:
    """`ids` with `marker` after the first one, which is the start token."""
    if marker is None:
        return ids
    return np.concatenate([ids[:1], np.array([marker], dtype=np.int64), ids[1:]])
