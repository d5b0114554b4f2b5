"""Makes the reference values of sparse models with torch and sentence-transformers, which the project never needs.

Run in a throwaway environment with torch, transformers and sentence-transformers: `python
tests/export/reference_sparse.py`. It writes into `tests/embedders/data/sparse` four repos around one random masked
language model, each with what sentence-transformers gives for its documents and queries (`NAME.npz`, vectors as
rows over the whole vocabulary):

- `splade`: as sentence-transformers 6 saves it; `splade_mlm`: the same as 5.3 and before did;
- `router`: with static weights for queries, each module in a folder of its own, as it is saved;
- `idf`: with the checkpoint at the root and the weights in `idf.json`, as repos on the hub have it.

And `pooling.npz`: random logits with their mask, and what each kind of pooling makes of them.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parents[1] / "embedders" / "data" / "sparse"

TEXTS = [
    "how can you make it long",
    "",
    "the the the day",
    "a long day of writing and a way to write about it: written, written, written [SEP] zebra",
    "day",
]
WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] the a and it is of to how can you make long day way write about s ing written , : "
    ". ? ##s ##ing ##ten w r t e i n g"
)
OLD = "sentence_transformers.sparse_encoder.models"


def main() -> None:
    """Write everything anew."""
    import torch  # type: ignore[import-not-found]
    from sentence_transformers import SparseEncoder  # type: ignore[import-not-found]
    from sentence_transformers.sparse_encoder.modules import (  # type: ignore[import-not-found]
        Router,
        SparseStaticEmbedding,
        SpladePooling,
        Transformer,
    )

    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir(parents=True)
    write_pooling()
    checkpoint = DATA / "checkpoint"
    words = write_checkpoint(checkpoint)

    def encoder() -> Any:
        return Transformer(str(checkpoint), transformer_task="fill-mask", model_kwargs={"dtype": torch.float32})

    splade = SparseEncoder(modules=[encoder(), SpladePooling()])
    splade.save_pretrained(str(DATA / "splade"))
    write_old_layout()

    documents = encoder()
    weights = torch.linspace(0.25, 3.0, words)
    weights[7::5] = 0
    queries = SparseStaticEmbedding(documents.tokenizer, weight=weights, frozen=True)
    pooling = SpladePooling(activation_function="log1p_relu")
    router = Router.for_query_document(query_modules=[queries], document_modules=[documents, pooling])
    SparseEncoder(modules=[router], max_active_dims=9).save_pretrained(str(DATA / "router"))
    write_idf_layout(weights.tolist())
    shutil.rmtree(checkpoint)

    for name in ("splade", "splade_mlm", "router", "idf"):
        for path in (DATA / name).rglob("README.md"):
            path.unlink()
        model = SparseEncoder(str(DATA / name), device="cpu", model_kwargs={"dtype": torch.float32})
        arrays = {
            "documents": model.encode_document(TEXTS, convert_to_sparse_tensor=False).numpy(),
            "queries": model.encode_query(TEXTS, convert_to_sparse_tensor=False).numpy(),
            "three_words": model.encode_document(TEXTS, convert_to_sparse_tensor=False, max_active_dims=3).numpy(),
        }
        np.savez_compressed(DATA / f"{name}.npz", allow_pickle=False, **arrays)
    query = DATA / "idf" / "query_0_SparseStaticEmbedding"
    write_json(query / "config.json", {"frozen": True, "path": "idf.json"})  # which was found by its whole path
    for path in DATA.rglob("model.safetensors"):
        path.chmod(0o644)
    (DATA / "texts.json").write_text(json.dumps(TEXTS, indent=1) + "\n", encoding="utf-8")


def write_pooling() -> None:
    """What sentence-transformers' pooling makes of logits."""
    import torch
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    rng = np.random.default_rng(11)
    logits = (rng.normal(size=(3, 6, 12)) * 2 - 1).astype(np.float32)
    mask = np.array([[1] * 6, [1] * 4 + [0] * 2, [1] + [0] * 5])
    arrays = {"logits": logits, "mask": mask}
    for strategy in ("max", "sum"):
        for activation in ("relu", "log1p_relu"):
            pooling = SpladePooling(strategy, activation).eval()
            features = {"token_embeddings": torch.from_numpy(logits), "attention_mask": torch.from_numpy(mask)}
            arrays[f"{strategy}_{activation}"] = pooling(features)["sentence_embedding"].numpy()
    np.savez_compressed(DATA / "pooling.npz", allow_pickle=False, **arrays)


def write_checkpoint(directory: Path) -> int:
    """A random masked language model with its tokenizer; the answer is the size of its vocabulary."""
    import torch
    import transformers as t  # type: ignore[import-not-found]
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = WORDS.split()
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = dict(zip(("pad", "unk", "cls", "sep", "mask"), words, strict=False))
    t.BertTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=16, **{f"{name}_token": word for name, word in named.items()}
    ).save_pretrained(directory)
    config = t.BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=24,
    )  # fmt: skip
    torch.manual_seed(7)
    model = t.BertForMaskedLM(config)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn_like(tensor) * 0.5 + (0.6 if tensor.ndim == 1 else 0.0))
        model.cls.predictions.bias -= 1.5
    model.save_pretrained(directory)
    return len(words)


def write_old_layout() -> None:
    """The files of `splade` as sentence-transformers wrote them before 5.4."""
    directory = DATA / "splade_mlm"
    shutil.copytree(DATA / "splade", directory)
    write_json(directory / "modules.json", [
        {"idx": 0, "name": "0", "path": "", "type": f"{OLD}.MLMTransformer"},
        {"idx": 1, "name": "1", "path": "1_SpladePooling", "type": f"{OLD}.SpladePooling"},
    ])  # fmt: skip
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": 16, "do_lower_case": False})
    pooling = {"pooling_strategy": "max", "activation_function": "relu", "word_embedding_dimension": None}
    write_json(directory / "1_SpladePooling" / "config.json", pooling)


def write_idf_layout(weights: list[float]) -> None:
    """The files of `router` with the checkpoint at the root and the weights of queries in a file of JSON."""
    directory = DATA / "idf"
    shutil.copytree(DATA / "router" / "document_0_Transformer", directory)
    shutil.copytree(DATA / "router" / "document_1_SpladePooling", directory / "document_1_SpladePooling")
    query = directory / "query_0_SparseStaticEmbedding"
    shutil.copytree(DATA / "router" / query.name, query)
    (query / "model.safetensors").unlink()
    write_json(query / "config.json", {"frozen": True, "path": str(directory / "idf.json")})
    write_json(directory / "idf.json", dict(zip(WORDS.split(), weights, strict=True)))
    write_json(directory / "modules.json", [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Router"}
    ])  # fmt: skip
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": 16, "do_lower_case": False})
    prompts = {"prompts": {"query": "", "document": ""}, "default_prompt_name": None, "similarity_fn_name": "dot"}
    write_json(directory / "config_sentence_transformers.json", {"model_type": "SparseEncoder", **prompts})
    write_json(directory / "router_config.json", {
        "types": {
            query.name: f"{OLD}.SparseStaticEmbedding",
            ".": f"{OLD}.MLMTransformer",
            "document_1_SpladePooling": f"{OLD}.SpladePooling",
        },
        "structure": {"query": [query.name], "document": [".", "document_1_SpladePooling"]},
        "parameters": {"default_route": "document", "allow_empty_key": True},
    })  # fmt: skip


def write_json(path: Path, value: object) -> None:
    """Write it as the libraries do."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
