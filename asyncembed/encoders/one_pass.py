"""One pass through a model, several results for a text: bge-m3 and its like.

Chen et al. 2024, "M3-Embedding", https://arxiv.org/abs/2402.03216, section 3.2. All results come from the same hidden
states: a vector for the text, a weight for each of its tokens, and a vector for each of them. The weights and vectors
of tokens are linear layers of the states. These lie in files of their own, or an exporter has put them into the graph,
whose outputs are then told by their names and shapes.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from asyncembed.catalogue.spec import Pooling
from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, Failures, ModelInfo, Results
from asyncembed.encoders.finite import Finite, quietly
from asyncembed.encoders.graph_output import FINISHED_OUTPUTS
from asyncembed.encoders.pooling import FloatArray, normalize, pool
from asyncembed.encoders.postprocess import check_dim, encoded_matrices, encoded_rows
from asyncembed.encoders.settings import HybridSettings, read_settings
from asyncembed.encoders.sparse_graph import NO_ENTRIES, NOT_FINITE, Entries, failures_of_entries
from asyncembed.encoders.text_graph import TextGraph, TextRun
from asyncembed.encoders.tokenization import IntArray, TextTokenizer, Tokenized, count_tokens, tokenizer_of
from asyncembed.errors import ModelLoadError, OptionError, UnsupportedModelError
from asyncembed.repo_files import inside
from asyncembed.results import HybridBatch, HybridOutput, sparse_batch
from asyncembed.runtime.safetensors import read_tensors
from asyncembed.runtime.session import Array
from asyncembed.runtime.torch_file import read_torch_file

DENSE_OUTPUTS = ("dense_vecs", "dense")
SPARSE_OUTPUTS = ("sparse_vecs", "sparse")
LATE_INTERACTION_OUTPUTS = ("colbert_vecs", "colbert")
"""What exporters of whole models call the outputs of their graphs."""

ROLES_WITHOUT_WEIGHT = ("cls_token", "eos_token", "pad_token", "unk_token")
"""Of tokens that stand for no word. (A mask token counts, where a text has one.)"""


# ---------------------------------------------------------------- a kind of result each


class Kind(Protocol):
    """One kind of result. All that it needs of a run is in one output of the graph."""

    @property
    def output(self) -> str:
        """The name of that output."""
        ...

    def read(self, run: TextRun, values: Array, places: Sequence[slice]) -> Sequence[Any]:
        """The result of each text of a run, from the output; `places` are where in its row each text's tokens stand."""
        ...

    def gathered(self, results: Sequence[Any], texts: Tokenized, call: Call) -> tuple[Results, Failures]:
        """All results of a batch, one per usable text, as they travel; and which of them are not finite."""
        ...


@dataclass(frozen=True, slots=True)
class Dense:
    """A vector per text; `pooling` makes it of hidden states, and is "none" where the graph gives it."""

    output: str
    pooling: Pooling
    normalizes: bool
    finite: Finite

    def read(self, run: TextRun, values: Array, places: Sequence[slice]) -> Sequence[Any]:  # noqa: ARG002 (see `Kind`)
        """See `Kind`."""
        if values.ndim != (2 if self.pooling == "none" else 3):
            raise _misshapen(self.finite, self.output, values)
        vectors = values.astype(np.float32) if self.pooling == "none" else pool(values, run.mask, self.pooling)
        return list(normalize(vectors) if self.normalizes else vectors)

    def gathered(self, results: Sequence[Any], texts: Tokenized, call: Call) -> tuple[Results, Failures]:
        """See `Kind`."""
        rows = np.stack(results) if results else np.empty((0, self.finite.spec.dim or 0), np.float32)
        done = encoded_rows(rows, call, self.finite, texts, counts=[0] * len(rows), padded_tokens=0)
        return done.results, done.failures


@dataclass(frozen=True, slots=True)
class Head:
    """A linear layer on hidden states: weight (out, in), bias (out,), both float32."""

    weight: FloatArray
    bias: FloatArray

    def __call__(self, states: Array) -> FloatArray:
        """From (tokens, in) to (tokens, out).

        Raises:
            UnsupportedModelError: The states are of another length.
        """
        if states.shape[1] != self.weight.shape[1]:
            raise UnsupportedModelError(
                f"the model has hidden states of length {states.shape[1]}, and a linear layer for those of length "
                f"{self.weight.shape[1]}"
            )
        values: FloatArray = states.astype(np.float32, copy=False) @ self.weight.T
        return values + self.bias


