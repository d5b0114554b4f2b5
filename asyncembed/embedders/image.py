"""Image embeddings: one vector per image. And what every class that takes images shares: reading and fetching them."""

from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from inspect import isawaitable, iscoroutine
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, Unpack, cast, overload

import anyio
from anyio import CancelScope, get_cancelled_exc_class, move_on_after
from anyio.abc import TaskGroup

from asyncembed.catalogue.described import Overrides
from asyncembed.catalogue.lookup import register
from asyncembed.catalogue.spec import Family
from asyncembed.checks import check_bool, check_choice, check_count, check_seconds, check_text, checks_keywords
from asyncembed.embedders.base import (
    AnyStream,
    HasVectors,
    ModelName,
    Opened,
    ReturningCall,
    StreamCall,
    StreamKeywords,
)
from asyncembed.embedders.intake import InputT, Intake, Key
from asyncembed.encoders.encoder import Call
from asyncembed.engine.model import PooledModel
from asyncembed.engine.scheduler import Item, Priority
from asyncembed.engine.supervisor import Supervisor
from asyncembed.errors import AsyncEmbedError, InputError, StateError, in_words
from asyncembed.feeding import Recipient, Source
from asyncembed.images.inputs import (
    ENCODED_BYTES_PER_TOKEN,
    MAX_IMAGE_PIXELS,
    ImageInput,
    ImageT,
    ToFetch,
    accept_image,
    is_one_image,
    its_own_error,
    most_bytes,
)
from asyncembed.images.urls import MAX_BYTES, TIMEOUT_SECONDS, FetchLimits, UrlFetcher
from asyncembed.options import OptionKeywords
from asyncembed.results import Assembly, CollectedT, Counted, CountedBatch, ResultT, ScalarT
from asyncembed.wakeup import completion, start_thread

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from asyncembed.stream import EmbeddingStream, ReturningStream

MOST_AT_A_TIME = 16
"""Images of one stream that are fetched or read at a time."""

CLOSE_GRACE_SECONDS = 2.0

LONGEST_TIMEOUT_SECONDS = 1e9

READ_BYTES = 1024 * 1024
"""Of a file object, at a time."""

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


