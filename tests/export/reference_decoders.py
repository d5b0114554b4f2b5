"""Makes the reference values of the decoders' graphs with torch, which the project itself never needs.

Run in a throwaway environment with torch and transformers: `python tests/export/reference_decoders.py`. It writes into
`tests/export/data` a random model of a few kB for each architecture and variant, with what transformers gives for one
batch, whichever side is padded, and for one text that is long enough for attention in chunks. Weights are
mostly bfloat16, as those of the real ones; the values are computed in float32.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

DATA = Path(__file__).parent / "data"

LENGTHS = (20, 7, 1)
LONG = 600

SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 24,
    "max_position_embeddings": 1024,
    "pad_token_id": 3,
    "bos_token_id": None,
    "eos_token_id": 3,
}
ONE_LAYER: dict[str, Any] = SMALL | {"num_hidden_layers": 1}
WINDOWED: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
GEMMA: dict[str, Any] = SMALL | {
    "num_hidden_layers": 3,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 24,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "bos_token_id": 2,
}
EURO: dict[str, Any] = {key: value for key, value in SMALL.items() if key != "head_dim"}


def models() -> dict[str, tuple[Any, str]]:
    """A model and the element type of its weights, by the folder's name."""
    import transformers as t  # type: ignore[import-not-found]

    def rope(kind: str, **values: Any) -> dict[str, Any]:
        return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}

    def qwen3(size: dict[str, Any] = SMALL, **values: Any) -> Any:
        return t.Qwen3Config(**size, **{"rope_theta": 1000000.0, "tie_word_embeddings": False, **values})

    def gemma3(**values: Any) -> Any:
        return t.Gemma3TextConfig(**GEMMA, **values)

    def eurobert(**values: Any) -> Any:
        return t.EuroBertConfig(**EURO, mask_token_id=1, **values)

    bidirectional = qwen3(attention_bias=True, **WINDOWED)
    bidirectional.is_causal = False
    llama3 = rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
    yarn = rope("yarn", factor=4.0, original_max_position_embeddings=64)
    both_ways = t.LlamaConfig(**EURO, **llama3)
    both_ways.is_causal = False
    local: dict[str, Any] = {"rope_type": "default", "rope_theta": 1000.0}
    scaled: dict[str, Any] = {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0}
    return {
        "qwen3": (t.Qwen3Model(qwen3()), "bfloat16"),
        "qwen3_bidirectional": (t.Qwen3Model(bidirectional), "float32"),
        "qwen3_sliding": (t.Qwen3ForCausalLM(qwen3(**WINDOWED)), "float16"),
        "qwen3_tied": (t.Qwen3ForCausalLM(qwen3(ONE_LAYER, tie_word_embeddings=True)), "bfloat16"),
        "qwen3_linear": (t.Qwen3Model(qwen3(ONE_LAYER, **rope("linear", factor=4.0))), "bfloat16"),
        "qwen3_llama3": (t.Qwen3Model(qwen3(ONE_LAYER, **llama3)), "bfloat16"),
        "qwen3_yarn": (t.Qwen3Model(qwen3(ONE_LAYER, **yarn)), "bfloat16"),
        "qwen3_sharded": (t.Qwen3Model(qwen3()), "bfloat16"),
        "qwen3_scores": (t.Qwen3ForSequenceClassification(qwen3(num_labels=1)), "bfloat16"),
        "qwen2": (t.Qwen2Model(t.Qwen2Config(**EURO)), "bfloat16"),
        "qwen2_tied": (t.Qwen2ForCausalLM(t.Qwen2Config(**EURO, tie_word_embeddings=True)), "bfloat16"),
        "qwen2_scores": (t.Qwen2ForSequenceClassification(t.Qwen2Config(**EURO, num_labels=2)), "bfloat16"),
        "gemma3": (
            t.Gemma3TextModel(gemma3(sliding_window=6, use_bidirectional_attention=True)),
            "bfloat16",
        ),
        "gemma3_causal": (
            t.Gemma3TextModel(
                gemma3(sliding_window=5, rope_parameters={"full_attention": scaled, "sliding_attention": local})
            ),
            "bfloat16",
        ),
        "gemma3_scores": (
            t.Gemma3TextForSequenceClassification(gemma3(sliding_window=5, num_labels=1)),
            "bfloat16",
        ),
        "eurobert": (t.EuroBertModel(eurobert()), "bfloat16"),
        "eurobert_words": (t.EuroBertForMaskedLM(eurobert()), "bfloat16"),
        "eurobert_words_tied": (t.EuroBertForMaskedLM(eurobert(tie_word_embeddings=True, mlp_bias=True)), "bfloat16"),
        "eurobert_scores_late": (t.EuroBertForSequenceClassification(eurobert(num_labels=1)), "bfloat16"),
        "eurobert_scores_bos": (
            t.EuroBertForSequenceClassification(eurobert(num_labels=1, classifier_pooling="bos")),
            "bfloat16",
        ),
        "eurobert_scores_mean": (
            t.EuroBertForSequenceClassification(eurobert(num_labels=1, classifier_pooling="mean")),
            "bfloat16",
        ),
        "llama": (t.LlamaModel(t.LlamaConfig(**EURO, **llama3, attention_bias=True, mlp_bias=True)), "bfloat16"),
        "llama_bidirectional": (t.LlamaModel(both_ways), "bfloat16"),
        "llama_tied": (t.LlamaForCausalLM(t.LlamaConfig(**EURO, tie_word_embeddings=True)), "bfloat16"),
        "llama_scores": (t.LlamaForSequenceClassification(t.LlamaConfig(**EURO, num_labels=1)), "bfloat16"),
        "mistral": (t.MistralModel(t.MistralConfig(**SMALL, sliding_window=4)), "bfloat16"),
        "mistral_scores": (
            t.MistralForSequenceClassification(t.MistralConfig(**SMALL, sliding_window=None, num_labels=1)),
            "bfloat16",
        ),
    }


