"""What the tokenizer files of a repo say together.

The rules are those of the newest transformers. `tokenizer.json` has the last word on almost everything: the vocabulary,
the added tokens, the markers that are put around a text (`add_bos_token` and `add_eos_token` of `tokenizer_config.json`
count for nothing beside it). But a tokenizer of BERT's kind is built anew by its class, from the vocabulary and the
flags in `tokenizer_config.json`, whatever normalizer and pre-tokenizer `tokenizer.json` has.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from asyncembed.catalogue.limits import bounded, tokenizer_limit
from asyncembed.errors import ModelLoadError, UnsupportedModelError
from asyncembed.repo_files import read_object

MAX_GROWTH = 64
"""How many times as long as its text a normalized one may be: Unicode's own forms stay below 20."""

_LONGEST_REPLACEMENTS = 10_000  # characters of all rules together
_LARGEST_MULTIPLE = 4096

MAX_TOKENIZER_BYTES = 256 * 2**20
"""Several times the largest vocabulary in use."""

# By the names in `tokenizer_config.json`, without "Fast" at their end.
_BERT_CLASSES = frozenset(
    {
        "BertTokenizer", "ConvBertTokenizer", "DistilBertTokenizer", "DPRContextEncoderTokenizer",
        "DPRQuestionEncoderTokenizer", "ElectraTokenizer", "LayoutLMTokenizer", "LxmertTokenizer",
        "MobileBertTokenizer", "MPNetTokenizer", "RetriBertTokenizer", "SqueezeBertTokenizer",
    }
)  # fmt: skip
# By the type of the model, where no class is named.
_BERT_MODELS = frozenset(
    {
        "align", "bert", "bros", "chinese_clip", "convbert", "distilbert", "electra", "ernie", "layoutlm", "lxmert",
        "megatron-bert", "mobilebert", "mpnet", "nezha", "nomic_bert", "qdqbert", "retribert", "squeezebert",
        "visual_bert",
    }
)  # fmt: skip

# Those with which a model is told which text of a pair a token belongs to, where the files do not say what it is told.
_CLASSES_WITH_TYPES = frozenset(
    {
        "BertTokenizer", "CanineTokenizer", "ConvBertTokenizer", "DPRContextEncoderTokenizer",
        "DPRQuestionEncoderTokenizer", "DebertaTokenizer", "DebertaV2Tokenizer", "ElectraTokenizer", "FNetTokenizer",
        "LayoutLMTokenizer", "LayoutLMv2Tokenizer", "LxmertTokenizer", "MarkupLMTokenizer", "MobileBertTokenizer",
        "SqueezeBertTokenizer", "TapasTokenizer",
    }
)  # fmt: skip

