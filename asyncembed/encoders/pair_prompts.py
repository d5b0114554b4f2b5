"""What a language model reads of a pair that it is to judge: an instruction, the query and the document among words.

The words are those that the authors of a model trained it with; the model's next token is its answer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import takewhile
from typing import Protocol

from asyncembed.encoders.tokenization import TextTokenizer
from asyncembed.errors import OptionError

Pair = tuple[str, str]


class Slot(Enum):
    """A place among the words."""

    INSTRUCTION = "instruction"
    QUERY = "query"
    DOCUMENT = "document"


@dataclass(frozen=True, slots=True)
class Frame:
    """The words, and the places between them.

    Attributes:
        parts: Words and places, in their order.
        strips: Whether white space around what is put into a place is dropped.
    """

    parts: tuple[str | Slot, ...]
    strips: bool = False

    def filled(self, pair: Pair, instruction: str) -> str:
        """The whole text."""
        texts = dict(zip(Slot, (instruction, *pair), strict=True))
        if self.strips:
            texts = {slot: text.strip() for slot, text in texts.items()}
        return "".join(texts[part] if isinstance(part, Slot) else part for part in self.parts)


@dataclass(frozen=True, slots=True)
class PairTokens:
    """The ids that a model reads of a pair, and whether something of it is missing as it was over the limit."""

    ids: list[int]
    is_cut: bool

    def __len__(self) -> int:
        return len(self.ids)


class PairPrompt(Protocol):
    """The words of one kind of model, for its tokenizer."""

    @property
    def tokens(self) -> int:
        """How many tokens the words have without a pair and an instruction."""

    def encode(self, pairs: Sequence[Pair], instruction: str | None) -> list[PairTokens]:
        """What is read of each pair, cut at the limit: its document first."""

    def count(self, pairs: Sequence[Pair], instruction: str | None) -> list[int]:
        """Tokens of each pair, uncut."""


class WholePrompt:
    """A pair within one text. Where this is cut, the words at its end take the place of the last tokens."""

    def __init__(self, tokenizer: TextTokenizer, instructed: Frame, plain: Frame | None = None) -> None:
        """`plain` has no place for an instruction; without it, a call that brings none means the default."""
        self._tokenizer = tokenizer
        self._instructed = instructed
        self._plain = plain
        self.tokens: int = len(tokenizer.ids_within(self._text(("", ""), None)))
        _check_room(tokenizer, self.tokens)

    def encode(self, pairs: Sequence[Pair], instruction: str | None) -> list[PairTokens]:
        done = self._tokenizer.encode([self._text(pair, instruction) for pair in pairs])
        values = [PairTokens(encoding.ids, bool(encoding.overflowing)) for encoding in done.values]
        if any(value.is_cut for value in values):
            end = self._end(instruction)
            for value in values:
                if value.is_cut:
                    value.ids[len(value.ids) - len(end) :] = end
        return values

    def count(self, pairs: Sequence[Pair], instruction: str | None) -> list[int]:
        return self._tokenizer.whole_lengths([self._text(pair, instruction) for pair in pairs])

    def _text(self, pair: Pair, instruction: str | None) -> str:
        frame = self._instructed if instruction is not None or self._plain is None else self._plain
        return frame.filled(pair, DEFAULT_INSTRUCTION if instruction is None else instruction)

    def _end(self, instruction: str | None) -> list[int]:
        """The tokens at the end that are the same whatever the pair."""
        one, other = (
            self._tokenizer.ids_within(self._text((text, text), instruction))[::-1] for text in ("0", "1 2 3 4")
        )
        same = takewhile(lambda both: both[0] == both[1], zip(one, other, strict=False))
        return [token for token, _ in same][::-1]


class PiecewisePrompt:
    """The query and the document in pieces that are tokenized, and cut, each by itself: mxbai-rerank-v2.

    A query may take three quarters of what the words leave; the document gets the rest.
    Source: https://github.com/mixedbread-ai/mxbai-rerank
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._before = tokenizer.ids_within(
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n"
        )
        self._between = tokenizer.ids_within("\n")
        task = (
            "You are a search relevance expert who evaluates how well documents match search queries. For each "
            "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
            "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:"
        )
        end = "<|im_end|>\n<|im_start|>assistant\n"
        self._after = [*self._between, *tokenizer.ids_within(task), *tokenizer.ids_within(end)]
        around = len(self._before) + len(self._after)
        self._words = around + len(self._between)
        self.tokens: int = self._words + sum(map(len, map(tokenizer.ids_within, ("query: ", "document: "))))
        _check_room(tokenizer, self.tokens)
        self._room = tokenizer.limit - self._words
        self._of_queries = tokenizer.limited((tokenizer.limit - around) * 3 // 4)
        self._of_documents = tokenizer.limited(self._room)

    def encode(self, pairs: Sequence[Pair], instruction: str | None) -> list[PairTokens]:
        queries = self._of_queries.encode([_query(query, instruction) for query, _ in pairs]).values
        documents = self._of_documents.encode([_document(document) for _, document in pairs]).values
        values = []
        for query, document in zip(queries, documents, strict=True):
            kept = document.ids[: self._room - len(query)]
            is_cut = bool(query.overflowing or document.overflowing) or len(kept) < len(document)
            values.append(PairTokens([*self._before, *query.ids, *self._between, *kept, *self._after], is_cut))
        return values

    def count(self, pairs: Sequence[Pair], instruction: str | None) -> list[int]:
        queries = self._tokenizer.whole_lengths([_query(query, instruction) for query, _ in pairs])
        documents = self._tokenizer.whole_lengths([_document(document) for _, document in pairs])
        return [self._words + query + document for query, document in zip(queries, documents, strict=True)]


def _query(query: str, instruction: str | None) -> str:
    return f"query: {query}" if not instruction else f"instruction: {instruction}\nquery: {query}"


def _document(document: str) -> str:
    return f"document: {document}"


def _check_room(tokenizer: TextTokenizer, words: int) -> None:
    if tokenizer.limit <= words:
        raise OptionError(
            f"max_length={tokenizer.limit} leaves no room for a pair: the words around it take {words} tokens"
        )


DEFAULT_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
"""Qwen3-Reranker's, for calls that bring none."""

_QWEN3 = Frame(
    (
        (
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
            'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: '
        ),
        Slot.INSTRUCTION,
        "\n<Query>: ",
        Slot.QUERY,
        "\n<Document>: ",
        Slot.DOCUMENT,
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    )
)
"""Source: the model card of https://huggingface.co/Qwen/Qwen3-Reranker-0.6B"""


PROMPTS: Mapping[str, Callable[[TextTokenizer], PairPrompt]] = {
    "qwen3-reranker": lambda tokenizer: WholePrompt(tokenizer, _QWEN3),
    "mxbai-rerank-v2": PiecewisePrompt,
}
"""By what a spec calls them."""
