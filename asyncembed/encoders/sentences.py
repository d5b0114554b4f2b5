"""Where the sentences of a text are: by Unicode's rules (UAX 29), for any language; and a line's end ends one.

They are semantic-text-splitter's: one wheel without dependencies, with the segmenter of ICU4X inside, which counts in
characters. (chonkie looks for full stops before spaces, and brings a dozen packages along.)
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from asyncembed.errors import RuntimeMissingError

BLOCK_CHARACTERS = 2048
"""What the splitter is given at once: its time grows with the square of that. No sentence is longer."""

_LINES = re.compile("[^\\r\\n]+")


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Beginning and end of each sentence, white space around it left out; all other characters are in one."""
    for line in _LINES.finditer(text):
        yield from _of_line(text, *line.span())


def _of_line(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    splitter = _splitter()
    while start < end:
        block = text[start : min(end, start + BLOCK_CHARACTERS)]
        found = [(start + begin, start + begin + len(part)) for begin, part in splitter.chunk_indices(block)]
        if start + len(block) == end or not found:
            start += len(block)
        elif len(found) > 1:
            start = found.pop()[0]  # it may go on
        else:
            # One that is too long ends with a word.
            start += block.rfind(" ") + 1 or len(block)
            found = [(begin, start) for begin, _ in found if begin < start]
        yield from found


def check_sentences() -> None:
    """See that there is a splitter.

    Raises:
        RuntimeMissingError: There is none.
    """
    _splitter()


@cache
def _splitter() -> Any:
    try:
        from semantic_text_splitter import TextSplitter
    except ImportError as error:
        raise RuntimeMissingError(
            'boundaries="sentences" needs the package semantic-text-splitter: pip install "asyncembed[sentences]"'
        ) from error
    # From 1 on a part is long enough: so each is the smallest whole thing that there is, which is a sentence.
    return TextSplitter((1, BLOCK_CHARACTERS))
