from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncembed.catalogue.limits import bounded, most_tokens, repo_limit, tokenizer_limit

ROBERTA = {"model_type": "roberta", "max_position_embeddings": 514}
BERT = {"model_type": "bert", "max_position_embeddings": 512}


@pytest.mark.parametrize(
    ("config", "most"),
    [
        (ROBERTA, 512),
        (ROBERTA | {"pad_token_id": 0}, 513),
        (ROBERTA | {"pad_token_id": None}, 512),
        ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 0}, 512),
        ({"model_type": "longformer", "max_position_embeddings": 4098}, 4096),
        ({"model_type": "gpt2", "n_positions": 1024}, 1024),
        ({"model_type": "deberta-v2", "max_position_embeddings": 512}, 512),
        ({"model_type": "deberta-v2", "max_position_embeddings": 512, "position_biased_input": False}, None),
        ({"model_type": "clip_text_model", "max_position_embeddings": 77}, 77),
        ({"model_type": "clip", "text_config": {"max_position_embeddings": 77}}, 77),
        ({"model_type": "any", "text_config": {"model_type": "bert", "max_position_embeddings": 40}}, 40),
        ({"model_type": "qwen3", "max_position_embeddings": 32768}, None),
        ({"model_type": "roberta", "max_position_embeddings": 2}, None),
        ({"model_type": "bert", "max_position_embeddings": -1}, None),
        ({"model_type": "bert", "max_position_embeddings": True}, None),
    ],
)
def test_positions_bound_an_input_less_those_that_stand_for_no_token(config: dict[str, Any], most: int | None) -> None:
    assert most_tokens(config) == most


@pytest.mark.parametrize(
    ("config", "tokenizer", "sentence", "limit"),
    [
        (ROBERTA, {"model_max_length": 514}, {"max_seq_length": 514}, 512),
        (ROBERTA, {"model_max_length": 600}, {}, 512),
        (ROBERTA, {"model_max_length": 128}, {}, None),
        (ROBERTA, {"model_max_length": 10**30}, {}, 512),
        (ROBERTA, {}, {}, 512),
        (BERT, {"model_max_length": 10**30, "max_length": 100}, {}, None),
        (BERT, {"model_max_length": 1e30}, {"max_seq_length": 0}, 512),
        ({"model_type": "qwen3", "max_position_embeddings": 32768}, {"model_max_length": 10**30}, {}, 32768),
        ({"model_type": "qwen3", "max_position_embeddings": 32768}, {}, {"max_seq_length": 40000}, 40000),
        ({}, {"model_max_length": 10**30}, {}, None),
        ({}, {}, {"max_seq_length": 514}, 514),
    ],
)
def test_a_repo_declares_its_limit_as_sentence_transformers_reads_it(
    config: dict[str, Any], tokenizer: dict[str, Any], sentence: dict[str, Any], limit: int | None
) -> None:
    assert repo_limit(config, tokenizer, sentence) == limit


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(
    ["model_type", "max_position_embeddings", "n_positions", "pad_token_id", "text_config", "position_biased_input",
     "position_embedding_type", "model_max_length", "max_length", "max_seq_length"]
)  # fmt: skip
CONFIGS = st.dictionaries(KEYS, ANY | st.sampled_from(["roberta", "bert", "deberta-v2", "clip"]) | st.integers(1, 600))


@pytest.mark.slow
@given(CONFIGS, CONFIGS, CONFIGS)
def test_whatever_the_files_say_no_limit_exceeds_the_positions(
    config: dict[str, Any], tokenizer: dict[str, Any], sentence: dict[str, Any]
) -> None:
    limit, most = repo_limit(config, tokenizer, sentence), most_tokens(config)
    assert limit is None or 0 < limit <= (most or limit)
    own = bounded(tokenizer_limit(tokenizer), config)
    assert own is None or 0 < own <= (most or own)
