"""One vector per image, from a vision model's graph."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image

from asyncembed.encoders.batch import Usable, split
from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, ModelInfo
from asyncembed.encoders.finite import quietly
from asyncembed.encoders.pooling import FloatArray, in_order, normalize
from asyncembed.encoders.postprocess import encoded_rows
from asyncembed.encoders.settings import ImageSettings, ReaderSettings, read_settings
from asyncembed.encoders.text_graph import Graph
from asyncembed.errors import InputError, UnsupportedModelError
from asyncembed.images.decode import DecodeOptions, decode
from asyncembed.images.image_limits import DecodingMemory
from asyncembed.images.inputs import MAX_IMAGE_PIXELS
from asyncembed.images.preprocess import Prepared, Preprocessor
from asyncembed.runtime.session import Array

PIXELS_PER_TOKEN = 256
"""The size of an image is stated in patches of 16x16 pixels, to which a vision transformer gives a token each."""

TOKENS_OF_ANY_SIZE = 256
"""What an image counts where the model takes images as they are."""

MAX_SIDE_BY_SIDE = 4
"""How many images of a batch are computed at the same time at most: about as many as a batch has."""

WARM_SIZE = (224, 224)
"""Of the first image, where the model takes images as they are."""

FAST_DECODE_MARGIN = 2
"""A JPEG is decoded at no less than this many times the size that the model needs, in each direction."""


class ImageReader:
    """From inputs to what the graph takes: decoding and preprocessing, in one thread or several."""

    def __init__(self, directory: Path, settings: ReaderSettings, *, threads: int = 1) -> None:
        """Read the preprocessor's configuration; see `build` for the errors."""
        self.preprocessor: Preprocessor = Preprocessor.read(directory)
        max_pixels = settings.max_image_pixels or MAX_IMAGE_PIXELS
        self._options = DecodeOptions(
            apply_orientation=settings.apply_orientation,
            max_pixels=max_pixels,
            reduce_to=self._reduced if settings.fast_decode else None,
        )
        self._memory = DecodingMemory(max_pixels)
        self._threads = ThreadPoolExecutor(threads, "asyncembed-decode") if threads > 1 else None

    @property
    def tokens_per_image(self) -> int:
        """The size of any image, for the token budget."""
        size = self.preprocessor.output_size
        return TOKENS_OF_ANY_SIZE if size is None else ceil(size[0] * size[1] / PIXELS_PER_TOKEN)

    def read(self, inputs: Sequence[object]) -> Usable[Prepared]:
        """Decode and prepare images."""
        return split(
            map(self._read_one, inputs) if self._threads is None else self._threads.map(self._read_one, inputs)
        )

    def _read_one(self, value: object) -> Prepared | InputError:
        try:
            with ExitStack() as taken:
                options = replace(
                    self._options, before_decoding=lambda image: taken.enter_context(self._memory.taken_for(image))
                )
                return self.preprocessor(decode(value, options))
        except InputError as error:
            return error
        except MemoryError:
            return InputError("the image does not fit into memory")

    def _reduced(self, size: tuple[int, int]) -> tuple[int, int] | None:
        least = self.preprocessor.least_source_size(size)
        return None if least is None else (least[0] * FAST_DECODE_MARGIN, least[1] * FAST_DECODE_MARGIN)


