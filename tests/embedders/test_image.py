"""Images end to end: every kind of input, through real workers."""

import json
import os
import threading
from collections.abc import AsyncIterator, Iterator
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from fastembed import ImageEmbedding as ReferenceImageEmbedding
from PIL import Image

from asyncembed import ImageEmbedding, LateInteractionMultimodalEmbedding
from asyncembed.embedders.image import MOST_AT_A_TIME
from asyncembed.errors import InputError, OptionError, OverloadedError, StateError
from asyncembed.images.urls import CONCURRENCY
from tests.support.images import encoded, picture, write_image_model
from tests.support.models import forget_registered_models
from tests.support.waiting import until
from tests.support.web import WebServer

pytestmark = pytest.mark.slow

NAME = "Qdrant/clip-ViT-B-32-vision"


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    write_image_model(path, NAME)
    for number, (kind, mode) in enumerate((("jpg", "RGB"), ("png", "RGBA"), ("jpg", "CMYK"), ("gif", "P"))):
        picture(200 + 30 * number, 150, mode, seed=number).save(path / f"{number}.{kind}")
    return path


@pytest.fixture(scope="module")
def expected(model_path: Path) -> Any:
    model = ReferenceImageEmbedding(NAME, specific_model_path=str(model_path))
    return np.stack(list(model.embed(sorted(model_path.glob("[0-9].*")))))


@pytest.fixture
def paths(model_path: Path) -> list[Path]:
    return sorted(model_path.glob("[0-9].*"))


@pytest.fixture
def server(paths: list[Path]) -> Iterator[WebServer]:
    with WebServer({f"/{path.name}": path.read_bytes() for path in paths}) as web:
        yield web


async def test_every_kind_of_input_equals_the_reference(
    model_path: Path, paths: list[Path], expected: Any, server: WebServer
) -> None:
    async with ImageEmbedding(NAME, model_path=model_path, workers=2, allow_private_urls=True) as model:
        opened = [Image.open(path) for path in paths]
        decoded = [image.convert("RGB") for image in opened]
        with paths[0].open("rb") as file:
            forms: list[list[Any]] = [
                list(paths),
                [os.path.relpath(path) for path in paths],
                [path.read_bytes() for path in paths],
                [bytearray(paths[0].read_bytes()), memoryview(paths[1].read_bytes())],
                [file, *(BytesIO(path.read_bytes()) for path in paths[1:])],
                list(opened),
                list(decoded),
                [np.asarray(image) for image in decoded],
                [f"{server.url}/{path.name}" for path in paths],
            ]
            for form in forms:
                vectors = await model.embed(form).collect()
                assert vectors.dtype == np.float32
                np.testing.assert_allclose(vectors, expected[: len(form)], atol=1e-6)
        mixed = [form[1] for form in forms]
        np.testing.assert_allclose(await model.embed_images(mixed), np.stack([expected[1]] * len(mixed)), atol=1e-6)
        assert model.embedding_size == ImageEmbedding.get_embedding_size(NAME) == 512
        for image in opened:
            image.close()


async def test_one_image_is_one_image(model_path: Path, paths: list[Path], expected: Any, server: WebServer) -> None:
    async with ImageEmbedding(NAME, model_path=model_path, workers=0, allow_private_urls=True) as model:
        with Image.open(paths[0]) as image, paths[0].open("rb") as file:
            whole = np.asarray(image)
            for one in (paths[0], str(paths[0]), paths[0].read_bytes(), image, whole, file, f"{server.url}/0.jpg"):
                (vector,) = [vector async for vector in model.embed(one)]
                np.testing.assert_allclose(vector, expected[0], atol=1e-6)
                np.testing.assert_allclose(await model.embed_image(one), expected[0], atol=1e-6)
            assert len(await model.embed(np.stack([whole, whole])).collect()) == 2


