"""Makes the reference values of ModernBERT's tests; needs the environment of `make_reference.py`.

`python -m tests.export.reference_modernbert` writes into `tests/export/data` random models of a few kB, one for each
head and each form of config.json, with what transformers gives for the same tokens, and into `tests/embedders/data`
an embedder and a reranker as the hub has them, with what sentence-transformers gives for a few texts.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.export.make_reference import DATA, batch

REPOS = Path(__file__).parents[1] / "embedders" / "data"

SMALL = {
    "vocab_size": 40,
    "hidden_size": 8,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "cls_token_id": 2,
    "eos_token_id": 3,
    "sep_token_id": 3,
    "local_attention": 8,
}
BIASES = dict.fromkeys(["norm_bias", "attention_bias", "mlp_bias", "classifier_bias"], True)

TEXTS = [
    "",
    "moss",
    "Moss grows on the north side of old trees, they say.",
    "Der Fuchs springt über den faulen Hund; naïve café, 東京, 🙂.",
    "def mean(values):\n\treturn sum(values) / len(values)",
    "A stone gathers no moss where it rolls. " * 12,
]
QUERY = "Where does moss grow?"


def main() -> None:
    """Write everything anew."""
    write_models()
    write_repos()


def write_models() -> None:
    """Each head, and the encoder alone, once with the long texts that are computed in pieces."""
    import transformers as t  # type: ignore[import-not-found]

    # The layer types and rotary bases as transformers 5 writes them, and, below, as the hub's configs have them.
    rope = {
        "full_attention": {"rope_type": "default", "rope_theta": 8000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
    }
    types = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    models = {
        "modernbert": t.ModernBertModel(t.ModernBertConfig(**SMALL)),
        "modernbert_new_keys": t.ModernBertModel(
            t.ModernBertConfig(**SMALL | BIASES, rope_parameters=rope, layer_types=types[::-1])
        ),
        "modernbert_wide_window": t.ModernBertModel(t.ModernBertConfig(**SMALL | {"local_attention": 128})),
        "modernbert_words": t.ModernBertForMaskedLM(t.ModernBertConfig(**SMALL)),
        "modernbert_words_untied": t.ModernBertForMaskedLM(
            t.ModernBertConfig(**SMALL | BIASES, decoder_bias=False, tie_word_embeddings=False)
        ),
        "modernbert_scores": t.ModernBertForSequenceClassification(t.ModernBertConfig(**SMALL, num_labels=1)),
        "modernbert_scores_mean": t.ModernBertForSequenceClassification(
            t.ModernBertConfig(
                **SMALL | BIASES, num_labels=3, classifier_pooling="mean", classifier_activation="silu", norm_eps=0.01
            )
        ),
    }
    for number, (name, model) in enumerate(models.items()):
        fill(model, number)
        model.save_pretrained(DATA / name)
        arrays: dict[str, npt.NDArray[Any]] = dict(batch((20, 7, 1), 0))
        del arrays["token_type_ids"]
        arrays |= computed(model, arrays)
        if name in ("modernbert", "modernbert_wide_window"):
            long: dict[str, npt.NDArray[Any]] = dict(batch((700, 600), 0))
            arrays["long_input_ids"] = long["input_ids"].astype(np.uint8)
            arrays["long_attention_mask"] = long["attention_mask"].astype(np.uint8)
            arrays["long_last_hidden_state"] = computed(model, long)["last_hidden_state"]
        np.savez_compressed(DATA / name / "reference.npz", allow_pickle=False, **arrays)
    write_old_config()


def write_old_config() -> None:
    """The config of `modernbert_new_keys` in the words of the hub's older ones, and what transformers makes of it."""
    import transformers as t

    path = DATA / "modernbert_old_keys"
    path.mkdir(exist_ok=True)
    config = {
        **SMALL,
        **BIASES,
        "architectures": ["ModernBertForMaskedLM"],
        "model_type": "modernbert",
        "global_attn_every_n_layers": 2,
        "global_rope_theta": 5000.0,
        "local_rope_theta": 200.0,
        "position_embedding_type": "absolute",
        "layer_norm_eps": 1e-05,
        "norm_eps": 1e-05,
        "reference_compile": False,
        "sparse_prediction": False,
        "sparse_pred_ignore_index": -100,
        "hidden_activation": "gelu",
        "repad_logits_with_grad": False,
        "torch_dtype": "float32",
        "transformers_version": "4.48.0",
    }
    (path / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    model = t.ModernBertForMaskedLM(t.AutoConfig.from_pretrained(path))
    fill(model, 20)
    arrays: dict[str, npt.NDArray[Any]] = dict(batch((20, 7, 1), 0))
    del arrays["token_type_ids"]
    arrays |= computed(model, arrays)
    model.save_pretrained(path)
    (path / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    (path / "generation_config.json").unlink(missing_ok=True)
    np.savez_compressed(path / "reference.npz", allow_pickle=False, **arrays)


def fill(model: Any, seed: int) -> None:
    """Random weights, also where they are constant at the start: biases 0, norms 1."""
    import torch  # type: ignore[import-not-found]

    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn_like(tensor) * 0.3 + (1.0 if tensor.ndim == 1 else 0.0))
    model.eval()


def computed(model: Any, arrays: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.float32]]:
    """The last hidden states, and the logits of a model that has a head."""
    import torch

    with torch.no_grad():
        tensors = {name: torch.from_numpy(arrays[name]) for name in ("input_ids", "attention_mask")}
        encoder = getattr(model, "model", model)
        found = {"last_hidden_state": encoder(**tensors).last_hidden_state.numpy()}
        if encoder is not model:
            found["logits"] = model(**tensors).logits.numpy()
    return found


