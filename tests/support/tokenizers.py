"""Small tokenizers of the kinds that real repos have."""

import json
import string
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

_WORDS = """
the a of and to in is it you that he was for on are with as his
they be at one have this from or had by hot but some what there we can out
other were all your when up use word how said an each she which do their time if
will way about many then them would write like so these her long make thing see him two
has look more day
"""
WORDS = tuple(_WORDS.split())


def wordpiece(*, max_words: int | None = None) -> Tokenizer:
    """Like BERT's: lower-cased words, single letters as pieces, [CLS] and [SEP] around the text."""
    pieces = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS[:max_words], *pieces]
    vocabulary += [f"##{letter}" for letter in string.ascii_lowercase + string.digits]
    ids = {token: id_ for id_, token in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return tokenizer


def byte_level_bpe() -> Tokenizer:
    """Like RoBERTa's: bytes, a leading space belongs to the word, <s> and </s> around the text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *alphabet]
    merges = []
    for word in WORDS[:40]:
        current = "Ġ"
        for letter in word:
            if (current, letter) not in merges:
                merges.append((current, letter))
            current += letter
            vocabulary.append(current)
    ids = {token: id_ for id_, token in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(models.BPE(ids, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return tokenizer


def unigram() -> Tokenizer:
    """Like XLM-RoBERTa's: SentencePiece pieces with "▁" for a space, <s> and </s> around the text."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    pieces += [(f"▁{word}", -2.0 - rank / 50) for rank, word in enumerate(WORDS)]
    pieces += [(letter, -6.0) for letter in string.ascii_letters + string.digits + string.punctuation]
    pieces += [("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return tokenizer


def write_tokenizer(
    directory: Path,
    tokenizer: Tokenizer,
    *,
    limit: int | float | None = 64,
    pad_token: str = "[PAD]",
    special_tokens: dict[str, Any] | None = None,
    **config: Any,
) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` as transformers does."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    if limit is not None:
        config["model_max_length"] = limit
    config["pad_token"] = pad_token
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (directory / "special_tokens_map.json").write_text(
        json.dumps(special_tokens or {"pad_token": pad_token}), encoding="utf-8"
    )