async def test_a_broken_image_is_skipped_and_its_error_names_it(
    model_path: Path, paths: list[Path], expected: Any, server: WebServer
) -> None:
    broken: list[Any] = [
        model_path / "missing.jpg",
        paths[0].read_bytes()[:1500],
        f"{server.url}/missing",
        "http://127.0.0.1/private",
        42,
        np.zeros((5, 5), np.float32),
        BytesIO(b"nothing"),
    ]
    records: list[Any] = [paths[0], *broken, paths[1]]
    async with ImageEmbedding(NAME, model_path=model_path, workers=1) as model:
        vectors = await model.embed(records, on_error="skip").collect()
        np.testing.assert_allclose(vectors, expected[:2], atol=1e-6)
        returned: list[Any] = [result async for result in model.embed(records, on_error="return")]
        assert [type(result) is InputError for result in returned] == [False, *[True] * len(broken), False]
        assert [result.index for result in returned[1:-1]] == list(range(1, len(broken) + 1))
        with pytest.raises(InputError) as caught:
            await model.embed(records).collect()
        assert caught.value.index == 1
        for one in broken[:4]:
            with pytest.raises(InputError) as caught:
                await model.embed_image(one)
            assert caught.value.index is None


async def test_records_travel_with_their_vectors(model_path: Path, paths: list[Path], expected: Any) -> None:
    async def records() -> AsyncIterator[dict[str, Any]]:
        for path in paths:
            yield {"id": path.name, "image": path}

    async with ImageEmbedding(NAME, model_path=model_path, workers=1) as model:
        stream = model.embed(records(), key=lambda record: record["image"]).with_inputs()
        found = {record["id"]: vector async for record, vector in stream}
        for path, vector in zip(paths, expected, strict=True):
            np.testing.assert_allclose(found[path.name], vector, atol=1e-6)


async def test_leaving_early_ends_the_fetching(model_path: Path, server: WebServer) -> None:
    async with ImageEmbedding(NAME, model_path=model_path, workers=0, allow_private_urls=True) as model:
        stream = model.embed([f"{server.url}/0.jpg", *[f"{server.url}/stall"] * 20])
        async for _ in stream:
            break
        await stream.aclose()
        await model.embed_image(f"{server.url}/1.png")
        before = len(server.requests)
        await until(lambda: model.stats().queued == 0)
        assert len(server.requests) == before


