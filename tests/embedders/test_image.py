"""Images end to end: every kind of input, through real workers."""

import os
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastembed import ImageEmbedding as ReferenceImageEmbedding
from PIL import Image

from asyncembed import ImageEmbedding
from asyncembed.errors import InputError, OptionError
from tests.support.images import encoded, picture, write_image_model
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


def test_wrong_options_are_refused() -> None:
    for keywords in ({"fast_decoding": True}, {"max_url_bytes": 0}, {"url_timeout": 0}, {"pooling": "mean"}):
        with pytest.raises(OptionError):
            ImageEmbedding(NAME, **keywords)
