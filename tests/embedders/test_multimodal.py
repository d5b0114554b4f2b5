"""Texts and images in one model, end to end."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncembed import LateInteractionMultimodalEmbedding, maxsim_scores
from asyncembed.encoders.encoder import Call, EncoderConfig
from asyncembed.encoders.registry import build
from asyncembed.errors import InputError
from tests.support.images import picture
from tests.support.models import TEXTS, forget_registered_models
from tests.support.multimodal import COLMODERNVBERT_NAME, NAMES, write_multimodal_model

pytestmark = pytest.mark.slow


async def test_texts_and_images_share_a_model(tmp_path: Path) -> None:
    spec = write_multimodal_model(tmp_path, COLMODERNVBERT_NAME)
    images = [picture(300, 227), picture(30, 90), picture(90, 90)]
    paths = []
    for number, image in enumerate(images):
        paths.append(tmp_path / f"{number}.png")
        image.save(paths[-1])
    encoder = build(EncoderConfig(spec=spec, directory=tmp_path))
    expected_pages = encoder.encode([str(path) for path in paths], Call(mode="image")).results
    expected_texts = encoder.encode(TEXTS, Call(mode="query")).results
    async with LateInteractionMultimodalEmbedding(spec, workers=2) as model:
        pages = await model.embed_image(paths).collect()
        texts = await model.embed_text(TEXTS).collect()
        for results, expected in ((pages, expected_pages), (texts, expected_texts)):
            for result, right in zip(results, expected, strict=True):
                assert result.dtype == np.float32
                np.testing.assert_allclose(result, right, atol=2e-6)
        np.testing.assert_allclose(await model.embed_query(TEXTS[0]), texts[0], atol=2e-6)
        np.testing.assert_allclose(await model.embed_one_image(images[1]), pages[1], atol=2e-6)
        assert len(await model.embed_images(images[:2])) == 2
        assert maxsim_scores(texts[0], pages).shape == (3,)
        counts = [await model.token_count(TEXTS, include_extension=extended) for extended in (False, True)]
        assert counts[1] - counts[0] == 10 * len(TEXTS)
        assert model.embedding_size == 128
        with pytest.raises(InputError, match="expected a str"):
            await model.embed_text([paths[0]]).collect()  # type: ignore[list-item]


@pytest.mark.parametrize("name", NAMES)
async def test_a_fine_tuned_model_is_known_by_name(name: str, tmp_path: Path) -> None:
    spec = write_multimodal_model(tmp_path, name)
    assert spec.model_file is not None
    kind: Any = spec.encoder
    page = picture(90, 90)
    async with LateInteractionMultimodalEmbedding(spec, workers=0) as model:
        expected = [await model.embed_query("the day"), await model.embed_one_image(page)]
    LateInteractionMultimodalEmbedding.add_custom_model("mine/pages", tmp_path, kind, model_file=spec.model_file)
    try:
        async with LateInteractionMultimodalEmbedding("Mine/Pages", workers=0) as model:
            assert model.embedding_size == 128
            np.testing.assert_allclose(await model.embed_query("the day"), expected[0], atol=2e-6)
            np.testing.assert_allclose(await model.embed_one_image(page), expected[1], atol=2e-6)
    finally:
        forget_registered_models()