@dataclass(frozen=True, slots=True)
class Sparse:
    """The weights of a text's words. A word that comes several times has the largest of its weights.

    Attributes:
        output: See `Kind`.
        head: From hidden states to a weight (1, in); None: the graph gives the weights, (batch, tokens) or
            (batch, tokens, 1).
        dropped: Ids that never count.
        finite: Words the errors.
    """

    output: str
    head: Head | None
    dropped: IntArray
    finite: Finite

    def read(self, run: TextRun, values: Array, places: Sequence[slice]) -> Sequence[Any]:
        """See `Kind`."""
        if self.head is None and values.size == run.ids.size:
            values = values.reshape(run.ids.shape)
        elif self.head is None or values.ndim != 3:
            raise _misshapen(self.finite, self.output, values)
        return [self._entries(ids[place], row[place]) for ids, row, place in zip(run.ids, values, places, strict=True)]

    def _entries(self, ids: IntArray, values: Array) -> Entries:
        weights = values.astype(np.float32, copy=False) if self.head is None else self.head(values)[:, 0]
        if not np.isfinite(weights).all():
            return NOT_FINITE
        counts = (weights > 0) & ~np.isin(ids, self.dropped)
        indices, places = np.unique(ids[counts], return_inverse=True)
        largest = np.zeros(len(indices), np.float32)
        np.maximum.at(largest, places, weights[counts])
        return indices, largest

    def gathered(self, results: Sequence[Any], texts: Tokenized, call: Call) -> tuple[Results, Failures]:  # noqa: ARG002
        """See `Kind`."""
        entries = texts.in_batch(results, NO_ENTRIES)
        batch = sparse_batch([indices for indices, _ in entries], [weights for _, weights in entries])
        return batch, failures_of_entries(batch, self.finite)


@dataclass(frozen=True, slots=True)
class LateInteraction:
    """A vector per token but the first one, of unit length.

    Attributes:
        output: See `Kind`.
        head: From hidden states to vectors (out, in); None: the graph gives these, for all tokens or for all but the
            first position of a row.
        finite: Words the errors; the `dim` of its spec is that of these vectors.
    """

    output: str
    head: Head | None
    finite: Finite

    def read(self, run: TextRun, values: Array, places: Sequence[slice]) -> Sequence[Any]:
        """See `Kind`."""
        left_out = run.ids.shape[1] - values.shape[1] if values.ndim == 3 else -1
        if left_out not in (0, 1) or (self.head is not None and left_out):
            raise _misshapen(self.finite, self.output, values)
        rows = [
            row[place.start + 1 - left_out : max(place.start + 1, place.stop) - left_out]
            for row, place in zip(values, places, strict=True)
        ]
        return rows if self.head is None else [self.head(row) for row in rows]

    def gathered(self, results: Sequence[Any], texts: Tokenized, call: Call) -> tuple[Results, Failures]:
        """See `Kind`."""
        done = encoded_matrices(
            results, call, self.finite, texts, scales=True, counts=[0] * len(results), padded_tokens=0
        )
        return done.results, done.failures


# ---------------------------------------------------------------- the encoder