class ImageEncoder:
    """The encoder of all models that give one vector per image. Results are one array (n, dim).

    Its inputs are those of `asyncembed.images.decode.decode`. With `spec.pooling` "cls" the first of the graph's
    token vectors is the image's; with "none" the graph's output is (n, dim).
    """

    def __init__(self, config: EncoderConfig) -> None:
        """Load preprocessor and graph; see `build` for the errors."""
        spec = config.spec
        if spec.pooling not in ("none", "cls"):
            raise UnsupportedModelError(f"an image model cannot have pooling={spec.pooling!r}", model=spec.name)
        self._spec = spec
        self._settings = read_settings(ImageSettings, spec, config.keywords)
        self._reader = ImageReader(config.directory, self._settings)
        # Images run side by side rather than one after the other with more threads: decoding has but one, and a graph
        # gains less from a second thread than a second image does.
        self._side_by_side = min(config.session.threads, MAX_SIDE_BY_SIDE)
        session = replace(config.session, threads=config.session.threads // self._side_by_side)
        self._graph = Graph(replace(config, session=session), self._settings)
        self._threads = ThreadPoolExecutor(self._side_by_side, "asyncembed-image") if self._side_by_side > 1 else None
        names = self._graph.session.input_names
        if len(names) != 1:
            raise self._graph.unsupported(f"takes {', '.join(names)}; an image model takes pixels and nothing else")
        self._input = names[0]
        self._check_size()
        self._tokens = self._reader.tokens_per_image
        self._dim = self._spec.dim or 0
        self._dim = self._warm()
        self.info: ModelInfo = replace(self._graph.info, dim=self._dim, tokens_per_image=self._tokens)

    @quietly
    def encode(self, inputs: Sequence[object], call: Call) -> Encoded:
        """Embed images; one that cannot be decoded is a failure."""
        if self._threads is None or len(inputs) < 2:
            parts: Iterable[list[FloatArray | InputError]] = [self._encode_part(inputs)]
        else:
            size = ceil(len(inputs) / self._side_by_side)
            starts = range(0, len(inputs), size)
            parts = self._threads.map(self._encode_part, [inputs[start : start + size] for start in starts])
        rows = split(chain.from_iterable(parts))
        vectors: FloatArray = np.array(rows.values, dtype=np.float32).reshape(-1, self._dim)
        if self._spec.normalize:
            vectors = normalize(vectors)
        counts = [self._tokens] * len(vectors)
        return encoded_rows(vectors, call, self._graph.finite, rows, counts=counts, padded_tokens=sum(counts))

    def _encode_part(self, inputs: Sequence[object]) -> list[FloatArray | InputError]:
        """The vector of each image, or why it has none."""
        images = self._reader.read(inputs)
        return images.outcomes(self._embed(images.values))

    def _check_size(self) -> None:
        """Raise `UnsupportedModelError` if images are not brought to the size that the graph was made for."""
        size = self._reader.preprocessor.output_size
        for axis, own in zip((-2, -1), size or (None, None), strict=True):
            shape = self._graph.session.input_shape(self._input)
            wanted = shape[axis] if len(shape) == 4 else None
            if wanted is not None and wanted != own:
                prepared = "as large as they come" if own is None else f"{size[0]}x{size[1]}"  # type: ignore[index]
                raise self._graph.unsupported(
                    f"takes images of shape {shape[1:]} only, but preprocessor_config.json makes them {prepared}"
                )

    def _warm(self) -> int:
        """Run a black image, which shows whether all parts fit together; returns the length of its vector."""
        black = Image.new("RGB", self._reader.preprocessor.output_size or WARM_SIZE)
        size: int = self._embed([self._reader.preprocessor(black)]).shape[1]
        return size

    def _embed(self, images: Sequence[Prepared]) -> FloatArray:
        """Vectors in the order of `images`, float32 (n, dim)."""
        # A model may take images as they are: then only those of one size can run together.
        shapes = [image.pixels.shape for image in images]
        runs = self._graph.planner.plan_alike(shapes, [self._tokens] * len(images))
        return in_order(
            ((run.rows, self._run([images[row] for row in run.rows])) for run in runs), len(images), self._dim
        )

    def _run(self, images: Sequence[Prepared]) -> FloatArray:
        pixels = np.concatenate([image.pixels for image in images])
        return self._pool(self._graph.run({self._input: pixels}))

    def _pool(self, output: Array) -> FloatArray:
        if output.ndim > 2 and self._spec.pooling == "cls":
            output = output.reshape(len(output), -1, output.shape[-1])[:, 0]
        elif self._settings.flatten:
            output = output.reshape(len(output), -1)
        dim = self._spec.dim
        if output.ndim != 2 or (dim is not None and output.shape[1] != dim):
            raise UnsupportedModelError(
                f"the graph gives an output of shape {output.shape} for {len(output)} images, which are no vectors "
                f"of dim={dim or 'any length'}; pooling='cls' takes the first of several tokens",
                model=self._spec.name,
            )
        vectors: FloatArray = output.astype(np.float32, copy=False)
        return vectors
