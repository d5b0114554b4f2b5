"""Image embeddings: one vector per image. And what every class that takes images shares: reading and fetching them."""

import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Literal, Unpack

from anyio import CancelScope, move_on_after
from anyio.abc import TaskGroup

from asyncembed.catalogue.from_repo import Overrides
from asyncembed.catalogue.spec import ModelSpec
from asyncembed.checks import check_choice, check_count
from asyncembed.embedders.base import Embedder, InputT, Key, Measure, ModelIntake, PriorityName
from asyncembed.embedders.fetch import CONCURRENCY, MAX_BYTES, TIMEOUT_SECONDS, FetchLimits, UrlFetcher
from asyncembed.embedders.image_source import ImageBringer, ImageInput, OneImage, as_images, measure_image, pack_image
from asyncembed.encoders.encoder import Call
from asyncembed.encoders.image_input import MAX_IMAGE_PIXELS
from asyncembed.engine.scheduler import Group, Item, Priority, Sink
from asyncembed.engine.supervisor import PooledModel, WorkerPool
from asyncembed.errors import AsyncEmbedError, InputError, OptionError
from asyncembed.options import OptionKeywords
from asyncembed.results import Matrix, Output, Vector
from asyncembed.stream import EmbeddingStream, OnError, Source, StreamState

CLOSE_GRACE_SECONDS = 2.0

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
    `asyncembed.encoders.decoding` for what becomes of alpha, palettes, CMYK and so on. Paths are opened there too. URLs
    are fetched and file objects read beforehand, up to 16 at a time; see `asyncembed.embedders.fetch`.

    Args:
        model_name: A name of the catalogue, a repo on the hub, a local directory, or a `ModelSpec`.
        fast_decode: Decode JPEGs at a reduced scale, at least twice of what the model needs in each direction. Several
            times as fast for large photographs; the vectors change a little (cosine about 0.999).
        apply_orientation: Turn images as their EXIF tag says. Off by default: so are the models' reference numbers.
        max_image_pixels: Refuse images of more pixels.
        allow_private_urls: Also fetch from private, loopback and link-local addresses.
        max_url_bytes: Most bytes behind one URL.
        url_timeout: Most seconds for one URL, redirects included.
        options: The keywords that all six classes share (`workers`, `device`, `pool`, ...): see `asyncembed.Options`.

    Raises:
        OptionError: An unknown keyword, or a value that cannot work.
    """

    def __init__(
        self,
        model_name: str | os.PathLike[str] | ModelSpec,
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
        check_count("max_image_pixels", max_image_pixels, least=1)
        check_count("max_url_bytes", max_url_bytes, least=1)
        if not url_timeout > 0:
            raise OptionError(f"url_timeout must be a positive number of seconds; got {url_timeout!r}")
        self._decoding: dict[str, object] = {
            "fast_decode": fast_decode,
            "apply_orientation": apply_orientation,
            "max_image_pixels": max_image_pixels,
        }
        limits = FetchLimits(
            allow_private=allow_private_urls, max_bytes=max_url_bytes, timeout_seconds=float(url_timeout)
        )
        self._fetcher = UrlFetcher(limits)

    @asynccontextmanager
    async def _lifetime(self) -> AsyncGenerator[None]:
        async with super()._lifetime():
            try:
                yield
            finally:
                with move_on_after(CLOSE_GRACE_SECONDS, shield=True):
                    await self._fetcher.aclose()

    def _settings(self) -> Mapping[str, object]:
        return self._decoding

    def _intake(self, group: Group, priority: Priority, measure: Measure, key: Key | None) -> ModelIntake:
        if measure is not measure_image:
            return super()._intake(group, priority, measure, key)
        opened = self._require_open()
        bringer = ImageBringer(self._fetcher)
        return _ImageIntake(opened.pool, opened.model, group, priority, key, bringer, opened.group)

    def _images(
        self,
        source: Source[InputT] | OneImage,
        call: Call,
        output: Output[Any, Any],
        key: Key | None,
        priority: PriorityName,
        ordered: bool,
        on_error: OnError,
    ) -> EmbeddingStream[InputT, Any, Any]:
        return self._stream(
            as_images(source),
            measure_image,
            call,
            output,
            key=key,
            priority=priority,
            ordered=ordered,
            on_error=on_error,
        )


class _ImageIntake(ModelIntake):
    """From a record to an image that waits for a worker; what is not at hand is brought in by tasks of the embedder."""

    def __init__(
        self,
        pool: WorkerPool,
        model: PooledModel,
        group: Group,
        priority: Priority,
        key: Key | None,
        bringer: ImageBringer,
        tasks: TaskGroup,
    ) -> None:
        super().__init__(pool, model, group, priority, measure_image, key)
        taken = model.facts.get("tokens_per_image")
        self._tokens_per_image = DECODING_TOKENS + (taken if isinstance(taken, int) else 0)
        self._bringer = bringer
        self._tasks = tasks
        # What is yet to be brought in, and the scopes of the tasks that do it.
        self._waiting: deque[Item] = deque()
        self._scopes: set[CancelScope] = set()

    def _make_item(self, value: object, units: int, index: int, sink: Sink) -> Item:
        packed = value if self._bringer(value) is not None else pack_image(value)
        return Item(packed, self._tokens_per_image + units, self.group, self._priority, sink, index)

    def submit(self, items: list[Item]) -> None:
        ready = []
        for item in items:
            if self._bringer(item.value) is None:
                ready.append(item)
            else:
                self._waiting.append(item)
                if len(self._scopes) < CONCURRENCY:
                    scope = CancelScope()
                    self._scopes.add(scope)
                    self._tasks.start_soon(self._bring_all, scope)
        if ready:
            self._pool.submit(ready)

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

    async def _bring_in(self, item: Item) -> None:
        """Fetch or read an image, and let it wait for a worker; whatever goes wrong is the image's own error."""
        bring = self._bringer(item.value)
        assert bring is not None
        try:
            item.value = data = await bring()
            if isinstance(item.sink, StreamState):
                item.sink.charge(item.index, len(data))
            self._pool.submit([item])
        except Exception as error:  # noqa: BLE001 (it travels as a value: nothing leaves a task of the group)
            known = error if isinstance(error, AsyncEmbedError) else f"{type(error).__name__}: {error}"
            self._model.failed += 1
            item.sink.fail(item.index, InputError(str(known), index=item.index))


