"""Makes the reference values of the hybrid encoder's tests with torch and FlagEmbedding, which the project never needs.

Run in a throwaway environment with torch, transformers, safetensors and FlagEmbedding, from the root of the repo:
`python -m tests.encoders.reference_one_pass`. It writes a random model of some kB into `tests/encoders/data/hybrid`,
laid out as BAAI/bge-m3 is, and into `reference.npz` what `M3Embedder` gives for `TEXTS`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.models import TEXTS
from tests.support.tokenizers import unigram, write_tokenizer

DATA = Path(__file__).parent / "data" / "hybrid"

ROLES: dict[str, Any] = {
    "bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>",
    "unk_token": "<unk>", "mask_token": "<mask>",
}  # fmt: skip

MORE_TEXTS = (
    "the word that the word the",  # a weight is the largest of those of its token's occurrences
    "an unknown letter: \u00e9 \u6771 <mask> is none",
)


def main() -> None:
    """Write everything anew."""
    shutil.rmtree(DATA, ignore_errors=True)
    write_model()
    write_reference()


def write_model() -> None:
    """A random model with both heads."""
    import torch  # type: ignore[import-not-found]
    import transformers as t  # type: ignore[import-not-found]

    tokenizer = unigram()
    write_tokenizer(DATA, tokenizer, tokenizer_class="XLMRobertaTokenizer", special_tokens=ROLES, **ROLES)
    torch.manual_seed(4)
    config = t.XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=12, max_position_embeddings=66, type_vocab_size=1, pad_token_id=1,
    )  # fmt: skip
    model = t.XLMRobertaModel(config, add_pooling_layer=False)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(torch.randn_like(tensor) * 0.5 + (1.0 if name.endswith("LayerNorm.weight") else 0.0))
    model.save_pretrained(DATA)
    for name, width in (("sparse_linear", 1), ("colbert_linear", 8)):
        head = torch.nn.Linear(8, width)
        head.load_state_dict({"weight": torch.randn(width, 8) * 2, "bias": torch.randn(width)})
        torch.save(head.half().state_dict(), DATA / f"{name}.pt")
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (DATA / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (DATA / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 8, "pooling_mode_cls_token": True}
    (DATA / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")


def write_reference() -> None:
    """What the model's authors' own code gives, text by text."""
    from FlagEmbedding.inference.embedder.encoder_only.m3 import M3Embedder  # type: ignore[import-not-found]

    model = M3Embedder(str(DATA), use_fp16=False, devices="cpu", passage_max_length=64)
    arrays: dict[str, np.ndarray] = {}
    for number, text in enumerate((*TEXTS, *MORE_TEXTS)):
        found = model.encode_single_device(
            [text], max_length=64, return_dense=True, return_sparse=True, return_colbert_vecs=True, device="cpu"
        )
        weights = {int(token): float(weight) for token, weight in found["lexical_weights"][0].items()}
        arrays[f"{number}_dense"] = found["dense_vecs"][0]
        arrays[f"{number}_indices"] = np.array(sorted(weights), np.int32)
        arrays[f"{number}_values"] = np.array([weights[token] for token in sorted(weights)], np.float32)
        arrays[f"{number}_rows"] = found["colbert_vecs"][0]
    np.savez_compressed(DATA / "reference.npz", allow_pickle=False, **arrays)


if __name__ == "__main__":
    main()
