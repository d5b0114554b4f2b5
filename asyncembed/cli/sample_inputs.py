"""Inputs for `bench` where its user has none: the same on every machine, and of lengths as mixed as real ones are."""

from functools import cache
from io import BytesIO
from random import Random

SEED = 16
MEDIAN_WORDS = 30
SPREAD = 1.0
"""Of the logarithm of a text's length: one in six has more than 80 words, one in forty more than 220."""

MOST_WORDS = 400
QUERY_WORDS = 8

IMAGE_PIXELS = (320, 240)

_WORDS = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one you
were all her she there would their we him been has when who will no more if out so up said what its about than into them
can only other time new some could these two may first then do any like my now over such our man me even most made after
also did many off before must well back through years where much your way down should because long each just state those
people too good very make world still see own work men here life being under day same another know year while last might
us great old part high side water house number family system group open school street night word place light paper story
""".split()  # noqa: SIM905 (a word a line would be two pages)


def sample_texts(count: int) -> list[str]:
    """Texts of 1 to `MOST_WORDS` common words, which say nothing."""
    random = Random(SEED)  # noqa: S311 (nothing depends on nobody guessing them)
    found = []
    for _ in range(count):
        length = int(MEDIAN_WORDS * random.lognormvariate(0.0, SPREAD))
        found.append(" ".join(random.choices(_WORDS, k=min(max(1, length), MOST_WORDS))))
    return found


def sample_queries(count: int) -> list[str]:
    """Short texts, each another one."""
    random = Random(SEED + 1)  # noqa: S311
    return [" ".join(random.choices(_WORDS, k=QUERY_WORDS)) for _ in range(count)]


@cache
def sample_images(count: int) -> tuple[bytes, ...]:
    """JPEG files, each another one."""
    from PIL import Image

    random = Random(SEED)  # noqa: S311
    files = []
    for _ in range(count):
        small = Image.frombytes("RGB", (8, 6), random.randbytes(8 * 6 * 3))
        with BytesIO() as file:
            small.resize(IMAGE_PIXELS, Image.Resampling.BICUBIC).save(file, "JPEG")
            files.append(file.getvalue())
    return tuple(files)
