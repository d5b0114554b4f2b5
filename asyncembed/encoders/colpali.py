"""A vector per token for texts, one per patch for images, in one space: ColPali and ColModernVBERT.

Faysse et al. 2024, https://arxiv.org/abs/2407.01449. A text is a query, an image is a document; both go through one
graph, each with a stand-in for the other. What a graph computes for padding is never part of a result, so that a result
does not depend on its batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding

from asyncembed.encoders.colbert import encoded_matrices
from asyncembed.encoders.dense import counted
from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, ModelInfo
from asyncembed.encoders.finite import quietly
from asyncembed.encoders.text_graph import TextGraph
from asyncembed.encoders.tokenization import TextTokenizer
from asyncembed.encoders.vision import ImageReader
from asyncembed.errors import InputError, ModelLoadError, UnsupportedModelError
from asyncembed.images.preprocess import MAX_EDGE, Grid, Prepared
from asyncembed.repo_files import read_object, shown
from asyncembed.runtime.session import Array

PIXELS = "pixel_values"


class _MultimodalEncoder:
    """What the two have in common: texts and images in, matrices (tokens, dim) out.

    Mode "image" takes images, any other texts; "count" counts the tokens of texts, with the setting
    `include_extension` of the call those of the query that is made of a text.
    """

    def __init__(self, config: EncoderConfig) -> None:
        """Load tokenizer, preprocessor and graph; see `build` for the errors."""
        self._spec = config.spec
        self._settings: Mapping[str, Any] = config.spec.settings
        self.tokenizer: TextTokenizer = TextTokenizer(
            config.directory, max_length=config.max_length or config.spec.max_length
        )
        self._graph = TextGraph(config, extra_inputs=[PIXELS])
        if self._graph.fixed_length is not None:
            raise self._graph.unsupported(
                f"takes exactly {self._graph.fixed_length} tokens, but texts and images of this model differ in length"
            )
        self._finite = self._graph.finite
        self._reader = ImageReader(config, threads=config.session.threads)
        self.info: ModelInfo = replace(
            self._graph.info,
            max_length=self.tokenizer.limit,
            special_tokens=self.tokenizer.special_tokens(),
            tokens_per_image=self._reader.tokens_per_image,
        )

    @quietly
    def encode(self, inputs: Sequence[object], call: Call) -> Encoded:
        """Embed texts or images, or count tokens; an input that cannot be used is a failure."""
        if call.mode == "image":
            return self._encode_images(inputs, call)
        extends = call.mode != "count" or bool(dict(call.settings).get("include_extension"))
        texts = [self._query(value) if extends and isinstance(value, str) else value for value in inputs]
        done = self.tokenizer.encode(texts, prefix=call.prompt or "", truncate=call.truncate)
        if call.mode == "count":
            return counted(len(inputs), done)
        matrices, padded = self._embed_texts(done.encodings)
        return self._encoded(matrices, done.positions, done.failures, len(inputs), call, sum(done.lengths), padded)

    def _encode_images(self, inputs: Sequence[object], call: Call) -> Encoded:
        images, positions, failures = self._reader.read(inputs)
        matrices: list[Array] = [np.empty(0)] * len(images)
        tokens = 0
        # Only those with equally many tiles run together, as tiles of padding cost as much as others.
        kinds = [(*image.pixels.shape, *image.grid) for image in images]
        lengths = [len(image.pixels) * self._reader.tokens_per_image for image in images]
        for run in self._graph.planner.plan_alike(kinds, lengths):
            tokens += len(run.rows) * run.length
            for row, matrix in zip(run.rows, self._run_images([images[row] for row in run.rows]), strict=True):
                matrices[row] = matrix
        return self._encoded(matrices, positions, failures, len(inputs), call, tokens, tokens)

    def _encoded(
        self,
        matrices: Sequence[Array],
        positions: Sequence[int],
        failures: Mapping[int, InputError],
        batch_size: int,
        call: Call,
        tokens: int,
        padded: int,
    ) -> Encoded:
        counts = [0] * batch_size
        for position, matrix in zip(positions, matrices, strict=True):
            counts[position] = len(matrix)
        dim = self._spec.dim or (matrices[0].shape[1] if matrices else 0)
        together = np.concatenate([np.empty((0, dim), np.float32), *matrices], dtype=np.float32, casting="same_kind")
        return encoded_matrices(
            together, counts, call, self._finite, failures=failures, tokens=tokens, padded_tokens=padded
        )

    def _embed_texts(self, encodings: Sequence[Encoding]) -> tuple[list[Array], int]:
        """The vectors of each text's tokens, and the tokens computed."""
        matrices: list[Array] = [np.empty(0)] * len(encodings)
        padded = 0
        lengths = [len(encoding) for encoding in encodings]
        for run in self._graph.plan(lengths, most=self._most_texts):
            ids = np.full((len(run.rows), run.length), self.tokenizer.pad_id, dtype=np.int64)
            mask = np.zeros_like(ids)
            for line, row in enumerate(run.rows):
                ids[line, : lengths[row]] = self._text_ids(encodings[row])
                mask[line, : lengths[row]] = 1
            padded += ids.size
            hidden = self._graph.run_text(ids, mask, **{PIXELS: self._blank(len(ids))})
            for line, row in enumerate(run.rows):
                matrices[row] = hidden[line, : lengths[row]]
        return matrices, padded

    @property
    def _most_texts(self) -> int | None:
        """Most texts of one run, where their own tokens do not tell."""
        return None

    def _setting(self, name: str, default: Any = None) -> Any:
        value = self._settings.get(name, default)
        if value is None:
            raise UnsupportedModelError(
                f"the spec of {self._spec.name} lacks the setting {name}", model=self._spec.name
            )
        return value

    # ---------------------------------------------------------------- what the two differ in

    def _query(self, text: str) -> str:
        """The text as the model was trained to see queries."""
        raise NotImplementedError

    def _text_ids(self, encoding: Encoding) -> Sequence[int]:
        return encoding.ids

    def _blank(self, count: int) -> Array:
        """The stand-in for the image of `count` texts."""
        raise NotImplementedError

    def _run_images(self, images: Sequence[Prepared]) -> list[Array]:
        """The vectors of images with equally many tiles."""
        raise NotImplementedError