def write_repos() -> None:
    """An embedder in the layout that the hub's ModernBERT embedders have, a reranker, and a sparse model."""
    import torch
    import transformers as t
    from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder  # type: ignore[import-not-found]

    tokenizer = make_tokenizer()
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk", "mask")}
    wrapped = t.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=True,
        **special,
    )
    sizes = SMALL | {"vocab_size": tokenizer.get_vocab_size(), "pad_token_id": 0, "hidden_size": 16}
    embedder = t.ModernBertModel(t.ModernBertConfig(**sizes))
    reranker = t.ModernBertForSequenceClassification(
        t.ModernBertConfig(**sizes, num_labels=1, classifier_pooling="mean")
    )
    splade = t.ModernBertForMaskedLM(t.ModernBertConfig(**sizes | {"hidden_size": 8}))
    models = {"embedder": embedder, "reranker": reranker, "splade": splade}
    for seed, (kind, model) in enumerate(models.items(), 31):
        name = f"modernbert_{kind}"
        fill(model, seed)
        model.save_pretrained(REPOS / name)
        wrapped.save_pretrained(REPOS / name)
    path = REPOS / "modernbert_embedder"
    for file, content in LAYOUT.items():
        (path / file).parent.mkdir(exist_ok=True)
        (path / file).write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    vectors = SentenceTransformer(str(path), device="cpu").encode(TEXTS, batch_size=4)
    np.savez_compressed(path / "reference.npz", vectors=vectors)
    path = REPOS / "modernbert_reranker"
    pairs = [(QUERY, text) for text in TEXTS]
    scores = CrossEncoder(str(path), device="cpu").predict(pairs, activation_fn=torch.nn.Identity())
    np.savez_compressed(path / "reference.npz", scores=scores)
    path = REPOS / "modernbert_splade"
    weights = SparseEncoder(str(path), device="cpu").encode(TEXTS, convert_to_sparse_tensor=False)
    np.savez_compressed(path / "reference.npz", weights=np.asarray(weights))


LAYOUT = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ],
    "sentence_bert_config.json": {"max_seq_length": 64, "do_lower_case": False},
    "1_Pooling/config.json": {
        "word_embedding_dimension": 16,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
        "include_prompt": True,
    },
}


def make_tokenizer() -> Any:
    """A byte-level BPE with ModernBERT's markers."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, QUERY], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


if __name__ == "__main__":
    main()
