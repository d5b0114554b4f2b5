"""Image embeddings: one vector per image. And what every class that takes images shares: reading and fetching them."""

from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, Unpack, overload

from anyio import CancelScope, get_cancelled_exc_class, move_on_after
from anyio.abc import TaskGroup

from asyncembed.catalogue.pipeline import Overrides
from asyncembed.checks import check_bool, check_choice, check_count, check_seconds, checks_keywords
from asyncembed.embedders.base import Embedder, InputT, Key, Measure, ModelIntake, ModelName, PriorityName
from asyncembed.embedders.roles import ReturningCall, StreamCall
from asyncembed.encoders.encoder import Call
from asyncembed.engine.model import PooledModel
from asyncembed.engine.scheduler import BatchKey, Item, Priority, Sink
from asyncembed.engine.supervisor import Supervisor
from asyncembed.errors import AsyncEmbedError, InputError, StateError
from asyncembed.images.inputs import MAX_IMAGE_PIXELS, describe
from asyncembed.images.intake import (
    ENCODED_BYTES_PER_TOKEN,
    Absent,
    ImageInput,
    ImagePacker,
    ImageT,
    as_images,
    measure_image,
)
from asyncembed.images.urls import CONCURRENCY, MAX_BYTES, TIMEOUT_SECONDS, FetchLimits, UrlFetcher
from asyncembed.options import OptionKeywords
from asyncembed.results import Assembly, ScalarT
from asyncembed.stream import EmbeddingStream, OnError, ReturningStream, Source, StreamState

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CLOSE_GRACE_SECONDS = 2.0

LONGEST_TIMEOUT_SECONDS = 1e9

DECODING_TOKENS = 128
"""What decoding an image of ordinary size costs, in tokens, beside what its model takes for it."""


class ImageKeywords(OptionKeywords, total=False):
    """The keywords of the classes that take images, for signatures; `ImageEmbedder` documents them."""

    fast_decode: bool
    apply_orientation: bool
    max_image_pixels: int
    allow_private_urls: bool
    max_url_bytes: int
    url_timeout: float


class ImageEmbedder(Embedder):
    """What the classes that take images share.

    An image is a path, a URL (http or https), a file's bytes, a file object, an image of Pillow's, or an array of
    uint8 pixels, (height, width) or (height, width, 1, 3 or 4). It is decoded in a worker; see
    `asyncembed.images.decode` for what becomes of alpha, palettes, CMYK and so on. Read are JPEG, PNG, GIF, BMP,
    PPM, WebP, TIFF, AVIF, JPEG 2000, ICO, and HEIF where pillow-heif is installed. Paths are opened there too. URLs
    are fetched and file objects read beforehand, up to 16 at a time (and none while a stream holds more than
    `max_in_flight_bytes`); see `asyncembed.images.urls`.

    Args:
        model_name: A name of the catalogue, a repo on the hub, a local directory, or a `ModelSpec`.
        fast_decode: Decode JPEGs at a reduced scale, at least twice of what the model needs in each direction. Several
            times as fast for large photographs; the vectors change a little (cosine about 0.999).
        apply_orientation: Turn images as their EXIF tag says. Off by default: so are the models' reference numbers.
        max_image_pixels: Refuse images of more pixels, before they are decoded or sent to a worker.
        allow_private_urls: Also fetch from private, loopback and link-local addresses.
        max_url_bytes: Most bytes behind one URL.
        url_timeout: Most seconds for one URL, redirects included, and for reading one file object.
        options: The keywords that all six classes share (`workers`, `device`, `pool`, ...): see `asyncembed.Options`.

    Raises:
        OptionError: An unknown keyword, or a value that cannot work.
    """

    def __init__(
        self,
        model_name: ModelName,
        *,
        fast_decode: bool = False,
        apply_orientation: bool = False,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        allow_private_urls: bool = False,
        max_url_bytes: int = MAX_BYTES,
        url_timeout: float = TIMEOUT_SECONDS,
        **options: Unpack[OptionKeywords],
    ) -> None:
        super().__init__(model_name, **options)
        for name, flag in (
            ("fast_decode", fast_decode),
            ("apply_orientation", apply_orientation),
            ("allow_private_urls", allow_private_urls),
        ):
            check_bool(name, flag)
        check_count("max_image_pixels", max_image_pixels, least=1, may_be_none=False)
        check_count("max_url_bytes", max_url_bytes, least=1, may_be_none=False)
        check_seconds("url_timeout", url_timeout)
        seconds = float(min(url_timeout, LONGEST_TIMEOUT_SECONDS))
        self._decoding: dict[str, object] = {
            "fast_decode": fast_decode,
            "apply_orientation": apply_orientation,
            "max_image_pixels": max_image_pixels,
        }
        limits = FetchLimits(allow_private=allow_private_urls, max_bytes=max_url_bytes, timeout_seconds=seconds)
        self._fetcher = UrlFetcher(limits)
        self._packer = ImagePacker(self._fetcher, max_pixels=max_image_pixels, timeout_seconds=seconds)

    @asynccontextmanager
    async def _lifetime(self) -> AsyncGenerator[None]:
        try:
            async with super()._lifetime():
                yield
        finally:
            # After the streams have ended: an image that is being fetched then is nobody's failure.
            with move_on_after(CLOSE_GRACE_SECONDS, shield=True):
                await self._fetcher.aclose()

    def _settings(self) -> Mapping[str, object]:
        return self._decoding

    def _intake(self, batch_key: BatchKey, priority: Priority, measure: Measure, key: Key | None) -> ModelIntake:
        if measure is not measure_image:
            return super()._intake(batch_key, priority, measure, key)
        opened = self._require_open()
        return _ImageIntake(opened.engine, opened.model, batch_key, priority, key, self._packer, opened.group)

    def _images(
        self,
        source: Source[Any] | ImageInput,
        call: Call,
        assembly: Assembly[Any, Any],
        key: Key | None,
        priority: PriorityName,
        ordered: bool,
        on_error: OnError,
    ) -> EmbeddingStream[Any, Any, Any]:
        return self._stream(
            as_images(source),
            measure_image,
            call,
            assembly,
            key=key,
            priority=priority,
            ordered=ordered,
            on_error=on_error,
        )


