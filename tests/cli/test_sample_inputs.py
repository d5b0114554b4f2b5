"""The inputs that bench makes up."""

from io import BytesIO
from statistics import median

from PIL import Image

from asyncembed.cli.sample_inputs import MOST_WORDS, sample_images, sample_queries, sample_texts


def test_texts_are_the_same_on_every_machine() -> None:
    """Figures of two machines are compared, so these must not change without a reason."""
    assert sample_texts(2)[0][:40] == "time two other down we where of will so "
    assert sample_texts(50) == sample_texts(100)[:50]
    assert sample_queries(2)[0] == "our under night when own those down not"


def test_texts_are_of_very_mixed_length() -> None:
    lengths = [len(text.split()) for text in sample_texts(2000)]
    assert 25 < median(lengths) < 35
    assert min(lengths) < 4
    assert max(lengths) == MOST_WORDS


def test_images_are_files_of_images() -> None:
    first, second = sample_images(2)
    assert first != second
    with Image.open(BytesIO(first)) as image:
        assert (image.format, image.size) == ("JPEG", (320, 240))
