"""One vector per text without a graph: the mean of fixed token vectors.

Two layouts are read: model2vec's (tensor `embeddings`, with `mapping` from token to row and `weights` per
token where the vocabulary was reduced), and the module `StaticEmbedding` of sentence-transformers (tensor
`embedding.weight`).
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, ModelInfo
from asyncembed.encoders.finite import Finite, quietly
from asyncembed.encoders.pooling import FloatArray, normalize
from asyncembed.encoders.postprocess import encoded_rows
from asyncembed.encoders.tokenization import TextTokenizer, sort_out
from asyncembed.encoders.word_table import WordTable
from asyncembed.errors import ModelLoadError, OptionError, UnsupportedModelError
from asyncembed.repo_files import shown
from asyncembed.runtime.safetensors import Tensors, read_tensors
from asyncembed.runtime.session import Array

# For models that state no limit.
_UNLIMITED = 2**31 - 1

# Texts within the usual limit are added up in one go; longer ones in blocks, which keeps float32 exact enough.
_BLOCK_TOKENS = 512
_PER_TOKEN = ("mapping", "weights")
_ONES = np.ones(_BLOCK_TOKENS, dtype=np.float32)


class StaticEncoder:
    """The encoder of all static models.

    Results are one array (n, dim); with mode "count" the number of tokens of each text, unknown ones
    included. A text without any known token gives zeros. Tokens are averaged in float32 whatever the matrix
    holds.

    Of `spec.settings` it reads:
        folder: Where the files lie in the repo, if not at its root.
        drop_unknown: Whether unknown tokens are left out of the mean, as model2vec does.
    """

    def __init__(self, config: EncoderConfig) -> None:
        """Load tokenizer and matrix; see `build` for the errors."""
        spec = config.spec
        folder = config.directory / str(spec.settings.get("folder", ""))
        self._spec = spec
        self._tokenizer = TextTokenizer(
            folder,
            max_length=config.max_length or spec.max_length or _UNLIMITED,
            add_special_tokens=False,
            pads=False,
        )
        self._finite = Finite(spec)
        self._words = WordTable(self._tokenizer)
        unknown = _unknown_id(self._tokenizer.tokenizer) if spec.settings.get("drop_unknown") else None
        self._unknown = -1 if unknown is None else unknown
        tensors = read_tensors(folder / "model.safetensors")
        self._vectors = _matrix(tensors, folder)
        self._rows = tensors.get("mapping")
        self._weights = tensors["weights"].astype(np.float32) if "weights" in tensors else None
        self.info: ModelInfo = ModelInfo(max_length=self._tokenizer.limit, special_tokens=0, dim=self._vectors.shape[1])
        if spec.dim is not None and spec.dim != self._vectors.shape[1]:
            raise UnsupportedModelError(
                f"the model is declared with dim={spec.dim}, but its vectors have {self._vectors.shape[1]}",
                model=spec.name,
            )

    @quietly
    def encode(self, inputs: Sequence[object], call: Call) -> Encoded:
        """Embed texts, or count their tokens; what is no valid text is a failure."""
        if call.task is not None:
            raise OptionError(f"{self._spec.name} has no tasks; leave out task=")
        positions, failures = sort_out(inputs)
        prompt = call.prompt or ""
        texts = [prompt + inputs[position] for position in positions]  # type: ignore[operator]
        ids, are_cut = self._tokenize(texts)
        if not call.truncate and any(are_cut):
            for position, is_cut in zip(positions, are_cut, strict=True):
                if is_cut:
                    failures[position] = self._tokenizer.too_long()
            ids = [tokens for tokens, is_cut in zip(ids, are_cut, strict=True) if not is_cut]
            positions = [position for position in positions if position not in failures]
        if call.mode == "count":
            counts = [0] * len(inputs)
            for position, tokens in zip(positions, ids, strict=True):
                counts[position] = len(tokens)
            return Encoded(counts, failures)
        vectors = self._mean(ids)
        count = sum(map(len, ids))
        return encoded_rows(
            normalize(vectors) if self._spec.normalize else vectors,
            call,
            self._finite,
            positions=positions,
            failures=failures,
            tokens=count,
            padded_tokens=count,
        )

    def _tokenize(self, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        starts = [self._tokenizer.start_of(text) for text in texts]
        ids, are_cut = self._words.encode(starts)
        for row, (text, start) in enumerate(zip(texts, starts, strict=True)):
            # The start of a long text that did not fill the limit says nothing about the rest.
            while len(start) < len(text) and not are_cut[row]:
                start = self._tokenizer.start_of(text, after=start)
                (ids[row],), (are_cut[row],) = self._words.encode([start])
        return ids, are_cut

    def _mean(self, ids: Sequence[Sequence[int]]) -> FloatArray:
        means = np.zeros((len(ids), self._vectors.shape[1]), dtype=np.float32)
        for row, tokens in enumerate(ids):
            known = np.array(tokens, dtype=np.intp)
            if self._unknown in tokens:
                known = known[known != self._unknown]
            if len(known):
                means[row] = self._sum(known) / len(known)
        return means

    def _sum(self, ids: npt.NDArray[np.intp]) -> Array:
        """The sum of the weighted vectors of `ids`, (dim,): blocks in float32, and the sum of blocks in float64."""
        if len(ids) > _BLOCK_TOKENS:
            blocks = range(0, len(ids), _BLOCK_TOKENS)
            sums = np.stack([self._sum(ids[start : start + _BLOCK_TOKENS]) for start in blocks])
            return np.asarray(sums.sum(axis=0, dtype=np.float64))
        rows = ids if self._rows is None else self._rows[ids]
        factors = _ONES[: len(ids)] if self._weights is None else self._weights[ids]
        # A product with ones adds the rows up in half the time of a sum.
        total: Array = np.dot(factors, self._vectors[rows])
        return total


def _matrix(tensors: Tensors, folder: Path) -> FloatArray:
    """The token vectors, float32 (rows, dim); a float32 file is mapped, so that workers share its memory."""
    for name in ("embeddings", "embedding.weight"):
        if name in tensors:
            _check_shapes(tensors, name, folder)
            return tensors[name].astype(np.float32, copy=False)
    raise ModelLoadError(
        f"{folder / 'model.safetensors'} has no tensor `embeddings`, only {', '.join(tensors)}",
        model=str(folder),
    )


def _check_shapes(tensors: Tensors, name: str, folder: Path) -> None:
    """See that the matrix `name` is one, and that what leads to its rows leads to no others."""
    shape = tensors.shape(name)
    is_sound = len(shape) == 2 and all(len(tensors.shape(extra)) == 1 for extra in _PER_TOKEN if extra in tensors)
    if is_sound and "mapping" in tensors:
        rows = tensors["mapping"]
        is_sound = rows.dtype.kind in "iu" and (not rows.size or (rows.min() >= 0 and rows.max() < shape[0]))
    if not is_sound:
        shapes = ", ".join(f"{shown(each)} {list(tensors.shape(each))}" for each in list(tensors)[:4])
        raise ModelLoadError(
            f"{folder / 'model.safetensors'} has no matrix with a row for each token: it has {shapes}",
            model=str(folder),
        )


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of the unknown token; None where the vocabulary has none."""
    if hasattr(tokenizer.model, "unk_token"):
        token = tokenizer.model.unk_token
        return None if token is None else tokenizer.token_to_id(token)
    unknown = json.loads(tokenizer.model.__getstate__()).get("unk_id")
    return unknown if isinstance(unknown, int) else None