class _ImageIntake(ModelIntake):
    """From a record to an image that waits for a worker; what is not at hand is brought in by tasks of the embedder."""

    def __init__(
        self,
        engine: Supervisor,
        model: PooledModel,
        batch_key: BatchKey,
        priority: Priority,
        key: Key | None,
        packer: ImagePacker,
        tasks: TaskGroup,
    ) -> None:
        super().__init__(engine, model, batch_key, priority, partial(measure_image, max_pixels=packer.max_pixels), key)
        self._tokens_per_image = DECODING_TOKENS + model.info.tokens_per_image
        self._packer = packer
        self._tasks = tasks
        # What is yet to be brought in, and the scopes of the tasks that do it.
        self._waiting: deque[Item] = deque()
        self._scopes: set[CancelScope] = set()
        # How many are being brought in, and the bytes of the largest one so far.
        self._on_the_way = 0
        self._largest = 0

    def _make_item(self, value: object, units: int, index: int, sink: Sink) -> Item:
        return self._maker.sized_item(self._packer(value), self._tokens_per_image + units, sink, index)

    def submit(self, items: list[Item]) -> None:
        ready = []
        for item in items:
            if type(item.value) is not Absent:
                ready.append(item)
            else:
                self._waiting.append(item)
                if len(self._scopes) < CONCURRENCY:
                    scope = CancelScope()
                    self._scopes.add(scope)
                    self._tasks.start_soon(self._bring_all, scope)
        if ready:
            self._engine.submit(ready)

    def close(self) -> None:
        self._waiting.clear()
        for scope in self._scopes:
            scope.cancel()

    async def _bring_all(self, scope: CancelScope) -> None:
        """Bring in one image after another, in their order, until none waits."""
        try:
            with scope:
                while self._waiting:
                    await self._bring_in(self._waiting.popleft())
        finally:
            self._scopes.discard(scope)
            if not self._scopes:
                # None are left but where the embedder closes.
                while self._waiting:
                    _fail_as_closed(self._waiting.popleft())

    async def _bring_in(self, item: Item) -> None:
        """Fetch or read an image, and let it wait for a worker; whatever goes wrong is the image's own error."""
        assert isinstance(item.value, Absent)
        try:
            if isinstance(item.sink, StreamState):
                await item.sink.wait_bytes(item.index, self._largest * self._on_the_way)
            self._on_the_way += 1
            try:
                data = await item.value.bring()
            finally:
                self._on_the_way -= 1
        except get_cancelled_exc_class():
            _fail_as_closed(item)
            raise
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 (it travels as a value: nothing leaves a task of the group)
            known = error if isinstance(error, AsyncEmbedError) else describe(error)
            self._model.count_failure()
            item.sink.fail(item.index, InputError(str(known), index=item.index))
            return
        item.value = data
        self._largest = max(self._largest, len(data))
        # What it costs to decode is known only now.
        item.size += len(data) // ENCODED_BYTES_PER_TOKEN
        if isinstance(item.sink, StreamState):
            item.sink.charge(item.index, len(data))
        self._engine.submit([item])


def _fail_as_closed(item: Item) -> None:
    """Tell whoever waits for an image that nobody brings it in any more; a stream that has ended does not listen."""
    item.sink.fail(item.index, StateError("the embedder was closed while the image was being fetched or read"))


class ImageVectorKeywords(ImageKeywords, total=False):
    """The keywords that do not decide about the type of a vector, for signatures; `ImageEmbedding` documents them."""

    pooling: Literal["none", "cls"] | None
    normalize: bool | None
    truncate_dim: int | None


