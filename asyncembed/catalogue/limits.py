"""How long an input may be, in tokens: one answer for every family, wherever a number comes from.

A repo says it in up to four places (`sentence_bert_config.json`, `config.json`, twice in `tokenizer_config.json`), a
spec or a caller in a fifth. None of these may exceed the positions that the model has a vector for: an input with one
token more fails, and its stream with it. RoBERTa's repos are known for that: they declare 514, of which two are none.
"""

from collections.abc import Mapping
from typing import Any

from asyncembed.errors import OptionError

# Types of models that have a table with a vector for each position, from the first on.
_FROM_THE_FIRST = frozenset(
    {
        "albert", "align_text_model", "bert", "bert-generation", "big_bird", "chinese_clip_text_model",
        "clip_text_model", "convbert", "distilbert", "electra", "ernie", "fnet", "gpt2", "layoutlm", "megatron-bert",
        "mobilebert", "openai-gpt", "rembert", "roc_bert", "roformer", "siglip2_text_model", "siglip_text_model",
        "splinter", "squeezebert", "xlm",
    }
)  # fmt: skip
# Those that count positions from the one after the padding token's id.
_AFTER_PADDING = frozenset(
    {
        "camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta",
        "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
    }
)  # fmt: skip
# Those that have a table from the first on unless `position_biased_input` is false.
_BIASED_INPUT = frozenset({"deberta", "deberta-v2"})

# A larger number stands for no limit: transformers writes 1e30.
_LARGEST_LIMIT = 2**63 - 1


def most_tokens(config: Mapping[str, Any]) -> int | None:
    """The longest input that a model can compute, by its `config.json`; None where that does not tell."""
    text = config.get("text_config")
    if isinstance(text, dict):
        # The text tower of a model of several: its type is left out where it follows from the whole model's.
        config = {"model_type": f"{config.get('model_type')}_text_model", **text}
    kind = str(config.get("model_type"))
    positions = declared_positions(config)
    spare = _spare_positions(kind, config)
    if spare is None or positions is None or config.get("position_embedding_type", "absolute") != "absolute":
        return None
    return positions - spare if positions > spare else None


def declared_positions(config: Mapping[str, Any]) -> int | None:
    """What `config.json` says of positions, be they a table's or only those of the training."""
    return next(
        (config[key] for key in ("max_position_embeddings", "n_positions") if _is_limit(config.get(key))),
        None,
    )


def tokenizer_limit(tokenizer_config: Mapping[str, Any]) -> int | None:
    """The smaller of the limits in `tokenizer_config.json`; None where neither is one."""
    limits = [tokenizer_config.get("model_max_length"), tokenizer_config.get("max_length")]
    return min((limit for limit in limits if isinstance(limit, int) and _is_limit(limit)), default=None)


def repo_limit(
    config: Mapping[str, Any], tokenizer_config: Mapping[str, Any], sentence_config: Mapping[str, Any]
) -> int | None:
    """The limit that a repo declares beside its tokenizer; None leaves it to `tokenizer_config.json`.

    As sentence-transformers has it: `max_seq_length` of `sentence_bert_config.json`, else the smaller of the
    tokenizer's limit, where it has one, and `max_position_embeddings`.
    """
    declared = sentence_config.get("max_seq_length")
    if not _is_limit(declared):
        positions, tokens = declared_positions(config), tokenizer_limit(tokenizer_config)
        declared = positions if positions is not None and (tokens is None or positions < tokens) else None
    return bounded(declared, config)


def bounded(limit: int | None, config: Mapping[str, Any], *, extra: int = 0) -> int | None:
    """`limit`, but no more than the model of this `config.json` has positions for, `extra` of which are taken."""
    most = most_tokens(config)
    return limit if most is None or limit is None else min(limit, most - extra)


def check_max_length(max_length: int, config: Mapping[str, Any]) -> None:
    """Raise `OptionError` if a caller asks for more than the model of this `config.json` has positions for."""
    most = most_tokens(config)
    if most is not None and max_length > most:
        raise OptionError(f"max_length={max_length} is more than the {most} tokens that the model has positions for")


def _spare_positions(kind: str, config: Mapping[str, Any]) -> int | None:
    """How many vectors of the table stand for no token; None: there is no table that bounds an input."""
    if kind in _FROM_THE_FIRST or (kind in _BIASED_INPUT and config.get("position_biased_input", True) is True):
        return 0
    if kind not in _AFTER_PADDING:
        return None
    padding = config.get("pad_token_id")
    # MPNet's is fixed.
    return 1 + (padding if type(padding) is int and 0 <= padding < _LARGEST_LIMIT and kind != "mpnet" else 1)


def _is_limit(value: object) -> bool:
    return type(value) is int and 0 < value <= _LARGEST_LIMIT