# What the classes of BERT's kind name where `tokenizer_config.json` does not; MPNet's come with its vocabulary.
_BERT_TOKENS = {
    "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"
}  # fmt: skip
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What the tokenizer files of a repo say.

    Attributes:
        tokenizer: The library's, with all parts that it is to have.
        normalizers, pre_tokenizers: Its parts as records of `tokenizer.json`, sequences of them taken apart.
        declares_types: Whether a model that takes token types is told them, rather than zeros.
    """

    tokenizer: Tokenizer
    normalizers: list[dict[str, Any]]
    pre_tokenizers: list[dict[str, Any]]
    declared_limit: int | None
    truncation_side: str
    pad_id: int | None
    pad_type_id: int
    pads_left: bool
    pad_to_multiple_of: int | None
    special_ids: dict[str, int]
    declares_types: bool
    ids_by_role: dict[str, int]
    model_config: Mapping[str, Any]
    directory: Path

    def limit(self, wanted: int | None, *, reserve: int = 0, extra: int = 0) -> int:
        """Most tokens of an input: `wanted`, or what the files say, but no more than the model has positions for.

        The former is lowered by `reserve`; of the latter, `extra` are taken by tokens that the encoder puts in.

        Raises:
            UnsupportedModelError: Nobody says.
        """
        limit = self.declared_limit if wanted is None else wanted
        if limit is None:
            raise UnsupportedModelError(
                f"tokenizer_config.json in {self.directory} has no usable model_max_length: say max_length=<tokens>",
                model=str(self.directory),
            )
        return bounded(limit - reserve, self.model_config, extra=extra) or 0

    @property
    def required_pad_id(self) -> int:
        """The id of the pad token.

        Raises:
            UnsupportedModelError: There is none.
        """
        if self.pad_id is None:
            raise UnsupportedModelError(
                f"no pad token in {self.directory}: tokenizer_config.json should name one (pad_token)",
                model=str(self.directory),
            )
        return self.pad_id

    @property
    def continuation(self) -> str | None:
        """What marks a piece that continues a word; None: nothing, or it is not said."""
        return getattr(self.tokenizer.model, "continuing_subword_prefix", None)

    @property
    def unknown_id(self) -> int | None:
        """The id of the unknown token; None where the vocabulary has none."""
        if hasattr(self.tokenizer.model, "unk_token"):
            token = self.tokenizer.model.unk_token
            return None if token is None else self.tokenizer.token_to_id(token)
        model = read_object(self.directory / "tokenizer.json", max_bytes=MAX_TOKENIZER_BYTES)["model"]
        unknown: object = model.get("unk_id")
        return unknown if isinstance(unknown, int) else None

    @classmethod
    def read(cls, directory: Path, *, lower_case: bool = False) -> "TokenizerFiles":
        """Read the files in `directory`; `lower_case` lowers the letters of each text first.

        Raises:
            UnsupportedModelError: There is no `tokenizer.json`.
            ModelLoadError: A file is broken.
        """
        tokenizer = _read_tokenizer(directory / "tokenizer.json")
        config = read_object(directory / "tokenizer_config.json")
        model_config = read_object(directory / "config.json")
        truncation = tokenizer.truncation or {}
        padding = tokenizer.padding or {}
        named = {name: config.get(name) for name in _NAMED_TOKENS}
        if isinstance(tokenizer.model, models.WordPiece) and _is_of_berts_kind(config, model_config):
            _rebuild(tokenizer, config)
            named = _BERT_TOKENS | {name: token for name, token in named.items() if token is not None}
        tokens = [] if "added_tokens_decoder" in config else read_object(directory / "special_tokens_map.json").values()
        _register_special_tokens(tokenizer, list(named.values()), list(tokens))
        pad_token = padding.get("pad_token") or _content(config.get("pad_token"))
        pad_id = padding.get("pad_id", model_config.get("pad_token_id"))
        if pad_id is None and pad_token is not None:
            pad_id = tokenizer.token_to_id(pad_token)
        multiple: Any = padding.get("pad_to_multiple_of")
        if lower_case:
            present = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
            tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *present])
        found_normalizers, found_pre_tokenizers = _parts(tokenizer)
        _check_growth(found_normalizers, directory)
        return cls(
            tokenizer=tokenizer,
            normalizers=found_normalizers,
            pre_tokenizers=found_pre_tokenizers,
            declared_limit=tokenizer_limit(config),
            truncation_side=_side(config.get("truncation_side")) or truncation.get("direction", "right"),
            pad_id=pad_id if _is_id(pad_id) else None,
            pad_type_id=padding.get("pad_type_id", 0),
            pads_left=(_side(config.get("padding_side")) or padding.get("direction", "right")) == "left",
            pad_to_multiple_of=multiple if _is_id(multiple) and 0 < multiple <= _LARGEST_MULTIPLE else None,
            special_ids={
                token.content: id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special
            },
            ids_by_role=_ids_by_role(tokenizer, named, read_object(directory / "special_tokens_map.json")),
            declares_types=_declares_types(config),
            model_config=model_config,
            directory=directory,
        )


def _ids_by_role(tokenizer: Tokenizer, named: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, int]:
    roles = {**others, **{role: token for role, token in named.items() if token is not None}}
    tokens = {role: _content(roles[role]) for role in _NAMED_TOKENS if role in roles}
    ids = {role: tokenizer.token_to_id(token) for role, token in tokens.items() if token is not None}
    return {role: id_ for role, id_ in ids.items() if id_ is not None}


def _read_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise UnsupportedModelError(
            f"{path.parent} has no tokenizer.json: save the model's fast tokenizer there "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(...) writes it)",
            model=str(path.parent),
        )
    try:
        if (size := path.stat().st_size) > MAX_TOKENIZER_BYTES:
            raise ModelLoadError(f"{path} of {size:,} bytes is larger than any tokenizer", model=str(path.parent))
        return Tokenizer.from_file(str(path))
    except ModelLoadError:
        raise
    # The library panics, too, where it should raise: that is no `Exception`.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ModelLoadError(f"cannot read {path}: {error}", model=str(path.parent)) from error


def _parts(tokenizer: Tokenizer) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The normalizers and the pre-tokenizers of `tokenizer`, as `tokenizer.json` describes them."""
    # Written with them alone, since a vocabulary may have many megabytes.
    shell = Tokenizer(models.BPE())
    for name in ("normalizer", "pre_tokenizer"):
        if (part := getattr(tokenizer, name)) is not None:
            setattr(shell, name, part)
    record = json.loads(shell.to_str())
    return (
        list(_flattened(record["normalizer"], "normalizers")),
        list(_flattened(record["pre_tokenizer"], "pretokenizers")),
    )