class ImageEmbedding(ImageEmbedder):
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

    def __init__(
        self,
        model_name: str | os.PathLike[str] | ModelSpec,
        *,
        pooling: Literal["none", "cls"] | None = None,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        dtype: Literal["float32", "float16"] = "float32",
        **options: Unpack[ImageKeywords],
    ) -> None:
        super().__init__(model_name, **options)
        check_choice("pooling", pooling, (None, "none", "cls"))
        check_choice("dtype", dtype, ("float32", "float16"))
        check_count("truncate_dim", truncate_dim, least=1)
        self._pooling: Literal["none", "cls"] | None = pooling
        self._normalize = normalize
        self._call = Call(mode="image", truncate_dim=truncate_dim, dtype=dtype)

    def embed(
        self,
        images: Source[InputT] | OneImage,
        *,
        key: Callable[[InputT], ImageInput] | None = None,
        priority: PriorityName = "bulk",
        ordered: bool = True,
        on_error: OnError = "raise",
    ) -> EmbeddingStream[InputT, Vector, Matrix]:
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

    async def embed_image(self, image: ImageInput) -> Vector:
        """The vector of one image: (dim,). Goes before bulk work."""
        return await self._one(image, measure_image, self._call, self._dense_output(self._call))

    async def embed_images(self, images: Iterable[ImageInput]) -> Matrix:
        """The vectors of some images: (n, dim), rows in input order. Goes before bulk work."""
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
