"""One vector per text without a graph: the mean of fixed token vectors.

Two layouts are read: model2vec's (tensor `embeddings`, with `mapping` from token to row and `weights` per
token where the vocabulary was reduced), and the module `StaticEmbedding` of sentence-transformers (tensor
`embedding.weight`).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from asyncembed.encoders.batch import Usable, read_text, split
from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, Long, ModelInfo
from asyncembed.encoders.finite import Finite, quietly
from asyncembed.encoders.pooling import FloatArray, normalize
from asyncembed.encoders.postprocess import check_dim, encoded_rows
from asyncembed.encoders.settings import StaticSettings, read_settings
from asyncembed.encoders.tokenization import TextTokenizer, count_tokens
from asyncembed.encoders.word_table import WordTable
from asyncembed.errors import ModelLoadError, OptionError
from asyncembed.repo_files import WEIGHTS, shown
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
    """

    def __init__(self, config: EncoderConfig) -> None:
        """Load tokenizer and matrix; see `build` for the errors."""
        spec = config.spec
        settings = read_settings(StaticSettings, spec, config.keywords)
        folder = config.directory / settings.folder
        self._spec = spec
        self._tokenizer = TextTokenizer(
            folder,
            max_length=config.max_length or spec.max_length or _UNLIMITED,
            add_special_tokens=False,
            pads=False,
        )
        self._finite = Finite(spec)
        self._words = WordTable(self._tokenizer)
        unknown = self._tokenizer.files.unknown_id if settings.drop_unknown else None
        self._unknown = -1 if unknown is None else unknown
        tensors = read_tensors(folder / WEIGHTS)
        self._vectors = _matrix(tensors, folder)
        self._rows = tensors.get("mapping")
        self._weights = tensors["weights"].astype(np.float32) if "weights" in tensors else None
        limit = None if self._tokenizer.limit == _UNLIMITED else self._tokenizer.limit
        self.info: ModelInfo = ModelInfo(max_length=limit, special_tokens=0, dim=self._vectors.shape[1])
        check_dim(spec, self._vectors.shape[1])

    @quietly
    def encode(self, inputs: Sequence[object], call: Call) -> Encoded:
        """Embed texts, or count their tokens; what is no valid text is a failure."""
        if call.task is not None:
            raise OptionError(f"{self._spec.name} has no tasks; leave out task=")
        if call.mode == "count" and not call.truncated:
            return count_tokens(self._tokenizer.count(inputs, call))
        texts = self._tokenize(split(map(read_text, inputs)), call.prompt or "", long=call.long)
        lengths = [len(ids) for ids, _ in texts.values]
        if call.mode == "count":
            return count_tokens(texts.become(lengths))
        vectors = self._mean([ids for ids, _ in texts.values])
        if self._spec.normalize:
            vectors = normalize(vectors)
        counts = [-len(ids) if is_cut else len(ids) for ids, is_cut in texts.values]
        return encoded_rows(vectors, call, self._finite, texts, counts=counts, padded_tokens=sum(lengths))

    def _tokenize(self, texts: Usable[str], prompt: str, *, long: Long) -> Usable[tuple[list[int], bool]]:
        """The ids of each text, and whether they were cut."""
        whole = [prompt + text for text in texts.values]
        done = texts.become(self._tokenizer.filled(whole, self._words.encode, lambda each: each[1]))
        if long == "mean":  # of windows that count by their tokens: of all tokens
            return done.become(
                [
                    (self._tokenizer.whole_ids(text), False) if each[1] else each
                    for text, each in zip(whole, done.values, strict=True)
                ]
            )
        return (
            done.without([is_cut for _, is_cut in done.values], self._tokenizer.too_long) if long == "error" else done
        )

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
