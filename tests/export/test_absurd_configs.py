"""A config.json may say anything: what cannot be computed as it says is refused, before memory is taken."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from asyncembed.errors import AsyncEmbedError, UnsupportedModelError
from asyncembed.export.architectures import read_plan
from asyncembed.runtime.safetensors import find_weights, read_tensors
from tests.export.conftest import DATA, Variant

pytestmark = pytest.mark.slow

HUGE = 10**400
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 2.0,
    "original_max_position_embeddings": 32,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}

# By model: what its config.json says.
ABSURD: tuple[tuple[str, dict[str, Any]], ...] = (
    # More than there can be, of what something is allocated by before a tensor shows it.
    ("qwen3", {"num_hidden_layers": 2**31 - 2, "layer_types": None}),
    ("qwen3", {"head_dim": 2**31 - 2}),
    ("gemma3", {"num_hidden_layers": 10**9, "layer_types": None}),
    ("eurobert", {"num_hidden_layers": 2**31 - 2, "layer_types": None}),
    ("nomic_bert", {"n_embd": 2**31 - 2, "n_head": 1}),
    ("gte", {"hidden_size": 2**31 - 2, "num_attention_heads": 1}),
    ("distilbert", {"n_layers": 10**9}),
    # What is true, and no number.
    ("distilbert", {"n_layers": True}),
    ("modernbert_old_keys", {"num_attention_heads": True}),
    ("qwen3", {"rms_norm_eps": True}),
    # Positions.
    *(
        (model, {"rope_scaling": scaling, "rope_parameters": None})
        for model in ("qwen3", "modernbert_old_keys", "gte")
        for scaling in (
            "linear",
            ["linear"],
            {"rope_type": "default", "rope_theta": HUGE},
            {"rope_type": "default", "rope_theta": float("inf")},
            {"rope_type": "default", "rope_theta": True},
            {"rope_type": "default", "rope_theta": 1},
            {"rope_type": "default", "rope_theta": 1e-320},
            {"rope_type": "linear", "factor": 1e-320},
            {"rope_type": "linear", "factor": HUGE},
            {"rope_type": "ntk", "factor": float("inf")},
            {**YARN, "factor": float("inf")},
            {**YARN, "beta_fast": HUGE},
            {**YARN, "original_max_position_embeddings": float("inf")},
            {**LLAMA3, "low_freq_factor": 4.0},
            {**LLAMA3, "high_freq_factor": float("inf")},
        )
    ),
    ("qwen3", {"rope_scaling": {**YARN, "original_max_position_embeddings": None}, "max_position_embeddings": None}),
    ("qwen3", {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": None}, "max_position_embeddings": "x"}),
    ("gemma3", {"rope_parameters": {"full_attention": {"rope_type": "default"}, "sliding_attention": 5}}),
    ("nomic_bert", {"rotary_emb_base": HUGE}),
    # What layers there are.
    ("qwen3_sliding", {"layer_types": "full_attention"}),
    ("qwen3_sliding", {"layer_types": None, "use_sliding_window": True, "max_window_layers": "x"}),
    ("gemma3", {"layer_types": None, "_sliding_window_pattern": [6]}),
    ("deberta_convolution", {"conv_groups": 0}),
    ("deberta_convolution", {"conv_groups": 3}),
    ("mistral", {"sliding_window": 0}),
    # What would be computed otherwise than it says.
    ("gemma3", {"attn_logit_softcapping": 50.0}),
    ("eurobert_scores_mean", {"classifier_pooling": "max"}),
    ("eurobert_scores_mean", {"classifier_pooling": ["mean"]}),
    ("qwen3_scores", {"pad_token_id": "x"}),
    ("qwen3_scores", {"pad_token_id": [3]}),
    ("qwen3_scores", {"pad_token_id": 1.5}),
    ("qwen3_scores", {"pad_token_id": HUGE}),
)


@pytest.mark.parametrize(("model", "said"), ABSURD, ids=lambda value: str(value)[:60])
def test_a_config_that_cannot_be_computed_is_refused(model: str, said: dict[str, Any], variant: Variant) -> None:
    directory = variant(model, **said)
    with warnings.catch_warnings(), pytest.raises(AsyncEmbedError):
        warnings.simplefilter("error")
        plan = read_plan(directory, "scores" if "scores" in model else "states")
        with read_tensors(*find_weights(directory)) as tensors:
            plan.build(tensors)


def test_a_number_that_is_null_is_none(tmp_path: Path) -> None:
    """What divides the scores of Gemma's attention has a default where it is not named, not where it is null."""
    config = json.loads((DATA / "gemma3" / "config.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**config, "query_pre_attn_scalar": None}), "utf-8")
    with pytest.raises(UnsupportedModelError, match="no usable query_pre_attn_scalar"):
        read_plan(tmp_path)