class HybridEncoder:
    """The encoder of models with several results for a text: a `HybridBatch` of what the call asks for.

    A class that is for one kind of result gets that alone.
    """

    def __init__(self, config: EncoderConfig) -> None:
        """Load tokenizer, graph and layers; see `build` for the errors."""
        spec = config.spec
        settings = read_settings(HybridSettings, spec, config.keywords)
        self._name, self._only = spec.name, settings.only
        self._graph = TextGraph(config, settings, tokenizer_of(config))
        self.tokenizer: TextTokenizer = self._graph.tokenizer
        kinds = dict(self._find_kinds(config, settings))
        self._kinds: dict[HybridOutput, Kind] = kinds if self._only is None else {self._only: kinds[self._only]}
        # An empty text warms the session, and shows now whether all fits together.
        found, _ = self._compute(self.tokenizer.encode([""]), tuple(self._kinds))
        dim = len(found["dense"][0]) if "dense" in found else None
        token_dim = found["late_interaction"][0].shape[1] if "late_interaction" in found else None
        if dim is not None:
            check_dim(spec, dim)
        self.info: ModelInfo = replace(
            self._graph.info,
            dim=dim or token_dim,
            outputs=tuple(self._kinds) if self._only is None else (),
            token_dim=token_dim,
        )

    @quietly
    def encode(self, inputs: Sequence[object], call: Call) -> Encoded:
        """Embed texts, or count their tokens; a text that cannot be tokenized is a failure.

        Raises:
            OptionError: The call asks for a kind of result that the model does not have.
        """
        if call.mode == "count":
            return count_tokens(self.tokenizer.count(inputs, call))
        if missing := [name for name in call.outputs if name not in self._kinds]:
            raise OptionError(f"{self._name} has no {missing[0]} results, only {', '.join(self._kinds)}")
        texts = self.tokenizer.encode(inputs, prefix=call.prompt or "", long=call.long)
        found, padded = self._compute(texts, call.outputs or tuple(self._kinds))
        failures: Failures = texts.failures
        batches: dict[str, Any] = {}
        for name, results in found.items():
            batches[name], not_finite = self._kinds[name].gathered(results, texts, call)
            failures = {**failures, **not_finite}
        counts = texts.in_batch(self.tokenizer.computed(texts), 0)
        answer = HybridBatch(len(inputs), **batches) if self._only is None else batches[self._only]
        return Encoded(answer, failures, padded_tokens=padded, counts=counts)

    @quietly
    def _compute(self, texts: Tokenized, asked: Sequence[HybridOutput]) -> tuple[dict[HybridOutput, list[Any]], int]:
        """The results of the usable texts, of each kind that is asked for, and the tokens computed for them."""
        rows = [encoding.ids for encoding in texts.values]
        found: dict[HybridOutput, list[Any]] = {name: [None] * len(rows) for name in asked}
        outputs = list(dict.fromkeys(self._kinds[name].output for name in asked))
        runs = self._graph.runs(rows)
        for run in runs:
            values = dict(
                zip(outputs, self._graph.run_outputs(outputs, self._graph.feeds(run.ids, run.mask)), strict=True)
            )
            places = [self.tokenizer.places(len(rows[row]), run.ids.shape[1]) for row in run.rows]
            for name in asked:
                kind = self._kinds[name]
                for row, result in zip(run.rows, kind.read(run, values[kind.output], places), strict=True):
                    found[name][row] = result
        return found, sum(run.ids.size for run in runs)

    # ---------------------------------------------------------------- what the model has

    def _find_kinds(self, config: EncoderConfig, settings: HybridSettings) -> Iterator[tuple[HybridOutput, Kind]]:
        spec, finite = config.spec, self._graph.finite
        if dense := self._named(DENSE_OUTPUTS if spec.pooling != "none" else (*DENSE_OUTPUTS, *FINISHED_OUTPUTS)):
            yield "dense", Dense(dense, "none", normalizes=True, finite=finite)
        elif spec.pooling != "none":
            yield "dense", Dense(self._graph.output, spec.pooling, spec.normalize, finite)
        sparse, sparse_head = self._source(SPARSE_OUTPUTS, config.directory, settings.sparse_head)
        if sparse is not None:
            if sparse_head is not None and len(sparse_head.weight) != 1:
                raise ModelLoadError(f"{settings.sparse_head} gives more than one weight for a token", model=spec.name)
            yield "sparse", Sparse(sparse, sparse_head, self._ids_without_weight(), finite)
        matrices, head = self._source(LATE_INTERACTION_OUTPUTS, config.directory, settings.late_interaction_head)
        if matrices is not None:
            of_tokens = copy(finite)
            of_tokens.spec = replace(spec, dim=None if head is None else len(head.weight))
            yield "late_interaction", LateInteraction(matrices, head, of_tokens)
        if sparse is matrices is None:
            raise UnsupportedModelError(
                f"{spec.name} has neither sparse nor late interaction results beside its dense vectors (in files of "
                f"their own, or as outputs {SPARSE_OUTPUTS[0]} and {LATE_INTERACTION_OUTPUTS[0]} of the graph): "
                "TextEmbedding is the class for it",
                model=spec.name,
            )

    def _source(self, names: Sequence[str], directory: Path, file: str | None) -> tuple[str | None, Head | None]:
        """The output that has a kind of result, or the hidden states and the layer on them, or neither."""
        if (output := self._named(names)) is not None:
            return output, None
        return (None, None) if file is None else (self._graph.output, read_head(inside(directory, file)))

    def _named(self, names: Sequence[str]) -> str | None:
        return next((name for name in names if name in self._graph.session.output_names), None)

    def _ids_without_weight(self) -> IntArray:
        files = self.tokenizer.files
        found = [id_ for role, id_ in files.ids_by_role.items() if role in ROLES_WITHOUT_WEIGHT]
        # All special ones where no file says which is which.
        return np.array(found or list(files.special_ids.values()), dtype=np.int64)


def read_head(path: Path) -> Head:
    """The linear layer in a file of safetensors or, with the ending ".pt", of torch.

    Raises:
        ModelLoadError: The file is missing or broken, or there is something else in it.
    """
    tensors = dict(read_torch_file(path) if path.suffix == ".pt" else read_tensors(path))
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if weight is None or weight.ndim != 2 or bias is None or bias.shape != weight.shape[:1]:
        raise ModelLoadError(
            f"{path} is no linear layer, which has weight (out, in) and bias (out,)", model=str(path.parent)
        )
    return Head(weight.astype(np.float32), bias.astype(np.float32))


def _misshapen(finite: Finite, output: str, values: Array) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the graph's output {output} has the shape {values.shape}, which is none that a hybrid model's can have",
        model=finite.spec.name,
    )