# What stands in config.json on the hub, None being no key, instead of what transformers can compute.
HUB: Mapping[str, Mapping[str, Any]] = {
    "llama_bidirectional": {
        "architectures": ["LlamaBidirectionalModel"],
        "model_type": "llama_bidirec",
        "auto_map": {
            "AutoConfig": "llama_bidirectional_model.LlamaBidirectionalConfig",
            "AutoModel": "llama_bidirectional_model.LlamaBidirectionalModel",
        },
        "is_causal": None,
        "pooling": "avg",
        "temperature": 1.0,
    }
}


def main() -> None:
    """Write everything anew."""
    import torch  # type: ignore[import-not-found]

    for number, (name, (model, dtype)) in enumerate(models().items()):
        torch.manual_seed(number)
        with torch.no_grad():  # also what is constant at the start: biases 0, norms 1
            for tensor in model.parameters():
                tensor.copy_(torch.randn_like(tensor) * 0.25 + (1.0 if tensor.ndim == 1 else 0.0))
        folder = DATA / name
        shutil.rmtree(folder, ignore_errors=True)
        shards = {"max_shard_size": "10KB"} if name == "qwen3_sharded" else {}
        model.to(getattr(torch, dtype)).eval().save_pretrained(folder, **shards)
        (folder / "generation_config.json").unlink(missing_ok=True)
        loaded = type(model).from_pretrained(folder, dtype=torch.float32).eval()
        padding = int(model.config.pad_token_id)
        inputs = batch(LENGTHS, padding, "right")
        given = outputs(loaded, inputs)
        check_left(given, outputs(loaded, batch(LENGTHS, padding, "left")), name)
        long = batch((LONG,), padding, "right")
        states = outputs(loaded, long)["last_hidden_state"]
        real = inputs["attention_mask"][:, :, None] == 1
        arrays = {
            **{key: value.astype(np.int16) for key, value in inputs.items()},
            # Of padding there is nothing to compare.
            **{key: value * real if value.ndim == 3 else value for key, value in given.items()},
            "long_input_ids": long["input_ids"].astype(np.int16),
            "long_last_hidden_state": states[:, 0:LONG:37],
        }
        np.savez_compressed(folder / "reference.npz", allow_pickle=False, **arrays)
        as_on_the_hub(folder / "config.json", HUB.get(name, {}))


def as_on_the_hub(path: Path, changes: Mapping[str, Any]) -> None:
    if changes:
        config = json.loads(path.read_bytes()) | dict(changes)
        said = {key: value for key, value in config.items() if value is not None}
        path.write_text(json.dumps(said, indent=1), "utf-8")


def check_left(right: dict[str, Any], left: dict[str, Any], name: str) -> None:
    """See that padding on the left changes nothing, so that one side is enough to keep."""
    for key, values in right.items():
        for row, length in enumerate(LENGTHS):
            # transformers takes the first place for the first token, which padding on the left occupies.
            if values.ndim == 3:
                np.testing.assert_allclose(left[key][row, -length:], values[row, :length], atol=2e-5)
            elif name != "eurobert_scores_bos":
                np.testing.assert_allclose(left[key][row], values[row], atol=2e-5)


def outputs(model: Any, inputs: dict[str, npt.NDArray[np.int64]]) -> dict[str, npt.NDArray[np.float32]]:
    """The last hidden state, and the logits of a model that has some."""
    import torch

    with torch.no_grad():
        given = model(**{key: torch.from_numpy(value) for key, value in inputs.items()}, output_hidden_states=True)
    hidden = given.last_hidden_state if hasattr(given, "last_hidden_state") else given.hidden_states[-1]
    arrays = {"last_hidden_state": hidden.numpy()}
    if hasattr(given, "logits"):
        arrays["logits"] = given.logits.numpy()
    return arrays


def batch(lengths: tuple[int, ...], padding: int, side: str) -> dict[str, npt.NDArray[np.int64]]:
    """Random tokens of these lengths, padded to the longest; the first text ends with the id that also pads."""
    rng = np.random.default_rng(5)
    mask = np.array([[int(i < length) for i in range(max(lengths))] for length in lengths])
    ids = np.where(mask == 1, rng.integers(4, 40, mask.shape), padding)
    ids[0, -1] = padding
    if side == "left":
        ids, mask = (
            np.stack([np.roll(row, len(row) - length) for row, length in zip(array, lengths, strict=True)])
            for array in (ids, mask)
        )
    return {"input_ids": ids, "attention_mask": mask}


if __name__ == "__main__":
    main()
