"""Makes the reference values of BERT's family with torch: its heads, ALBERT, DeBERTa, GTE, NomicBERT; and of T5.

Run in a throwaway environment with torch and transformers: `python -m tests.export.reference_bert_family`. It writes
into `tests/export/data`, for each name below, a random model of a few kB and what it gives for a batch padded at its
end and for the same batch padded at its beginning: the hidden states, and what its head makes of the former. And, into
`tests/embedders/data`, a few repos, with what sentence-transformers gives for them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.support.tokenizers import unigram, wordpiece, write_tokenizer

DATA = Path(__file__).parent / "data"
REPOS = Path(__file__).parents[1] / "embedders" / "data"

QUERY = "what is there to see in the long day?"
TEXTS = [
    "",
    "she has a word for each time of the day",
    "But what if they were not there at all? We can look, and look again; see how long it is.",
    "x",
]

Arrays = dict[str, npt.NDArray[Any]]

SIZES = {
    "vocab_size": 32,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 24,
}
ROBERTA = {"type_vocab_size": 1, "pad_token_id": 1}
DISTIL = {"vocab_size": 32, "dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 12, "max_position_embeddings": 24}
SCORE = {"num_labels": 1}

# All layers share one's weights, as in its models on the hub; and three layers of two groups of two layers.
SHARED = {"embedding_size": 4, "num_hidden_layers": 3}
ALBERT = SHARED | {"num_hidden_groups": 2, "inner_group_num": 2, "hidden_act": "relu"}

# Heads that are together wider than the layers.
T5 = {"vocab_size": 32, "d_model": 8, "d_kv": 6, "d_ff": 12, "num_layers": 2, "num_heads": 2}

# As v3 has it; the buckets begin to be logarithmic at a distance of 2 and end at 11.
DEBERTA_V3 = {
    "relative_attention": True,
    "position_buckets": 4,
    "max_relative_positions": 12,
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
DEBERTA_V2 = {
    "relative_attention": True,
    "max_position_embeddings": 24,
    "share_att_key": False,
    "pos_att_type": ["c2p"],
    "position_biased_input": True,
    "type_vocab_size": 2,
}


def models() -> Mapping[str, Any]:
    """Every model, not yet initialised, by the name of its folder."""
    import transformers as t  # type: ignore[import-not-found]

    return {
        "bert_reranker": t.BertForSequenceClassification(t.BertConfig(**SIZES, **SCORE)),
        "bert_words": t.BertForMaskedLM(t.BertConfig(**SIZES, hidden_act="relu")),
        "bert_words_untied": t.BertForMaskedLM(t.BertConfig(**SIZES, tie_word_embeddings=False)),
        "roberta_reranker": t.RobertaForSequenceClassification(t.RobertaConfig(**SIZES, **ROBERTA, **SCORE)),
        "roberta_words": t.XLMRobertaForMaskedLM(t.XLMRobertaConfig(**SIZES, **ROBERTA, hidden_act="relu")),
        "distilbert_reranker": t.DistilBertForSequenceClassification(t.DistilBertConfig(**DISTIL, **SCORE)),
        "distilbert_words": t.DistilBertForMaskedLM(t.DistilBertConfig(**DISTIL, activation="relu")),
        "electra_reranker": t.ElectraForSequenceClassification(t.ElectraConfig(**SIZES, embedding_size=4, **SCORE)),
        "electra_words": t.ElectraForMaskedLM(t.ElectraConfig(**SIZES, embedding_size=4, hidden_act="relu")),
        "mpnet_reranker": t.MPNetForSequenceClassification(t.MPNetConfig(**SIZES, **SCORE)),
        "mpnet_words": t.MPNetForMaskedLM(t.MPNetConfig(**SIZES, hidden_act="relu")),
        "deberta_reranker": t.DebertaV2ForSequenceClassification(
            t.DebertaV2Config(**SIZES, **DEBERTA_V3, **SCORE, pooler_hidden_act="gelu", initializer_range=0.02)
        ),
        "deberta_words": t.DebertaV2ForMaskedLM(t.DebertaV2Config(**SIZES, **DEBERTA_V3, embedding_size=4)),
        "deberta_new_words": t.DebertaV2ForMaskedLM(t.DebertaV2Config(**SIZES, **DEBERTA_V3, legacy=False)),
        "deberta_c2p": t.DebertaV2Model(t.DebertaV2Config(**SIZES | DEBERTA_V2)),
        "deberta_p2c": t.DebertaV2Model(
            t.DebertaV2Config(**SIZES | DEBERTA_V3 | {"share_att_key": False, "pos_att_type": ["p2c"]})
        ),
        "deberta_convolution": t.DebertaV2Model(
            t.DebertaV2Config(**SIZES, **DEBERTA_V3, conv_kernel_size=3, conv_groups=2, conv_act="gelu")
        ),
        "deberta_absolute": t.DebertaV2Model(t.DebertaV2Config(**SIZES)),
        "gte": t.GteModel(t.GteConfig(**SIZES, type_vocab_size=0)),
        "gte_reranker": t.GteForSequenceClassification(t.GteConfig(**SIZES, **SCORE, rope_parameters=NTK)),
        "gte_words": t.GteForMaskedLM(t.GteConfig(**SIZES, hidden_act="gelu", type_vocab_size=2)),
        "nomic_bert": t.NomicBertModel(t.NomicBertConfig(**SIZES)),
        "nomic_bert_reranker": t.NomicBertForSequenceClassification(t.NomicBertConfig(**SIZES, **SCORE)),
        "nomic_bert_words": t.NomicBertForMaskedLM(t.NomicBertConfig(**SIZES)),
        "albert": t.AlbertModel(t.AlbertConfig(**SIZES | ALBERT), add_pooling_layer=False),
        "albert_words": t.AlbertForMaskedLM(t.AlbertConfig(**SIZES | SHARED)),
        "albert_reranker": t.AlbertForSequenceClassification(t.AlbertConfig(**SIZES | SHARED, **SCORE)),
        "t5": t.T5EncoderModel(t.T5Config(**T5)),
        "t5_gated": t.T5EncoderModel(
            t.T5Config(
                **T5,
                feed_forward_proj="gated-gelu",
                relative_attention_num_buckets=9,
                relative_attention_max_distance=12,
            )
        ),
    }


# GTE's NTK scaling by 2 of base 500 for heads of width 4, as transformers can compute it.
NTK = {"rope_type": "linear", "factor": 2.0 ** (2 / 4), "rope_theta": 2.0 * 500}

# What stands in config.json on the hub, instead of what transformers 5 writes.
HUB: Mapping[str, Mapping[str, Any]] = {
    "gte_reranker": {
        "architectures": ["NewForSequenceClassification"],
        "model_type": "new",
        "auto_map": {
            "AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig",
            "AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel",
            "AutoModelForSequenceClassification": "Alibaba-NLP/new-impl--modeling.NewForSequenceClassification",
        },
        "rope_parameters": None,
        "rope_theta": 500,
        "rope_scaling": {"type": "ntk", "factor": 2.0},
        "position_embedding_type": "rope",
        "pack_qkv": True,
        "layer_norm_type": "layer_norm",
        "logn_attention_scale": False,
        "logn_attention_clip1": False,
        "unpad_inputs": False,
        "use_memory_efficient_attention": False,
    },
    "nomic_bert": {
        "architectures": ["NomicBertModel"],
        "auto_map": {
            "AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig",
            "AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel",
        },
        **dict.fromkeys(
            ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
             "max_position_embeddings", "layer_norm_eps", "head_dim", "rope_parameters")
        ),
        "n_embd": 8,
        "n_layer": 2,
        "n_head": 2,
        "n_inner": 12,
        "n_positions": 24,
        "activation_function": "swiglu",
        "layer_norm_epsilon": 1e-12,
        "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": None,
        "max_trained_positions": 2048,
        "qkv_proj_bias": False,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "prenorm": False,
        "parallel_block": False,
        "causal": False,
        "use_rms_norm": None,
    },
}  # fmt: skip


def main() -> None:
    """Write everything anew."""
    for number, (name, model) in enumerate(models().items()):
        randomize(model, 100 + number)
        model.save_pretrained(DATA / name)
        as_on_the_hub(DATA / name, HUB.get(name, {}))
        padding, types = int(model.config.pad_token_id), int(getattr(model.config, "type_vocab_size", 0))
        right = batch((20, 7, 1), padding, types, left=False)
        left = batch((20, 7, 1), padding, types, left=True)
        states, head = compute(model, right)
        arrays = {**right, **head, "last_hidden_state": states, "left_hidden_state": compute(model, left)[0]}
        np.savez_compressed(DATA / name / "reference.npz", allow_pickle=False, **arrays)
    write_reranker("bert_reranker", wordpiece(), "BertTokenizer")
    write_reranker("deberta_reranker", unigram(), "DebertaV2Tokenizer")
    write_embedder()


def randomize(model: Any, seed: int) -> None:
    """Also what is constant at the start: biases 0, norms 1."""
    import torch  # type: ignore[import-not-found]

    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn_like(tensor) * 0.3 + (1.0 if tensor.ndim == 1 else 0.0))
    model.eval()


def write_reranker(name: str, tokenizer: Any, tokenizer_class: str) -> None:
    """A cross-encoder; its scores, and those if its tokenizer were of no class that declares token types."""
    import torch
    import transformers as t
    from sentence_transformers import CrossEncoder  # type: ignore[import-not-found]

    path, sizes = REPOS / name, SIZES | {"vocab_size": tokenizer.get_vocab_size() + 8, "max_position_embeddings": 48}
    if name.startswith("bert"):
        model = t.BertForSequenceClassification(t.BertConfig(**sizes, **SCORE))
    else:
        model = t.DebertaV2ForSequenceClassification(t.DebertaV2Config(**sizes, **DEBERTA_V3, **SCORE))
    randomize(model, 200 + len(name))
    model.save_pretrained(path)
    tokens: dict[str, Any] = (
        {} if name.startswith("bert") else {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>"}
    )
    write_tokenizer(path, tokenizer, limit=48, tokenizer_class=tokenizer_class, **tokens)
    CrossEncoder(str(path), device="cpu").save_pretrained(str(path))
    drop_what_is_not_read(path)
    pairs, scores = [(QUERY, text) for text in TEXTS], {}
    config = path / "tokenizer_config.json"
    declared = config.read_text("utf-8")
    for key, class_name in (("scores", tokenizer_class), ("scores_without_types", "TokenizersBackend")):
        config.write_text(json.dumps(json.loads(declared) | {"tokenizer_class": class_name}), "utf-8")
        reranker = CrossEncoder(str(path), device="cpu", model_kwargs={"dtype": torch.float32})
        scores[key] = reranker.predict(pairs, activation_fn=torch.nn.Identity(), convert_to_numpy=True)
    config.write_text(declared, "utf-8")
    np.savez_compressed(path / "reference.npz", allow_pickle=False, **scores)


def write_embedder() -> None:
    """GTE as it lies on the hub, with linear layers that add what passes them by."""
    import torch
    import transformers as t
    from sentence_transformers import SentenceTransformer, models

    path, tokenizer = REPOS / "gte_embedder", wordpiece()
    config = t.GteConfig(**SIZES | {"vocab_size": tokenizer.get_vocab_size()}, rope_parameters=NTK, pad_token_id=0)
    encoder = t.GteModel(config)
    randomize(encoder, 210)
    encoder.save_pretrained(path)
    write_tokenizer(path, tokenizer, limit=24, tokenizer_class="PreTrainedTokenizerFast")
    layers = [
        models.Dense(8, 6, activation_function=torch.nn.GELU(), use_residual=True),
        models.Dense(6, 6, activation_function=torch.nn.ELU(), use_residual=True, bias=False),
    ]
    for number, layer in enumerate(layers):
        randomize(layer, 211 + number)
    transformer = models.Transformer(str(path), model_args={"dtype": torch.float32})
    whole = SentenceTransformer(
        modules=[transformer, models.Pooling(8, "cls"), *layers, models.Normalize()], device="cpu"
    )
    whole.save(str(path), create_model_card=False)
    vectors = whole.encode(TEXTS)
    as_on_the_hub(path, {**HUB["gte_reranker"], "architectures": ["NewModel"]})
    drop_what_is_not_read(path)
    np.savez_compressed(path / "reference.npz", allow_pickle=False, vectors=vectors)


def drop_what_is_not_read(path: Path) -> None:
    for name in ("README.md", "special_tokens_map.json"):
        (path / name).unlink(missing_ok=True)


def compute(model: Any, inputs: Arrays) -> tuple[npt.NDArray[np.float32], Arrays]:
    """The hidden states, and what the head gives: a score for each text, or each word's greatest logit in it."""
    import torch

    with torch.no_grad():
        outputs = model(**{key: torch.from_numpy(value) for key, value in inputs.items()}, output_hidden_states=True)
    last = outputs.last_hidden_state if hasattr(outputs, "last_hidden_state") else outputs.hidden_states[-1]
    states = last.numpy()
    logits = getattr(outputs, "logits", None)
    if logits is None:
        return states, {}
    if logits.ndim == 2:
        return states, {"logits": logits.numpy()}
    greatest = np.where(inputs["attention_mask"][..., None] == 1, logits.numpy(), -np.inf).max(axis=1)
    return states, {"max_logits": greatest.astype(np.float32)}