class ColPaliEncoder(_MultimodalEncoder):
    """ColPali: an image is one square, which the graph sees in the place of a fixed number of tokens.

    Of `spec.settings` it reads:
        query_prefix_ids: What the first tokens of a query are replaced by.
        query_pad_tokens: How many pad tokens end a query.
        image_token_id, image_tokens: The id that stands for a patch, and how many there are.
        image_suffix_ids: The ids after them.
        blank_image: Channels, height and width of what texts have for an image.

    A query's rows are those of its own tokens. (The reference gives rows for padding too, as many as the longest query
    of the batch has more; the results here are those that it gives for each query alone.)
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self._prefix: list[int] = list(self._setting("query_prefix_ids"))
        self._suffix = "<pad>" * int(self._setting("query_pad_tokens")) + "\n"
        self._patch_ids = np.array(
            [self._setting("image_token_id")] * self._setting("image_tokens") + list(self._setting("image_suffix_ids")),
            dtype=np.int64,
        )
        self._blank_shape: tuple[int, ...] = tuple(self._setting("blank_image"))

    def _query(self, text: str) -> str:
        return f"<s>Query: {text}{self._suffix}"

    def _text_ids(self, encoding: Encoding) -> Sequence[int]:
        return [*self._prefix, *encoding.ids[len(self._prefix) :]][: len(encoding)]

    @property
    def _most_texts(self) -> int | None:
        # The graph looks at the blank image of each text, which costs as much as an image.
        return max(1, self._graph.planner.max_tokens // len(self._patch_ids))

    def _blank(self, count: int) -> Array:
        return np.zeros((count, *self._blank_shape), dtype=np.float32)

    def _run_images(self, images: Sequence[Prepared]) -> list[Array]:
        pixels = np.concatenate([image.pixels for image in images])
        ids = np.broadcast_to(self._patch_ids, (len(images), len(self._patch_ids)))
        hidden = self._graph.run_text(ids, np.ones_like(ids), **{PIXELS: pixels})
        return list(hidden.reshape(len(images), -1, hidden.shape[-1]))


class ColModernVBertEncoder(_MultimodalEncoder):
    """ColModernVBERT: an image is a grid of tiles and a view of the whole, each of which stands in the prompt.

    Of `spec.settings` it reads:
        query_suffix_token, query_suffix_count: What ends a query, and how often.
        image_seq_len_default: Tokens of a tile, where `processor_config.json` does not say.
        tile: Edge of the stand-in image of texts, where `config.json` does not say.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        processor = _read_object(config.directory / "processor_config.json")
        vision = _read_object(config.directory / "config.json").get("vision_config")
        self._tile_tokens = _size(processor, "image_seq_len", self._setting("image_seq_len_default", 64))
        vision = vision if isinstance(vision, dict) else {}
        self._blank_edge = _size(vision, "image_size", self._setting("tile", 512))
        self._suffix = str(self._setting("query_suffix_token")) * int(self._setting("query_suffix_count"))
        self._prompt_ids: dict[Grid, list[int]] = {}

    def _query(self, text: str) -> str:
        return text + self._suffix

    def _blank(self, count: int) -> Array:  # noqa: ARG002 (one for all: the graph drops blank tiles)
        return np.zeros((1, 1, 3, self._blank_edge, self._blank_edge), dtype=np.float32)

    def _run_images(self, images: Sequence[Prepared]) -> list[Array]:
        ids = np.array([self._image_ids(image.grid) for image in images], dtype=np.int64)
        pixels = np.stack([image.pixels for image in images])
        hidden = self._graph.run_text(ids, np.ones_like(ids), **{PIXELS: pixels})
        return list(hidden.reshape(len(images), -1, hidden.shape[-1])[:, : ids.shape[1]])

    def _image_ids(self, grid: Grid) -> list[int]:
        """The tokens of the prompt for an image of this grid."""
        if grid not in self._prompt_ids:
            prompt = f"<|begin_of_text|>User:{self._image_text(*grid)}Describe the image.<end_of_utterance>\nAssistant:"
            self._prompt_ids[grid] = self.tokenizer.tokenizer.encode(prompt).ids
        return self._prompt_ids[grid]

    def _image_text(self, rows: int, columns: int) -> str:
        """What stands for an image in the prompt: its tiles row by row, then the view of the whole."""
        mark, patches = "<fake_token_around_image>", "<image>" * self._tile_tokens
        lines = [
            "".join(f"{mark}<row_{row}_col_{column}>{patches}" for column in range(1, columns + 1)) + "\n"
            for row in range(1, rows + 1)
        ]
        return "".join(lines) + ("\n" if lines else "") + f"{mark}<global-img>{patches}{mark}"


def _size(record: Mapping[str, Any], key: str, default: Any) -> int:
    """An entry of a configuration that is a size."""
    value = record.get(key, default)
    if type(value) is not int or not 0 < value <= MAX_EDGE:
        raise ModelLoadError(f"{key} in the model's configuration must be from 1 to {MAX_EDGE}; it is {shown(value)}")
    return value


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UnsupportedModelError(f"{path.parent} has no {path.name}", model=str(path.parent))
    return read_object(path)