class ImageEmbedding(ImageEmbedder, Generic[ScalarT]):
    """Image embeddings: one vector per image.

    ```python
    async with ImageEmbedding("Qdrant/clip-ViT-B-32-vision") as model:
        async for vector in model.embed(Path("photos").iterdir(), on_error="skip"):
            ...
    ```

    A vector is float32 (dim,) of unit length, and by default what the reference implementation gives for the file,
    pixel by pixel.

    Args:
        model_name: A name of the catalogue, a repo on the hub, a local directory, or a `ModelSpec`; a directory or
            repo needs a `preprocessor_config.json`.
        pooling: For a graph that gives a vector per token: "cls" takes the first. "none" takes what the graph gives.
        normalize: Whether vectors are scaled to unit length; None: as the catalogue says, and yes for other models.
        truncate_dim: Keep only this many leading components, then normalise again (Matryoshka).
        dtype: "float32" or "float16".
        options: Those of `ImageEmbedder`, and those that all six classes share (`workers`, `device`, `pool`, ...): see
            `asyncembed.Options`.
    """

    family = "image"

    @overload
    def __init__(
        self: "ImageEmbedding[np.float32]",
        model_name: ModelName,
        *,
        dtype: Literal["float32"] = "float32",
        **keywords: Unpack[ImageVectorKeywords],
    ) -> None: ...
    @overload
    def __init__(
        self: "ImageEmbedding[np.float16]",
        model_name: ModelName,
        *,
        dtype: Literal["float16"],
        **keywords: Unpack[ImageVectorKeywords],
    ) -> None: ...
    @checks_keywords
    def __init__(
        self,
        model_name: ModelName,
        *,
        pooling: Literal["none", "cls"] | None = None,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        dtype: Literal["float32", "float16"] = "float32",
        **options: Unpack[ImageKeywords],
    ) -> None:
        super().__init__(model_name, **options)
        check_choice("pooling", pooling, (None, "none", "cls"))
        check_bool("normalize", normalize, may_be_none=True)
        check_choice("dtype", dtype, ("float32", "float16"))
        check_count("truncate_dim", truncate_dim, least=1)
        self._pooling: Literal["none", "cls"] | None = pooling
        self._normalize = normalize
        self._call = Call(mode="image", truncate_dim=truncate_dim, dtype=dtype)

    @overload
    def embed(
        self, images: Source[ImageT] | ImageT, *, key: None = None, **call: Unpack[StreamCall]
    ) -> "EmbeddingStream[ImageT, NDArray[ScalarT], NDArray[ScalarT]]": ...
    @overload
    def embed(
        self, images: Source[InputT], *, key: Callable[[InputT], ImageInput], **call: Unpack[StreamCall]
    ) -> "EmbeddingStream[InputT, NDArray[ScalarT], NDArray[ScalarT]]": ...
    @overload
    def embed(
        self, images: Source[ImageT] | ImageT, *, key: None = None, **call: Unpack[ReturningCall]
    ) -> "ReturningStream[ImageT, NDArray[ScalarT]]": ...
    @overload
    def embed(
        self, images: Source[InputT], *, key: Callable[[InputT], ImageInput], **call: Unpack[ReturningCall]
    ) -> "ReturningStream[InputT, NDArray[ScalarT]]": ...
    @checks_keywords
    def embed(
        self,
        images: Source[Any] | ImageInput,
        *,
        key: Key | None = None,
        priority: PriorityName = "bulk",
        ordered: bool = True,
        on_error: OnError = "raise",
    ) -> EmbeddingStream[Any, Any, Any]:
        """Embed images from any iterable or async iterable.

        Args:
            images: The images, or records from which `key` takes the image. One image alone is taken as such.
            key: Takes the image out of a record.
            priority: "interactive" goes before "bulk".
            ordered: Whether results come in input order, or as they are ready.
            on_error: What becomes of an image that has no vector: "raise" ends the stream with its error, "skip" leaves
                it out, "return" gives the error in the place of the vector.

        Returns:
            A stream of arrays (dim,).

        Raises:
            StateError: The embedder is not open, or was opened on another event loop.
            OptionError: An argument that cannot work; (from the stream) one that the model cannot serve.
            InputError: (from the stream) an input is no image, or cannot be fetched, read or decoded; `index` says
                which.
        """
        return self._images(images, self._call, self._dense_output(self._call), key, priority, ordered, on_error)

    @checks_keywords
    async def embed_image(self, image: ImageInput) -> "NDArray[ScalarT]":
        """The vector of one image: (dim,). Goes before bulk work."""
        await self._turn()
        return await self._one(image, measure_image, self._call, self._dense_output(self._call))

    @checks_keywords
    async def embed_images(self, images: Iterable[ImageInput]) -> "NDArray[ScalarT]":
        """The vectors of some images: (n, dim), rows in input order. Goes before bulk work."""
        await self._turn()
        return await self.embed(images, priority="interactive").collect()

    @property
    def embedding_size(self) -> int:
        """Length of a vector. Raises `StateError` if the model is neither catalogued nor open."""
        return self._call.truncate_dim or self._vector_size()

    @classmethod
    def get_embedding_size(cls, model_name: str) -> int:
        """Length of a catalogued model's vectors. Raises `UnknownModelError`."""
        return cls._catalogued_size(model_name)

    def _overrides(self) -> Overrides:
        return replace(super()._overrides(), pooling=self._pooling, normalize=self._normalize)
