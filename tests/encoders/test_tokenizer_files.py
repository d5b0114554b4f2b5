"""Where the files of a tokenizer disagree: what transformers makes of them; and files of any content."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncembed.encoders.tokenization import TextTokenizer
from asyncembed.errors import AsyncEmbedError
from tests.support.tokenizer_files import CASES, TEXTS, write_case
from tests.support.tokenizers import wordpiece, write_tokenizer

REFERENCE = json.loads((Path(__file__).parent / "data" / "tokenizers.json").read_text(encoding="utf-8"))["ids"]


def test_every_case_has_its_reference() -> None:
    assert list(REFERENCE) == list(CASES)
    assert all(REFERENCE.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_files_that_disagree_give_the_tokens_of_transformers(name: str, tmp_path: Path) -> None:
    ours = TextTokenizer(write_case(tmp_path, CASES[name]))
    assert [encoding.ids for encoding in ours.encode(TEXTS).values] == REFERENCE[name]


@pytest.mark.parametrize(
    ("config", "declares"),
    [
        ({}, True),
        ({"tokenizer_class": "BertTokenizerFast"}, True),
        ({"tokenizer_class": "DebertaV2Tokenizer"}, True),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, False),
        ({"tokenizer_class": "TokenizersBackend"}, False),
        ({"tokenizer_class": "TokenizersBackend", "model_input_names": ["input_ids", "token_type_ids"]}, True),
        ({"tokenizer_class": "BertTokenizer", "model_input_names": ["input_ids", "attention_mask"]}, False),
        ({"tokenizer_class": "BertTokenizer", "model_input_names": "all"}, True),
    ],
)
def test_token_types_are_told_where_the_files_or_the_class_say_so(
    config: dict[str, Any], declares: bool, tmp_path: Path
) -> None:
    """As in transformers 5."""
    write_tokenizer(tmp_path, wordpiece(), **config)
    assert TextTokenizer(tmp_path).files.declares_types is declares


NUMBERS = st.integers(-(10**40), 10**40) | st.integers(-3, 600) | st.floats()
ANY = st.recursive(
    st.none()
    | st.booleans()
    | NUMBERS
    | st.text(max_size=6)
    | st.sampled_from(["left", "[MASK]", "BertTokenizer", ""]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.just("content"), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = [
    "tokenizer_class", "model_max_length", "max_length", "padding_side", "truncation_side", "pad_token", "mask_token",
    "do_lower_case", "strip_accents", "tokenize_chinese_chars", "added_tokens_decoder", "pad_token_id", "model_type",
    "max_position_embeddings", "additional_special_tokens", "text_config",
]  # fmt: skip
OBJECTS = st.dictionaries(st.sampled_from(KEYS), ANY, max_size=8)


def assert_loads_or_says_why(directory: Path) -> None:
    try:
        tokenizer = TextTokenizer(directory)
        tokenizer.pad([encoding.ids for encoding in tokenizer.encode(TEXTS).values])
    except AsyncEmbedError:
        pass


@pytest.mark.slow
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=OBJECTS | ANY, special_tokens=OBJECTS | ANY, model=OBJECTS | ANY)
def test_configurations_of_any_content_load_or_fail_with_an_error_of_ours(
    config: Any, special_tokens: Any, model: Any, tmp_path: Path
) -> None:
    write_case(tmp_path, CASES["nothing said, wordpiece"])
    for name, content in (
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", special_tokens),
        ("config.json", model),
    ):
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    assert_loads_or_says_why(tmp_path)


def mutated(record: Any, data: st.DataObject) -> Any:
    """`record` with something else in the place of one of its parts, however deep."""
    if isinstance(record, dict) and record and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(record)))
        return {**record, key: mutated(record[key], data)}
    if isinstance(record, list) and record and data.draw(st.booleans()):
        position = data.draw(st.integers(0, len(record) - 1))
        return [*record[:position], mutated(record[position], data), *record[position + 1 :]]
    return data.draw(ANY)


@pytest.mark.slow
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["nothing said, cased", "PreTrainedTokenizerFast and markers on"]), data=st.data())
def test_a_tokenizer_of_any_content_loads_or_fails_with_an_error_of_ours(
    name: str, data: st.DataObject, tmp_path: Path
) -> None:
    write_case(tmp_path, CASES[name])
    file = tmp_path / "tokenizer.json"
    record = mutated(json.loads(file.read_text(encoding="utf-8")), data)
    file.write_text(json.dumps(record), encoding="utf-8")
    assert_loads_or_says_why(tmp_path)