def batch(lengths: tuple[int, ...], padding: int, types: int, *, left: bool) -> Arrays:
    """Random tokens of these lengths, the same for either side of the padding."""
    rng = np.random.default_rng(5)
    rows = [(rng.integers(4, 32, length), rng.integers(0, max(types, 1), length)) for length in lengths]
    shape = (len(lengths), max(lengths))
    ids, kinds, mask = np.full(shape, padding), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for i, (row, row_types) in enumerate(rows):
        places = slice(shape[1] - len(row), None) if left else slice(len(row))
        ids[i, places], kinds[i, places], mask[i, places] = row, row_types, 1
    arrays = {"input_ids": ids, "attention_mask": mask}
    return arrays | {"token_type_ids": kinds} if types > 1 else arrays


def as_on_the_hub(directory: Path, changes: Mapping[str, Any]) -> None:
    """Change config.json, None being no key, and the names of tensors in a file that is of the architecture "new"."""
    from safetensors.numpy import load_file, save_file  # type: ignore[import-not-found]

    path = directory / "config.json"
    config = json.loads(path.read_bytes()) | dict(changes)
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}, indent=1), "utf-8")
    if config["model_type"] == "new":
        weights = directory / "model.safetensors"
        tensors = {name.replace("gte.", "new.", 1): array for name, array in load_file(weights).items()}
        save_file(tensors, weights, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
