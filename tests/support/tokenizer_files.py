"""Directories whose tokenizer files disagree, for tests and for the script that asks transformers about them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers

from tests.support.tokenizers import byte_level_bpe, unigram, wordpiece

TEXTS = (
    "The WAY of it",
    "the w\u00e4y of \u00c9t\u00e9",
    "they had\u65e5\u672clong days",
    "[MASK] of the [SEP] way <mask> </s>",
    "None of True and null",
    "",
)


@dataclass(frozen=True)
class Case:
    """A directory: a tokenizer, what `tokenizer_config.json` says, and what is in the other files."""

    tokenizer: Callable[[], Tokenizer]
    config: dict[str, Any]
    special_tokens: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)


def cased() -> Tokenizer:
    """`wordpiece`, but with letters as they are, their accents too, and Chinese not taken apart."""
    tokenizer = wordpiece()
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False, handle_chinese_chars=False)
    return tokenizer


def with_parts_of_others() -> Tokenizer:
    """`wordpiece` with a normalizer and a pre-tokenizer that BERT's have nothing of."""
    tokenizer = wordpiece()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("way", "day")])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def without_added_tokens() -> Tokenizer:
    """`wordpiece`, whose special tokens are words of the vocabulary like any other."""
    record = json.loads(wordpiece().to_str())
    record["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(record))


_BERT = {"tokenizer_class": "BertTokenizer"}
_FLAGS: dict[str, dict[str, Any]] = {
    "nothing said": {},
    "cased": {"do_lower_case": False},
    "uncased": {"do_lower_case": True},
    "accents kept": {"do_lower_case": True, "strip_accents": False},
    "accents stripped": {"do_lower_case": False, "strip_accents": True},
    "accents by case": {"do_lower_case": False, "strip_accents": None},
    "chinese together": {"tokenize_chinese_chars": False},
    "chinese apart": {"tokenize_chinese_chars": True, "do_lower_case": False},
}
_MARKERS: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

CASES: dict[str, Case] = {
    **{
        f"{name}, {maker.__name__}": Case(maker, _BERT | flags)
        for name, flags in _FLAGS.items()
        for maker in (wordpiece, cased)
    },
    "a fast class": Case(cased, {"tokenizer_class": "BertTokenizerFast", "do_lower_case": True}),
    "another class of BERT's kind": Case(cased, {"tokenizer_class": "DistilBertTokenizer", "do_lower_case": True}),
    "electra": Case(cased, {"tokenizer_class": "ElectraTokenizerFast"}),
    "the class by the model": Case(cased, {"do_lower_case": True}, model={"model_type": "bert"}),
    "a class of no kind": Case(cased, {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}),
    "the newest class of no kind": Case(cased, {"tokenizer_class": "TokenizersBackend", "strip_accents": True}),
    "parts of others": Case(with_parts_of_others, _BERT),
    "parts of others, no kind": Case(with_parts_of_others, {"tokenizer_class": "PreTrainedTokenizerFast"}),
    "named tokens that are not added": Case(
        without_added_tokens,
        {"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": "[MASK]", "sep_token": "[SEP]"},
    ),
    "named tokens of BERT that are not added": Case(without_added_tokens, _BERT | {"mask_token": "[MASK]"}),
    "null among the special tokens": Case(
        wordpiece, _BERT | {"pad_token": "[PAD]"}, {"bos_token": None, "mask_token": "[MASK]", "pad_token": "[PAD]"}
    ),
    "special tokens of an older file": Case(
        wordpiece, _BERT | {"added_tokens_decoder": {}}, {"additional_special_tokens": ["way", "day"]}
    ),
    "special tokens of the only file": Case(wordpiece, _BERT, {"additional_special_tokens": ["way"]}),
    **{
        f"{name} and markers {'on' if on else 'off'}": Case(
            maker, {"tokenizer_class": name, "add_bos_token": on, "add_eos_token": on, **_MARKERS}
        )
        for on in (True, False)
        for name, maker in (
            ("PreTrainedTokenizerFast", byte_level_bpe),
            ("TokenizersBackend", unigram),
            ("LlamaTokenizer", byte_level_bpe),
        )
    },
}


def write_case(directory: Path, case: Case) -> Path:
    """Write the files of a case."""
    directory.mkdir(parents=True, exist_ok=True)
    case.tokenizer().save(str(directory / "tokenizer.json"))
    pad = "[PAD]" if case.tokenizer().token_to_id("[PAD]") is not None else "<pad>"
    config = {"model_max_length": 64, "pad_token": pad} | case.config
    for name, content in (
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", case.special_tokens),
        ("config.json", case.model),
    ):
        if content:
            (directory / name).write_text(json.dumps(content), encoding="utf-8")
    return directory