async def test_options_reach_the_worker(model_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = picture(1600, 1200)
    turned, upright = encoded(image, exif=exif), encoded(image.transpose(Image.Transpose.ROTATE_270))
    async with ImageEmbedding(NAME, model_path=model_path, workers=0) as model:
        plain = await model.embed_images([turned, upright])
        assert not np.allclose(plain[0], plain[1], atol=1e-3)
    async with ImageEmbedding(
        NAME, model_path=model_path, workers=0, apply_orientation=True, fast_decode=True
    ) as model:
        both = await model.embed_images([turned, upright])
        assert float(both[0] @ both[1]) > 0.99
        assert float(both[1] @ plain[1]) > 0.99
    async with ImageEmbedding(NAME, model_path=model_path, workers=0, max_image_pixels=1000) as model:
        with pytest.raises(InputError, match="max_image_pixels=1000"):
            await model.embed_image(turned)


async def test_a_directory_is_a_model(model_path: Path, paths: list[Path], expected: Any) -> None:
    async with ImageEmbedding(str(model_path), workers=0) as model:
        np.testing.assert_allclose(await model.embed_images(list(paths)), expected, atol=1e-6)
        assert model.embedding_size == 512


async def test_a_directory_as_transformers_5_writes_it_is_a_model(
    tmp_path: Path, paths: list[Path], expected: Any
) -> None:
    write_image_model(tmp_path, NAME)
    config = tmp_path / "preprocessor_config.json"
    nested = {"image_processor": json.loads(config.read_text("utf-8")), "processor_class": "CLIPProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested), "utf-8")
    config.unlink()
    async with ImageEmbedding(tmp_path, workers=0) as model:
        np.testing.assert_allclose(await model.embed_images(list(paths)), expected, atol=1e-6)


# ---------------------------------------------------------------- inputs that misbehave


class _Raising:
    """A path, or a file object, that raises `error` wherever it is touched."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def read(self, size: int = -1) -> bytes:
        raise self._error


class _RaisingPath(os.PathLike[str]):
    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __fspath__(self) -> str:
        raise self._error


class _BytesPath(os.PathLike[bytes]):
    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> bytes:
        return os.fsencode(self._path)


class _Silent:
    """A file object that does not answer before `answers` is set."""

    def __init__(self, answers: threading.Event) -> None:
        self._answers = answers

    def read(self, size: int = -1) -> bytes:
        self._answers.wait(60)
        return b""


class _Asynchronous:
    async def read(self, size: int = -1) -> bytes:
        return b""


class _SpeechlessError(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class _Liar:
    __class__ = np.ndarray  # type: ignore[assignment]


def _released() -> memoryview:
    view = memoryview(b"released")
    view.release()
    return view


async def test_whatever_an_input_raises_is_its_own_error(
    model_path: Path, paths: list[Path], expected: Any, tmp_path: Path
) -> None:
    closed = BytesIO(b"closed")
    closed.close()
    misbehaving: list[Any] = [
        _RaisingPath(OSError("no path")),
        _RaisingPath(SystemExit(3)),
        _RaisingPath(MemoryError()),
        _Raising(ValueError("no bytes")),
        _Raising(SystemExit(3)),
        _Raising(GeneratorExit()),
        _Raising(_SpeechlessError()),
        _Asynchronous(),
        StringIO("text"),
        closed,
        _released(),
        _Liar(),
        np.broadcast_to(np.uint8(0), (500_000, 500_000, 3)),
        np.broadcast_to(np.uint8(0), (2**40,)).data,
        np.zeros((0, 5, 3), np.uint8),
        np.uint8(7),
    ]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.jpg")
        misbehaving.append(tmp_path / "pipe.jpg")
    records: list[Any] = [paths[0], *misbehaving, _BytesPath(paths[1])]
    async with ImageEmbedding(NAME, model_path=model_path, workers=1) as model:
        with anyio.fail_after(60):
            returned: list[Any] = [result async for result in model.embed(records, on_error="return")]
        np.testing.assert_allclose(np.stack([returned[0], returned[-1]]), expected[:2], atol=1e-6)
        assert [type(result) for result in returned[1:-1]] == [InputError] * len(misbehaving)
        assert [result.index for result in returned[1:-1]] == list(range(1, len(misbehaving) + 1))
        assert model.stats().failed == len(misbehaving)
        for one in misbehaving:
            with pytest.raises(InputError) as caught:
                await model.embed_image(one)
            assert caught.value.index is None
        np.testing.assert_allclose(await model.embed_image(paths[0]), expected[0], atol=1e-6)


async def test_a_file_object_that_does_not_answer_holds_up_nobody(model_path: Path, paths: list[Path]) -> None:
    """Its input fails after a time; other calls, and closing, do not wait for it."""
    answers = threading.Event()
    silent: Any = _Silent(answers)
    try:
        async with ImageEmbedding(NAME, model_path=model_path, workers=0, url_timeout=0.5) as model:
            with pytest.raises(InputError, match=r"did not answer within url_timeout=0\.5 s"):
                await model.embed_image(silent)
        with anyio.fail_after(30):
            async with ImageEmbedding(NAME, model_path=model_path, workers=0) as model:
                stream = model.embed([silent] * 20)
                async with anyio.create_task_group() as group:
                    group.start_soon(_first, stream)
                    await until(lambda: sum(t.name == "asyncembed-image" for t in threading.enumerate()) >= 16)
                    with paths[0].open("rb") as file:
                        await model.embed_image(file)
                    group.cancel_scope.cancel()
    finally:
        answers.set()
    await until(lambda: not any(thread.name == "asyncembed-image" for thread in threading.enumerate()))


async def _first(stream: Any) -> None:
    async for _ in stream:
        break


async def test_an_image_that_is_being_fetched_as_the_embedder_closes_has_not_failed(
    model_path: Path, server: WebServer
) -> None:
    """Its stream, or its caller, is told that the embedder was closed; no image counts as a bad one."""
    ends: list[BaseException | None] = []

    async def embed_all(model: ImageEmbedding) -> None:
        try:
            await model.embed([f"{server.url}/stall"] * 40, on_error="skip").collect()
        except StateError as error:
            ends.append(error)

    async def embed_one(model: ImageEmbedding) -> None:
        with pytest.raises(StateError, match="closed") as caught:
            await model.embed_image(f"{server.url}/stall")
        ends.append(caught.value)

    async with anyio.create_task_group() as group:
        async with ImageEmbedding(NAME, model_path=model_path, workers=0, allow_private_urls=True) as model:
            group.start_soon(embed_all, model)
            group.start_soon(embed_one, model)
            await until(lambda: len(server.requests) >= MOST_AT_A_TIME)
            pooled = model._opened.model  # type: ignore[union-attr]
    assert [type(end) for end in ends] == [StateError, StateError]
    assert pooled.failed == 0


async def test_streams_whose_urls_stall_hold_up_no_other(model_path: Path, server: WebServer) -> None:
    """However many: what has had its time goes back and begins again."""
    async with ImageEmbedding(NAME, model_path=model_path, workers=0, allow_private_urls=True) as model:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(_first, model.embed([f"{server.url}/stall"] * 40))
            await until(lambda: len(server.requests) >= CONCURRENCY)
            assert (await model.embed_image(f"{server.url}/0.jpg")).ndim == 1
            group.cancel_scope.cancel()


async def test_images_that_are_being_fetched_take_the_places_of_other_such_images_alone(
    model_path: Path, paths: list[Path], server: WebServer
) -> None:
    """With `max_queued`: until they wait for a worker, cannot be had, or nobody wants them any more."""
    stalled, missing = f"{server.url}/stall", f"{server.url}/nowhere"
    async with ImageEmbedding(NAME, model_path=model_path, workers=0, allow_private_urls=True, max_queued=2) as model:
        for _ in range(2):
            async with anyio.create_task_group() as group:
                group.start_soon(model.embed_images, [stalled, stalled])
                asked = len(server.requests)
                await until(lambda: len(server.requests) >= asked + 2)  # noqa: B023 (waited for here)
                with pytest.raises(OverloadedError):
                    await model.embed_image(stalled)
                assert len(await model.embed_images(paths[:2])) == 2
                group.cancel_scope.cancel()
        with pytest.raises(InputError, match="404"):
            await model.embed_images([missing, missing])
        for _ in range(3):
            with pytest.raises(InputError, match="404"):
                await model.embed_image(missing)


async def test_a_fetched_image_costs_what_its_bytes_cost(
    model_path: Path, paths: list[Path], server: WebServer
) -> None:
    """As if it had been at hand: batches are formed from images of like cost, and the window is charged with it."""
    large = encoded(picture(900, 700), "PNG")
    server.files["/large.png"] = large
    async with ImageEmbedding(NAME, model_path=model_path, workers=0, allow_private_urls=True) as model:
        waiting: list[Any] = []
        opened = model._require_open()
        submit = opened.engine.submit

        def watched(items: Any) -> None:
            waiting.extend(items)
            submit(items)

        opened.engine.submit = watched  # type: ignore[method-assign]
        images: list[Any] = [large, f"{server.url}/large.png", BytesIO(large)]
        await model.embed(images).collect()
        sizes = {item.size for item in waiting}
        assert len(waiting) == 3
        assert len(sizes) == 1
        assert sizes.pop() > len(large) // 4096


async def test_no_more_is_fetched_while_the_window_is_full(model_path: Path) -> None:
    """An address is small, and what is behind it is not: what came counts before the next one is fetched."""
    large = encoded(picture(1200, 1200), "PNG", compress_level=0)
    with WebServer({"/large.png": large}) as server:
        async with ImageEmbedding(
            NAME, model_path=model_path, workers=0, allow_private_urls=True, max_in_flight_bytes=40 * 2**20
        ) as model:
            stream = model.embed([f"{server.url}/large.png"] * 40)
            await anext(stream)
            await until(lambda: MOST_AT_A_TIME <= model.stats().items == len(server.requests))
            assert len(server.requests) < 30
            assert len(await stream.collect()) == 39


@pytest.mark.parametrize(
    "keywords",
    [
        {"fast_decoding": True},
        {"max_url_bytes": 0},
        {"max_url_bytes": None},
        {"max_url_bytes": 1.5},
        {"max_image_pixels": None},
        {"max_image_pixels": "50"},
        {"max_image_pixels": True},
        {"url_timeout": 0},
        {"url_timeout": "5"},
        {"url_timeout": None},
        {"url_timeout": float("nan")},
        {"url_timeout": True},
        {"allow_private_urls": "false"},
        {"allow_private_urls": None},
        {"allow_private_urls": 1},
        {"fast_decode": "no"},
        {"apply_orientation": 0},
        {"normalize": "no"},
        {"truncate_dim": "5"},
        {"dtype": np.float32},
        {"pooling": "mean"},
    ],
    ids=str,
)
def test_every_option_is_checked_at_the_door(keywords: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        ImageEmbedding(NAME, **keywords)
    if "normalize" not in keywords and "pooling" not in keywords and "truncate_dim" not in keywords:
        with pytest.raises(OptionError):
            LateInteractionMultimodalEmbedding("Qdrant/colmodernvbert", **keywords)


def test_a_timeout_may_be_as_long_as_one_likes() -> None:
    for seconds in (float("inf"), 10**400, 1e-3):
        ImageEmbedding(NAME, url_timeout=seconds)


def test_wrong_options_are_refused() -> None:
    for keywords in ({"fast_decoding": True}, {"max_url_bytes": 0}, {"url_timeout": 0}, {"pooling": "mean"}):
        with pytest.raises(OptionError):
            ImageEmbedding(NAME, **keywords)


async def test_large_images_are_fetched_no_further_ahead_than_the_window_holds(model_path: Path) -> None:
    """How large they are is known only when they have come."""
    with WebServer({"/large": bytes(8 * 1024 * 1024)}) as server:
        async with ImageEmbedding(
            NAME, model_path=model_path, workers=0, allow_private_urls=True, max_in_flight_bytes=40 * 1024 * 1024
        ) as model:
            stream = model.embed([f"{server.url}/large"] * 42, on_error="return")
            async with stream:
                assert isinstance(await anext(stream), InputError)
                await until(lambda: model.stats().failed >= MOST_AT_A_TIME)
                await anyio.wait_all_tasks_blocked()
                assert len(server.requests) <= MOST_AT_A_TIME + 1
                assert len(await stream.collect()) == 41


class UnspeakablePath:
    """A path that raises when it is looked at."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __fspath__(self) -> str:
        raise self._error


class UnspeakableFile:
    def __init__(self, error: BaseException) -> None:
        self._error = error

    def read(self) -> bytes:
        raise self._error


async def test_an_image_that_raises_when_it_is_looked_at_fails_alone(model_path: Path, paths: list[Path]) -> None:
    released = memoryview(bytearray(b"image"))
    released.release()
    wild: list[Any] = [
        b"photos/a.png",
        released,
        UnspeakablePath(RuntimeError("no path")),
        UnspeakablePath(MemoryError()),
        UnspeakablePath(SystemExit(3)),
        UnspeakablePath(BaseException("neither")),
        UnspeakableFile(MemoryError()),
        UnspeakableFile(SystemExit(3)),
    ]
    async with ImageEmbedding(NAME, model_path=model_path, workers=0) as model:
        with anyio.fail_after(60):
            for source in ([paths[0], *wild, paths[0]], iter([paths[0], *wild, paths[0]])):
                failed = model.stats().failed
                results: list[Any] = await model.embed(source, on_error="return").collect()
                assert [type(result) for result in results] == [np.ndarray, *[InputError] * len(wild), np.ndarray]
                assert [result.index for result in results[1:-1]] == list(range(1, len(wild) + 1))
                assert model.stats().failed == failed + len(wild)


async def test_a_model_of_ones_own_is_known_by_name(model_path: Path, paths: list[Path], expected: Any) -> None:
    ImageEmbedding.add_custom_model("mine/clip", model_path, expected.shape[1], model_file="model.onnx")
    try:
        async with ImageEmbedding("Mine/CLIP", workers=0) as model:
            np.testing.assert_allclose(await model.embed(paths).collect(), expected, atol=1e-5)
        with pytest.raises(OptionError, match="already"):
            ImageEmbedding.add_custom_model("mine/clip", model_path, 3)
    finally:
        forget_registered_models()
