"""Makes the reference values of the export's tests with torch, which the project itself never needs.

Run in a throwaway environment with torch, transformers, sentence-transformers and safetensors:
`python tests/export/make_reference.py DIRECTORY_OF_ALL_MINILM_L6_V2`. It writes into `tests/export/data`:
`minilm.npz`, the vectors that sentence-transformers gives for `TEXTS` in `texts.json`, and, for each
architecture, a random model of a few kB with its hidden states for a padded batch.

The modules `reference_*` beside it do so for what else is exported: `python -m tests.export.reference_modernbert`, ...
"""

import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

DATA = Path(__file__).parent / "data"

TEXTS = [
    "",
    "hello",
    "Local embedding models behind async for: batched across callers, in order, with backpressure.",
    "A man is eating a piece of bread.",
    "Der schnelle braune Fuchs springt über den faulen Hund; naïve café, Ωμέγα, 東京, 🙂👍🏽.",
    "def mean(values):\n\treturn sum(values) / len(values)  # TODO: empty?",
    "   leading and trailing white space \u00a0\u200b ",
    "[MASK] [SEP] <pad> unusual tokens",
    "word " * 120,
    "A long text that goes on beyond the limit of two hundred and fifty-six tokens. " * 40,
]

SMALL = {
    "vocab_size": 40,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 24,
    "initializer_range": 0.6,
}


def main() -> None:
    """Write everything anew."""
    DATA.mkdir(exist_ok=True)
    write_minilm(sys.argv[1])
    write_small_models()


def write_minilm(directory: str) -> None:
    """The vectors of the real model, as sentence-transformers computes them with torch."""
    from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]

    model = SentenceTransformer(directory, device="cpu")
    vectors = model.encode(TEXTS, batch_size=4, normalize_embeddings=True)
    (DATA / "texts.json").write_text(json.dumps(TEXTS, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    np.savez_compressed(DATA / "minilm.npz", vectors=vectors)


def write_small_models() -> None:
    """A random model of each architecture, and what it gives for one padded batch."""
    import torch  # type: ignore[import-not-found]
    import transformers as t  # type: ignore[import-not-found]

    distil = {
        "vocab_size": 40,
        "dim": 8,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 12,
        "max_position_embeddings": 24,
        "initializer_range": 0.6,
    }
    models = {
        "bert": t.BertModel(t.BertConfig(**SMALL), add_pooling_layer=False),
        "bert_gelu_new": t.BertForMaskedLM(t.BertConfig(**SMALL, hidden_act="gelu_new")),
        "bert_relu": t.BertModel(t.BertConfig(**SMALL, hidden_act="relu"), add_pooling_layer=False),
        "bert_silu": t.BertModel(t.BertConfig(**SMALL, hidden_act="silu"), add_pooling_layer=False),
        "roberta": t.RobertaModel(t.RobertaConfig(**SMALL, type_vocab_size=1, pad_token_id=1), add_pooling_layer=False),
        "xlm-roberta": t.XLMRobertaForMaskedLM(t.XLMRobertaConfig(**SMALL, type_vocab_size=1, pad_token_id=1)),
        "camembert": t.CamembertModel(
            t.CamembertConfig(**SMALL, type_vocab_size=1, pad_token_id=1), add_pooling_layer=False
        ),
        "distilbert": t.DistilBertModel(t.DistilBertConfig(**distil)),
        "mpnet": t.MPNetModel(t.MPNetConfig(**SMALL | {"max_position_embeddings": 162}), add_pooling_layer=False),
        "electra": t.ElectraModel(t.ElectraConfig(**SMALL, embedding_size=4)),
    }
    for number, (name, model) in enumerate(models.items()):
        torch.manual_seed(number)
        with torch.no_grad():  # also what is constant at the start: biases 0, norms 1
            for tensor in model.parameters():
                tensor.copy_(torch.randn_like(tensor) * 0.3 + (1.0 if tensor.ndim == 1 else 0.0))
        model.eval()
        model.save_pretrained(DATA / name)
        # Beyond 128 tokens MPNet's last bucket of distances begins.
        inputs = batch((150 if name == "mpnet" else 20, 7, 1), int(model.config.pad_token_id))
        if getattr(model.config, "type_vocab_size", 1) == 1:
            del inputs["token_type_ids"]
        with torch.no_grad():
            tensors = {key: torch.from_numpy(value) for key, value in inputs.items()}
            outputs = model(**tensors, output_hidden_states=True)
        hidden = outputs.hidden_states[-1].numpy()
        arrays = {"last_hidden_state": hidden, **inputs}
        np.savez_compressed(DATA / name / "reference.npz", allow_pickle=False, **arrays)


def batch(lengths: tuple[int, ...], padding: int) -> dict[str, npt.NDArray[np.int64]]:
    """Random tokens of these lengths, padded to the longest."""
    rng = np.random.default_rng(5)
    mask = np.array([[int(i < length) for i in range(max(lengths))] for length in lengths])
    ids = np.where(mask == 1, rng.integers(4, 40, mask.shape), padding)
    types = np.where(mask == 1, rng.integers(0, 2, mask.shape), 0)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


if __name__ == "__main__":
    main()
