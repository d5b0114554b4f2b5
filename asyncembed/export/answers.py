"""The ids of the tokens that a language model answers with, by its tokenizer's file."""

from pathlib import Path

from asyncembed.errors import UnsupportedModelError
from asyncembed.export.construction import Answer
from asyncembed.repo_files import quoted, read_object

_MAX_TOKENIZER_BYTES = 256 * 2**20


def read_answer(directory: Path, yes: int | str, no: int | str | None) -> Answer:
    """What is asked of the model in `directory`, whose answers are tokens or their ids. Blocks.

    Raises:
        UnsupportedModelError: Its vocabulary has no such token.
        ModelLoadError: Its `tokenizer.json` is broken.
    """
    vocabulary = _vocabulary(directory) if isinstance(yes, str) or isinstance(no, str) else {}

    def id_of(token: int | str) -> int:
        found = token if isinstance(token, int) else vocabulary.get(token)
        if type(found) is not int:
            raise UnsupportedModelError(
                f"{directory} has no token {quoted(token)}, by which its score is told: it is no reranker",
                model=str(directory),
            )
        return found

    return Answer(id_of(yes), None if no is None else id_of(no))


def _vocabulary(directory: Path) -> dict[str, object]:
    """Ids by token, as far as the file has a vocabulary that is one."""
    file = read_object(directory / "tokenizer.json", max_bytes=_MAX_TOKENIZER_BYTES)
    model, added = file.get("model"), file.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids: dict[str, object] = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict) and isinstance(token.get("content"), str):
            ids[token["content"]] = token.get("id")
    return ids
