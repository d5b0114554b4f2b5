"""One vector per image, from a vision model's graph."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from math import ceil

import numpy as np
from PIL import Image

from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, ModelInfo
from asyncembed.encoders.finite import quietly
from asyncembed.encoders.pooling import FloatArray, normalize
from asyncembed.encoders.postprocess import encoded_rows
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
    """From inputs to what the graph takes: decoding and preprocessing, in one thread or several.

    Of `config.settings` it reads:
        fast_decode: Decode JPEGs at a reduced scale, `FAST_DECODE_MARGIN` times what the model needs or more.
        apply_orientation: Turn images as their EXIF tag says.
        max_image_pixels: Refuse larger images.
    """

    def __init__(self, config: EncoderConfig, *, threads: int = 1) -> None:
        """Read the preprocessor's configuration; see `build` for the errors."""
        self.preprocessor: Preprocessor = Preprocessor.read(config.directory)
        settings = config.settings
        most_pixels = settings.get("max_image_pixels", MAX_IMAGE_PIXELS)
        assert isinstance(most_pixels, int)
        self._options = DecodeOptions(
            apply_orientation=bool(settings.get("apply_orientation", False)),
            max_pixels=most_pixels,
            reduce_to=self._reduced if settings.get("fast_decode", False) else None,
        )
        self._memory = DecodingMemory(most_pixels)
        self._threads = ThreadPoolExecutor(threads, "asyncembed-decode") if threads > 1 else None

    @property
    def tokens_per_image(self) -> int:
        """The size of any image, for the token budget."""
        size = self.preprocessor.output_size
        return TOKENS_OF_ANY_SIZE if size is None else ceil(size[0] * size[1] / PIXELS_PER_TOKEN)

    def read(self, inputs: Sequence[object]) -> tuple[list[Prepared], list[int], dict[int, InputError]]:
        """Decode and prepare images.

        Returns:
            The usable images, where each of them stands in the batch, and the failures by position.
        """
        outcomes = map(self._read_one, inputs) if self._threads is None else self._threads.map(self._read_one, inputs)
        images: list[Prepared] = []
        positions: list[int] = []
        failures: dict[int, InputError] = {}
        for position, outcome in enumerate(outcomes):
            if isinstance(outcome, InputError):
                failures[position] = outcome
            else:
                images.append(outcome)
                positions.append(position)
        return images, positions, failures

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

    Of `spec.settings` it reads:
        flatten: Whether all that the graph gives for an image, of whatever shape, is its vector.
    """

    def __init__(self, config: EncoderConfig) -> None:
        """Load preprocessor and graph; see `build` for the errors."""
        spec = config.spec
        if spec.pooling not in ("none", "cls"):
            raise UnsupportedModelError(f"an image model cannot have pooling={spec.pooling!r}", model=spec.name)
        self._spec = spec
        self._reader = ImageReader(config)
        # Images run side by side rather than one after the other with more threads: decoding has but one, and a graph
        # gains less from a second thread than a second image does.
        self._side_by_side = min(config.session.threads, MAX_SIDE_BY_SIDE)
        session = replace(config.session, threads=config.session.threads // self._side_by_side)
        self._graph = Graph(replace(config, session=session))
        self._finite = self._graph.finite
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
            parts = [self._encode_part(inputs)]
        else:
            size = ceil(len(inputs) / self._side_by_side)
            starts = range(0, len(inputs), size)
            parts = list(self._threads.map(self._encode_part, [inputs[start : start + size] for start in starts]))
        vectors = np.concatenate([part[0] for part in parts])
        positions: list[int] = []
        failures: dict[int, InputError] = {}
        start = 0
        for _, own_positions, own_failures in parts:
            positions += [start + position for position in own_positions]
            failures |= {start + position: error for position, error in own_failures.items()}
            start += len(own_positions) + len(own_failures)
        tokens = self._tokens * len(positions)
        return encoded_rows(
            normalize(vectors) if self._spec.normalize else vectors,
            call,
            self._finite,
            positions=positions,
            failures=failures,
            tokens=tokens,
            padded_tokens=tokens,
        )

    def _encode_part(self, inputs: Sequence[object]) -> tuple[FloatArray, list[int], dict[int, InputError]]:
        """Vectors of the usable images, where those stand among `inputs`, and the failures by position."""
        images, positions, failures = self._reader.read(inputs)
        return self._embed(images), positions, failures

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
        vectors: FloatArray | None = None
        for run in self._graph.planner.plan_alike(shapes, [self._tokens] * len(images)):
            pixels = np.concatenate([images[row].pixels for row in run.rows])
            (output,) = self._graph.run([self._graph.output], {self._input: pixels})
            pooled = self._pool(output)
            if vectors is None:
                vectors = np.empty((len(images), pooled.shape[1]), dtype=np.float32)
            vectors[list(run.rows)] = pooled
        return np.empty((0, self._dim), dtype=np.float32) if vectors is None else vectors

    def _pool(self, output: Array) -> FloatArray:
        if output.ndim > 2 and self._spec.pooling == "cls":
            output = output.reshape(len(output), -1, output.shape[-1])[:, 0]
        elif self._spec.settings.get("flatten"):
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