class ImageEmbedder(HasVectors):
    """What the classes that take images share.

    An image is a path, a URL (http or https), a file's bytes, a file object, an image of Pillow's, or an array of
    uint8 pixels, (height, width) or (height, width, 1, 3 or 4). It is decoded in a worker, as Pillow's
    `convert("RGB")` has it: grey is repeated in three channels, palettes are looked up, transparency is dropped (not
    blended), CMYK is converted without a colour profile; of an animation the first frame counts. Read are JPEG, PNG,
    GIF, BMP, PPM, WebP, TIFF, AVIF, JPEG 2000, ICO, and HEIF where pillow-heif is installed. Paths are opened there,
    too. URLs are fetched and file objects read beforehand, up to 16 of a stream at a time (and none while it holds
    more than `max_in_flight_bytes`). A host name is resolved once, and nothing but public addresses is connected to,
    also where an answer redirects.

    Args:
        model_name: A name of the catalogue, a repo on the hub, a local directory, or a `ModelSpec`.
        fast_decode: Decode JPEGs at a reduced scale, at least twice of what the model needs in each direction. Several
            times as fast for large photographs; the vectors change a little (cosine about 0.999).
        apply_orientation: Turn images as their EXIF tag says. Off by default: so are the models' reference numbers.
        max_image_pixels: Refuse images of more pixels, before they are decoded or sent to a worker.
        allow_private_urls: Also fetch from private, loopback and link-local addresses.
        max_url_bytes: Most bytes behind one URL.
        url_timeout: Most seconds for one URL, redirects included, and for reading one file object.
        options: The keywords that all classes share (`workers`, `device`, `pool`, ...): see `asyncembed.Options`.

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
        check_count("max_image_pixels", max_image_pixels, minimum=1, may_be_none=False)
        check_count("max_url_bytes", max_url_bytes, minimum=1, may_be_none=False)
        check_seconds("url_timeout", url_timeout)
        seconds = float(min(url_timeout, LONGEST_TIMEOUT_SECONDS))
        self._decoding: dict[str, object] = {
            "fast_decode": fast_decode,
            "apply_orientation": apply_orientation,
            "max_image_pixels": max_image_pixels,
        }
        limits = FetchLimits(allow_private=allow_private_urls, max_bytes=max_url_bytes, timeout_seconds=seconds)
        self._loader = ImageLoader(limits, max_pixels=max_image_pixels)

    def __copy__(self) -> Self:
        """Another model of the same, with connections of its own."""
        twin = object.__new__(type(self))
        vars(twin).update(self.__getstate__(), _loader=self._loader.anew())
        return twin

    def _lifetime(self) -> AbstractAsyncContextManager[Opened]:
        return _closing_afterwards(super()._lifetime(), self._loader)

    def _settings(self) -> Mapping[str, object]:
        return self._decoding

    def _door(self, engine: Supervisor, model: PooledModel, call: Call, priority: Priority, key: Key | None) -> Intake:
        tasks = self._require_open().group
        return _ImageIntake(self._loader, tasks, engine, model, call, priority, key)

    def _images(
        self,
        source: Source[InputT] | ImageInput,
        call: Call,
        assembly: Callable[[], Assembly[ResultT, CollectedT]],
        keywords: StreamKeywords,
    ) -> AnyStream[InputT, ResultT, CollectedT]:
        images = cast("Source[InputT]", [source] if is_one_image(source) else source)
        return self._stream(self._require_open(), images, self._door, lambda _: (call, assembly()), keywords)


@asynccontextmanager
async def _closing_afterwards(
    lifetime: AbstractAsyncContextManager[Opened], loader: "ImageLoader"
) -> AsyncGenerator[Opened]:
    try:
        async with lifetime as opened:
            yield opened
    finally:
        # After the streams have ended: an image that is being fetched then is nobody's failure.
        with move_on_after(CLOSE_GRACE_SECONDS, shield=True):
            await loader.aclose()


@dataclass(frozen=True, slots=True)
class _Absent:
    """An image that is not at hand, and whom it concerns when it is: the value of an item until then."""

    image: ToFetch
    recipient: Recipient


class _ImageIntake(Intake):
    """From a record to an image that waits for a worker; what is not at hand is brought in by tasks of the embedder."""

    def __init__(
        self,
        loader: "ImageLoader",
        tasks: TaskGroup,
        engine: Supervisor,
        model: PooledModel,
        call: Call,
        priority: Priority,
        key: Key | None,
    ) -> None:
        super().__init__(partial(accept_image, max_pixels=loader.max_pixels), engine, model, call, priority, key)
        self._tokens_per_image = DECODING_TOKENS + model.info.tokens_per_image
        self._loader = loader
        self._tasks = tasks
        # What is yet to be brought in, and the scopes of the tasks that do it.
        self._waiting: deque[Item] = deque()
        self._scopes: set[CancelScope] = set()
        # How many are being brought in, and the bytes of the largest one so far.
        self._on_the_way = 0
        self._largest = 0

    def _make_item(self, value: object, units: int, index: int, sink: Recipient) -> Item:
        if type(value) is ToFetch:
            value = _Absent(value, sink)
        return self._maker.sized_item(value, self._tokens_per_image + units, sink, index)

    def submit(self, items: list[Item]) -> None:
        self._claim(len(items))
        absent = [item for item in items if type(item.value) is _Absent]
        if absent:
            self._count_as_absent()
        self._waiting += absent
        for _ in range(min(len(absent), MOST_AT_A_TIME - len(self._scopes))):
            scope = CancelScope()
            self._scopes.add(scope)
            self._tasks.start_soon(self._bring_all, scope)
        self._send([item for item in items if type(item.value) is not _Absent] if absent else items)

    def close(self) -> None:
        self._waiting.clear()
        for scope in self._scopes:
            scope.cancel()
        super().close()

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
        absent = cast(_Absent, item.value)
        try:
            await absent.recipient.wait_bytes(item.index, self._largest * self._on_the_way)
            self._on_the_way += 1
            try:
                data = await self._loader.load(absent.image, absent.recipient)
            finally:
                self._on_the_way -= 1
        except get_cancelled_exc_class():
            _fail_as_closed(item)
            raise
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 (it travels as a value: nothing leaves a task of the group)
            message = str(error) if isinstance(error, AsyncEmbedError) else in_words(error)
            self.count_failure()
            self._give_back(1)
            item.sink.fail(item.index, InputError(message, index=item.index))
            return
        item.value = data
        self._largest = max(self._largest, len(data))
        # What it costs to decode is known only now.
        item.size += len(data) // ENCODED_BYTES_PER_TOKEN
        absent.recipient.charge(item.index, len(data))
        self._send([item])


def _fail_as_closed(item: Item) -> None:
    """Tell whoever waits for an image that nobody brings it in any more; a stream that has ended does not listen."""
    item.sink.fail(item.index, StateError("the embedder was closed while the image was being fetched or read"))


# ---------------------------------------------------------------- what is not at hand


class ImageLoader:
    """Fetches URLs and reads file objects. It is an embedder's: connections outlive the streams that used them.

    Equal are those that do the same, whatever connections they have.
    """

    def __init__(self, limits: FetchLimits, *, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        self._limits = limits
        self._fetcher = UrlFetcher(limits)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageLoader) and (self.max_pixels, self._limits) == (other.max_pixels, other._limits)

    def __hash__(self) -> int:
        return hash((self.max_pixels, self._limits))

    def anew(self) -> "ImageLoader":
        """One that does the same."""
        return ImageLoader(self._limits, max_pixels=self.max_pixels)

    def __reduce__(self) -> "tuple[Callable[..., ImageLoader], tuple[FetchLimits]]":
        """Another process has connections of its own."""
        return partial(ImageLoader, max_pixels=self.max_pixels), (self._limits,)

    async def load(self, image: ToFetch, owner: Recipient) -> bytes:
        """The bytes of an image of a stream, or of a call.

        Raises:
            InputError: They cannot be had, are too many, or do not come in time.
        """
        if isinstance(image.source, str):
            return await self._fetcher.fetch(image.source, owner)
        reading = _Reading(image.source, most_bytes(self.max_pixels))
        seconds = self._limits.timeout_seconds
        try:
            # The thread that reads it is left behind where it does not answer in time.
            with anyio.fail_after(seconds):
                return await completion(start_thread(reading.read))
        except TimeoutError:
            raise InputError(f"the file object did not answer within url_timeout={seconds:g} s") from None
        finally:
            reading.is_over = True

    async def aclose(self) -> None:
        """Close all connections."""
        await self._fetcher.aclose()


class _Reading:
    """The reading of one file object, in a thread."""

    def __init__(self, file: Any, max_bytes: int) -> None:
        self.is_over = False
        self._file = file
        self._max_bytes = max_bytes

    def read(self) -> bytes:
        """All of it, from its beginning where it can be moved there."""
        with its_own_error("the file object cannot be read"):
            if hasattr(self._file, "seekable") and self._file.seekable():
                self._file.seek(0)
            content = bytearray()
            while not self.is_over and (part := self._read_part()):
                content += part
                if len(content) > self._max_bytes:
                    raise InputError(f"the file object gives more than {self._max_bytes} bytes")
            return bytes(content)

    def _read_part(self) -> bytes | bytearray:
        part = self._file.read(READ_BYTES)
        if isawaitable(part):
            if iscoroutine(part):
                part.close()
            raise InputError("the file object is an asynchronous one: give what `await file.read()` gives")
        if not isinstance(part, bytes | bytearray):
            raise InputError(f"the file object gives {type(part).__name__}; open the file in binary mode")
        return part


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
        options: Those of `ImageEmbedder`, and those that all classes share (`workers`, `device`, `pool`, ...): see
            `asyncembed.Options`.
    """

    family: ClassVar[Family] = "image"

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
        check_count("truncate_dim", truncate_dim, minimum=1)
        self._truncate_dim = truncate_dim
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
        self, images: Source[Any] | ImageInput, **call: Unpack[StreamKeywords]
    ) -> "AnyStream[Any, NDArray[ScalarT], NDArray[ScalarT]]":
        """Embed images from any iterable or async iterable.

        Args:
            images: The images, or records from which `key` takes the image. One image alone is taken as such.
            call: `key`, `priority`, `ordered`, `on_error`: see `asyncembed.StreamKeywords`, also for the errors.

        Returns:
            A stream of arrays (dim,).
        """
        return self._images(images, self._call, partial(self._dense_assembly, self._call), call)

    @overload
    async def embed_image(self, image: ImageInput, *, with_tokens: Literal[False] = False) -> "NDArray[ScalarT]": ...
    @overload
    async def embed_image(self, image: ImageInput, *, with_tokens: Literal[True]) -> "Counted[NDArray[ScalarT]]": ...
    @checks_keywords
    async def embed_image(
        self, image: ImageInput, *, with_tokens: bool = False
    ) -> "NDArray[ScalarT] | Counted[NDArray[ScalarT]]":
        """The vector of one image: (dim,), `with_tokens` as a `Counted`. Goes before bulk work.

        The name is fastembed's; where matrices come of images, `embed_image` is the stream of many.
        """
        opened = await self._turn()
        assembly: Assembly[NDArray[ScalarT], NDArray[ScalarT]] = self._dense_assembly(self._call)
        return await self._one(opened, image, self._door, self._call, assembly, with_tokens=with_tokens)

    @overload
    async def embed_images(
        self, images: Iterable[ImageInput], *, with_tokens: Literal[False] = False
    ) -> "NDArray[ScalarT]": ...
    @overload
    async def embed_images(
        self, images: Iterable[ImageInput], *, with_tokens: Literal[True]
    ) -> "CountedBatch[NDArray[ScalarT]]": ...
    @checks_keywords
    async def embed_images(
        self, images: Iterable[ImageInput], *, with_tokens: bool = False
    ) -> "NDArray[ScalarT] | CountedBatch[NDArray[ScalarT]]":
        """The vectors of some images: (n, dim), rows in input order. Goes before bulk work.

        `with_tokens` gives them as a `CountedBatch`.
        """
        await self._turn()
        return await self._several(self.embed(images, priority="interactive"), with_tokens=with_tokens)

    @classmethod
    def add_custom_model(
        cls,
        model: str,
        sources: object,
        dim: int,
        model_file: str = "onnx/vision_model.onnx",
        description: str = "",
        license: str = "",  # noqa: A002 (the name that fastembed's users know)
        size_in_gb: float = 0.0,
        additional_files: Sequence[str] | None = None,
        pooling: Literal["none", "cls"] = "none",
        normalization: bool = True,
        output_name: str | None = None,
    ) -> None:
        """Make a model known by name, for this process and the workers it starts.

        Args:
            model: Its name; must not be taken.
            sources: Where its files come from: a hub repo ("organisation/name"), the URL of a `.tar.gz`, a directory
                as a `Path`, an `asyncembed.Origin`, any object with the attributes `hf` and `url`, or several of these.
                Its `preprocessor_config.json` says how an image is prepared.
            dim: Length of its vectors.
            model_file: Path of the ONNX graph in the repo.
            description: For people.
            license: For people.
            size_in_gb: For people.
            additional_files: Further files that must be there, as paths in the repo.
            pooling: As in the constructor.
            normalization: Whether vectors are scaled to unit length.
            output_name: Graph output to take; None: the first.

        Raises:
            OptionError: The name is taken, there is no source, or a value that cannot work.
        """
        check_count("dim", dim, minimum=1, may_be_none=False)
        check_choice("pooling", pooling, ("none", "cls"))
        check_bool("normalization", normalization)
        check_text("output_name", output_name)
        spec = cls._custom_spec(model, "image", sources, model_file, additional_files, description, license, size_in_gb)
        output = 0 if output_name is None else output_name
        register(replace(spec, dim=dim, pooling=pooling, normalize=normalization, graph_output=output))

    def _usual_calls(self, opened: Opened) -> Sequence[Call]:  # noqa: ARG002 (it is no matter of the model)
        return [self._call]

    def _overrides(self) -> Overrides:
        return replace(super()._overrides(), pooling=self._pooling, normalize=self._normalize)