def _flattened(part: dict[str, Any] | None, members: str) -> Iterator[dict[str, Any]]:
    if part is None:
        return
    if part["type"] != "Sequence":
        yield part
        return
    for member in part[members]:
        yield from _flattened(member, members)


def _check_growth(rules: list[dict[str, Any]], directory: Path) -> None:
    """Raise `UnsupportedModelError` if normalizing can make a text many times as long, as rules that double a letter.

    What the rules put in is tried out, as it is what later rules find, one rule after the other.
    """
    replacements = [
        part
        for part in rules
        if part["type"] in ("Replace", "Prepend") and isinstance(part.get("content", part.get("prepend")), str)
    ]
    found = [str(part.get("content", part.get("prepend"))) for part in replacements]
    found += [part["pattern"].get("String", "") for part in replacements if part["type"] == "Replace"]
    probe = "".join(found)
    limit = max(len(probe), 1) * MAX_GROWTH
    for part in replacements:
        if len(probe) > limit:
            break
        probe = _single_rule(part).normalize_str(probe)
    if len(probe) > limit or sum(map(len, found)) > _LONGEST_REPLACEMENTS:
        raise UnsupportedModelError(
            f"the normalizer in {directory / 'tokenizer.json'} makes a text more than {MAX_GROWTH} times as long",
            model=str(directory),
        )


def _single_rule(part: Mapping[str, Any]) -> Any:
    record = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    return Tokenizer.from_str(json.dumps(record | {"normalizer": part})).normalizer


def _is_of_berts_kind(config: Mapping[str, Any], model_config: Mapping[str, Any]) -> bool:
    name = config.get("tokenizer_class") or model_config.get("tokenizer_class")
    if isinstance(name, str):
        return name.removesuffix("Fast") in _BERT_CLASSES
    return str(model_config.get("model_type")) in _BERT_MODELS


def _declares_types(config: Mapping[str, Any]) -> bool:
    names, name = config.get("model_input_names"), config.get("tokenizer_class")
    if isinstance(names, list):
        return "token_type_ids" in names
    # Without a class, it is that of the model, and then all have them that take them.
    return not isinstance(name, str) or name.removesuffix("Fast") in _CLASSES_WITH_TYPES


def _rebuild(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    """Put in the parts that the classes of BERT's kind make by themselves."""
    strips = config.get("strip_accents")
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=_flag(config.get("tokenize_chinese_chars")),
        strip_accents=strips if isinstance(strips, bool) else None,
        lowercase=_flag(config.get("do_lower_case")),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()


def _register_special_tokens(tokenizer: Tokenizer, named: list[Any], tokens: list[Any]) -> None:
    """Have the tokens that the files name be found in a text as they are, and as special ones.

    Of those that are `named` for a purpose, what is not in the vocabulary would get an id that no model has a vector
    for. `tokens`, of `special_tokens_map.json`, are those of repos that are older than `added_tokens_decoder`.
    """
    wanted = [token for token in _tokens(named) if tokenizer.token_to_id(token.content) is not None]
    wanted += _tokens(tokens)
    present = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    for token in wanted:
        if token.content not in present:
            tokenizer.add_special_tokens([token])


def _tokens(values: list[Any]) -> Iterator[AddedToken]:
    """The tokens among strings, objects, lists of either, and what is neither."""
    for value in values:
        for token in value if isinstance(value, list) else [value]:
            content = _content(token)
            if content:
                flags = {
                    name: token[name] is True for name in _TOKEN_FLAGS if isinstance(token, dict) and name in token
                }
                yield AddedToken(content, special=True, **flags)


def _content(token: object) -> str | None:
    """The text of a token that a config file gives as a string or as an object."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _flag(value: object, *, default: bool = True) -> bool:
    return value if isinstance(value, bool) else default


def _side(value: object) -> str | None:
    return value if value in ("left", "right") and isinstance(value, str) else None


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31
