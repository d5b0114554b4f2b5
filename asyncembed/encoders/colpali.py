"""A vector per token for texts, one per patch for images, in one space: ColPali and ColModernVBERT.

Faysse et al. 2024, https://arxiv.org/abs/2407.01449. A text is a query, an image is a document; both go through one
graph, each with a stand-in for the other. What a graph computes for padding is never part of a result, so that a result
does not depend on its batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, ModelInfo
from asyncembed.encoders.finite import quietly
from asyncembed.encoders.postprocess import encoded_matrices
from asyncembed.encoders.settings import ColModernVBertSettings, ColPaliSettings, ReaderSettings, read_settings
from asyncembed.encoders.text_graph import TextGraph
from asyncembed.encoders.tokenization import TextTokenizer, count_tokens, tokenizer_of
from asyncembed.encoders.vision import ImageReader
from asyncembed.errors import ModelLoadError, UnsupportedModelError
from asyncembed.images.preprocess import MAX_EDGE, Grid, Prepared
from asyncembed.repo_files import read_object, shown
from asyncembed.runtime.session import Array

PIXELS = "pixel_values"


@dataclass(frozen=True, slots=True)
class Variant:
    """What the two models differ in.

    Attributes:
        query: From a text to what the model was trained to see as a query.
        text_ids: From the ids of that to those that the graph gets.
        blank: The stand-in for the images of so many texts.
        blank_tokens: What that costs for each text; 0: nothing.
        image_ids: From the grid of an image to what stands for it among the tokens.
        join: Puts the pixels of several images together.
    """

    query: Callable[[str], str]
    text_ids: Callable[[list[int]], list[int]]
    blank: Callable[[int], Array]
    blank_tokens: int
    image_ids: Callable[[Grid], Sequence[int]]
    join: Callable[[Sequence[Array]], Array]


class MultimodalEncoder:
    """Texts and images in, matrices (tokens, dim) out.

    Mode "image" takes images, any other texts; "count" counts the tokens of texts, with `include_extension` those of
    the query that is made of a text.

    A query's rows are those of its own tokens. (The reference gives rows for padding too, as many as the longest query
    of the batch has more; the results here are those that it gives for each query alone.)
    """

    def __init__(
        self, config: EncoderConfig, settings: ReaderSettings, tokenizer: TextTokenizer, variant: Variant
    ) -> None:
        """Load preprocessor and graph; see `build` for the errors."""
        self._variant = variant
        self._graph = TextGraph(config, settings, tokenizer, extra_inputs=[PIXELS])
        if self._graph.fixed_length is not None:
            raise self._graph.unsupported(
                f"takes exactly {self._graph.fixed_length} tokens, but texts and images of this model differ in length"
            )
        self.tokenizer = tokenizer
        self._reader = ImageReader(config.directory, settings, threads=config.session.threads)
        self.info: ModelInfo = replace(self._graph.info, tokens_per_image=self._reader.tokens_per_image)

    @quietly
    def encode(self, inputs: Sequence[object], call: Call) -> Encoded:
        """Embed texts or images, or count tokens; an input that cannot be used is a failure."""
        if call.mode == "image":
            return self._encode_images(inputs, call)
        extends = call.mode != "count" or call.include_extension
        texts = [self._variant.query(value) if extends and isinstance(value, str) else value for value in inputs]
        if call.mode == "count":
            return count_tokens(self.tokenizer.count(texts, call))
        done = self.tokenizer.encode(texts, prefix=call.prompt or "", long=call.long)
        matrices, padded = self._embed_texts([self._variant.text_ids(encoding.ids) for encoding in done.values])
        counts = self.tokenizer.computed(done)
        return encoded_matrices(matrices, call, self._graph.finite, done, counts=counts, padded_tokens=padded)

    def _encode_images(self, inputs: Sequence[object], call: Call) -> Encoded:
        images = self._reader.read(inputs)
        matrices: list[Array] = [np.empty(0)] * len(images.values)
        # Only those with equally many tiles run together, as tiles of padding cost as much as others.
        kinds = [(*image.pixels.shape, *image.grid) for image in images.values]
        lengths = [len(image.pixels) * self._reader.tokens_per_image for image in images.values]
        runs = self._graph.planner.plan_alike(kinds, lengths)
        for run in runs:
            together = self._run_images([images.values[row] for row in run.rows])
            for row, matrix in zip(run.rows, together, strict=True):
                matrices[row] = matrix
        return encoded_matrices(matrices, call, self._graph.finite, images, counts=lengths, padded_tokens=sum(lengths))

    def _embed_texts(self, texts: Sequence[list[int]]) -> tuple[list[Array], int]:
        """The vectors of each text's tokens, and the tokens computed."""
        matrices: list[Array] = [np.empty(0)] * len(texts)
        blank_tokens = self._variant.blank_tokens
        max_size = max(1, self._graph.planner.max_tokens // blank_tokens) if blank_tokens else None
        runs = self._graph.runs(texts, max_size=max_size)
        for run in runs:
            hidden = self._graph.run_text(run.ids, run.mask, **{PIXELS: self._variant.blank(len(run.ids))})
            for line, row in enumerate(run.rows):
                matrices[row] = hidden[line, self.tokenizer.places(len(texts[row]), run.ids.shape[1])]
        return matrices, sum(run.ids.size for run in runs)

    def _run_images(self, images: Sequence[Prepared]) -> Array:
        """The vectors of images with equally many tiles: (images, tokens, dim)."""
        ids = np.array([self._variant.image_ids(image.grid) for image in images], dtype=np.int64)
        pixels = self._variant.join([image.pixels for image in images])
        hidden = self._graph.run_text(ids, np.ones_like(ids), **{PIXELS: pixels})
        return hidden.reshape(len(images), -1, hidden.shape[-1])[:, : ids.shape[1]]


def colpali(config: EncoderConfig) -> MultimodalEncoder:
    """Load ColPali: an image is one square, which the graph sees in the place of a fixed number of tokens."""
    settings = read_settings(ColPaliSettings, config.spec, config.keywords)
    prefix = list(settings.query_prefix_ids)
    suffix = "<pad>" * settings.query_pad_tokens + "\n"
    patch_ids = [settings.image_token_id] * settings.image_tokens + list(settings.image_suffix_ids)
    variant = Variant(
        query=lambda text: f"<s>Query: {text}{suffix}",
        text_ids=lambda ids: [*prefix, *ids[len(prefix) :]][: len(ids)],
        blank=lambda count: np.zeros((count, *settings.blank_image), dtype=np.float32),
        # The graph looks at the blank image of each text, which costs as much as an image.
        blank_tokens=len(patch_ids),
        image_ids=lambda _: patch_ids,
        join=np.concatenate,
    )
    return MultimodalEncoder(config, settings, tokenizer_of(config), variant)


def colmodernvbert(config: EncoderConfig) -> MultimodalEncoder:
    """Load ColModernVBERT: an image is a grid of tiles and a view of the whole, each of which stands in the prompt."""
    settings = read_settings(ColModernVBertSettings, config.spec, config.keywords)
    processor = _read_object(config.directory / "processor_config.json")
    vision = _read_object(config.directory / "config.json").get("vision_config")
    tile_tokens = _size(processor, "image_seq_len", settings.image_seq_len_default)
    edge = _size(vision if isinstance(vision, dict) else {}, "image_size", settings.tile)
    suffix = settings.query_suffix_token * settings.query_suffix_count
    tokenizer = tokenizer_of(config)

    @cache
    def image_ids(grid: Grid) -> list[int]:
        return list(tokenizer.tokenize([_image_prompt(*grid, "<image>" * tile_tokens)])[0].ids)

    variant = Variant(
        query=lambda text: text + suffix,
        text_ids=list,
        # One for all: the graph drops blank tiles.
        blank=lambda _: np.zeros((1, 1, 3, edge, edge), dtype=np.float32),
        blank_tokens=0,
        image_ids=image_ids,
        join=np.stack,
    )
    return MultimodalEncoder(config, settings, tokenizer, variant)


def _image_prompt(rows: int, columns: int, patches: str) -> str:
    """The prompt for an image: its tiles row by row, then the view of the whole, each as so many `patches`."""
    mark = "<fake_token_around_image>"
    lines = [
        "".join(f"{mark}<row_{row}_col_{column}>{patches}" for column in range(1, columns + 1)) + "\n"
        for row in range(1, rows + 1)
    ]
    tiles = "".join(lines) + ("\n" if lines else "")
    image = f"{tiles}{mark}<global-img>{patches}{mark}"
    return f"<|begin_of_text|>User:{image}Describe the image.<end_of_utterance>\nAssistant:"


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
