"""Makes the reference values of multi-vector models with torch, which the project itself never needs.

Run in throwaway environments: `python tests/export/reference_multi_vector.py pylate` where PyLate 1.6 is, and with
`sentence_transformers` where sentence-transformers 6 is. It writes into `tests/embedders/data/multi_vector` random
repos, each laid out as one tool saves it, and beside each, in a file of its name, what that tool gives for the texts in
`texts.json`, documents and queries, and for documents whose vectors are pooled.
"""

import json
import shutil
import string
import sys
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parents[1] / "embedders" / "data" / "multi_vector"

TEXTS = [
    "how can you make it long",
    "",
    "the day, (a long day) of writing!",
    "a long day of writing and a way to write about it: written, written, written [SEP] zebra; how can you make it",
    "zebra zebra [MASK] it? [Q] the",
]
WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] [unused0] [unused1] the a and it is of to how can you make long day way write "
    "about s ing written , : . ? ! ( ) ##s ##ing ##ten w r t e i n g"
)


def main() -> None:
    """Write anew what the tool of this environment gives."""
    DATA.mkdir(exist_ok=True)
    (DATA / "texts.json").write_text(json.dumps(TEXTS, indent=1) + "\n", encoding="utf-8")
    checkpoints = DATA / "checkpoints"
    for name in ("bert", "modernbert"):
        write_checkpoint(checkpoints / name, name)
    {"pylate": write_pylate, "sentence_transformers": write_sentence_transformers}[sys.argv[1]](checkpoints)
    shutil.rmtree(checkpoints)
    for path in DATA.rglob("README.md"):
        path.unlink()
    for path in DATA.rglob("*.safetensors"):
        path.chmod(0o644)


def write_pylate(checkpoints: Path) -> None:
    """Repos of PyLate, and one in ColBERT's own format."""
    from pylate import models  # type: ignore[import-not-found]
    from torch import nn  # type: ignore[import-not-found]

    bert = models.ColBERT(
        str(checkpoints / "bert"), embedding_size=4, query_length=12, document_length=20, device="cpu"
    )
    bert[1] = models.Dense(8, 12, bias=True, activation_function=nn.Tanh(), use_residual=True)
    bert.append(models.Dense(12, 12, bias=False, use_residual=True))
    bert.append(models.Dense(12, 4, bias=False))
    save(bert, "pylate")
    modern = models.ColBERT(
        str(checkpoints / "modernbert"),
        embedding_size=4,
        query_length=9,
        document_length=16,
        do_query_expansion=False,
        skiplist_words=["the", "zebra"],
        document_prefix="",
        device="cpu",
    )
    save(modern, "pylate_no_expansion")
    write_stanford(checkpoints / "bert")
    for name in ("pylate", "pylate_no_expansion", "stanford"):
        model = models.ColBERT(str(DATA / name), device="cpu", model_kwargs={"dtype": "float32"})
        keep(name, model.encode(TEXTS, is_query=False), model.encode(TEXTS, is_query=True),
             model.encode(TEXTS, is_query=False, pool_factor=2, protected_tokens=1))  # fmt: skip


def write_stanford(checkpoint: Path) -> None:
    """A repo as ColBERT's authors save it: the layer beside the encoder's tensors."""
    from safetensors.numpy import load_file, save_file  # type: ignore[import-not-found]

    directory = DATA / "stanford"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(checkpoint, directory)
    tensors = {f"bert.{name}": value for name, value in load_file(checkpoint / "model.safetensors").items()}
    rng = np.random.default_rng(17)
    tensors["linear.weight"] = rng.normal(size=(6, 8)).astype(np.float32)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_bytes())
    write_json(directory / "config.json", config | {"architectures": ["HF_ColBERT"]})
    metadata = {"query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_maxlen": 10, "doc_maxlen": 18}
    write_json(directory / "artifact.metadata", metadata | {"attend_to_mask_tokens": False, "mask_punctuation": True})


def write_sentence_transformers(checkpoints: Path) -> None:
    """Repos of sentence-transformers' own class."""
    from sentence_transformers import MultiVectorEncoder  # type: ignore[import-not-found]
    from sentence_transformers.base.modules import Dense, Transformer  # type: ignore[import-not-found]
    from sentence_transformers.multi_vector_encoder.modules import (  # type: ignore[import-not-found]
        HierarchicalTokenPooling,
        MultiVectorMask,
    )
    from sentence_transformers.sentence_transformer.modules import Normalize  # type: ignore[import-not-found]
    from tokenizers import AddedToken
    from torch import nn

    def parts(kind: str, skipped: list[str], **keywords: Any) -> list[Any]:
        transformer = Transformer(str(checkpoints / kind), **keywords)
        transformer.tokenizer.add_tokens([AddedToken("[Q] ", normalized=False), AddedToken("[D] ", normalized=False)])
        transformer.model.resize_token_embeddings(len(transformer.tokenizer))
        return [
            transformer,
            Dense(8, 4, bias=False, activation_function=nn.Identity(), module_input_name="token_embeddings"),
            MultiVectorMask(skiplist_words=skipped),
            Normalize(module_input_name="token_embeddings"),
        ]

    prompts = {"query": "[Q] ", "document": "[D] "}
    fixed = {"strategy": "fixed", "attend": True, "length": 12}
    save(
        MultiVectorEncoder(
            modules=parts("bert", list(string.punctuation), query_expansion=fixed, document_length=20), prompts=prompts
        ),
        "multi_vector",
    )
    least = {"strategy": "min", "attend": False, "token": "[unused1]", "length": 8}
    modules = parts("modernbert", [], query_expansion=least, query_length=14)
    modules.append(HierarchicalTokenPooling(2.0, num_protected_tokens=2))
    save(MultiVectorEncoder(modules=modules, prompts={"query": "how it is: "}), "multi_vector_pooled")
    for name in ("multi_vector", "multi_vector_pooled"):
        model = MultiVectorEncoder(str(DATA / name), device="cpu", model_kwargs={"dtype": "float32"})
        pooled = model.encode_document(TEXTS, token_pooling=HierarchicalTokenPooling(2))
        keep(name, model.encode_document(TEXTS), model.encode_query(TEXTS), pooled)


def write_checkpoint(directory: Path, kind: str) -> None:
    """A random encoder with its tokenizer."""
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
    make = t.BertTokenizerFast if kind == "bert" else t.PreTrainedTokenizerFast
    make(
        tokenizer_object=tokenizer, model_max_length=22, **{f"{name}_token": word for name, word in named.items()}
    ).save_pretrained(directory)
    sizes: dict[str, Any] = {
        "vocab_size": len(words), "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 12, "max_position_embeddings": 24, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(7)
    if kind == "bert":
        model = t.BertModel(t.BertConfig(**sizes), add_pooling_layer=False)
    else:
        more = {"bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "local_attention": 32}
        model = t.ModernBertModel(t.ModernBertConfig(**sizes, **more))
    randomize(model)
    model.save_pretrained(directory)


def randomize(model: Any) -> None:
    """Random numbers also where they are constant at the start: biases, norms."""
    import torch

    torch.manual_seed(11)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn_like(tensor) * 0.5 + (0.6 if tensor.ndim == 1 else 0.0))


def save(model: Any, name: str) -> None:
    """Save it with random weights."""
    shutil.rmtree(DATA / name, ignore_errors=True)
    randomize(model)
    model.save_pretrained(str(DATA / name))


def keep(name: str, documents: Any, queries: Any, pooled: Any) -> None:
    """Keep matrices, one below the other, with how many rows each has."""
    arrays = {}
    for kind, matrices in (("documents", documents), ("queries", queries), ("pooled", pooled)):
        arrays[kind] = np.concatenate([np.asarray(matrix) for matrix in matrices])
        arrays[f"{kind}_rows"] = np.array([len(matrix) for matrix in matrices])
    np.savez_compressed(DATA / f"{name}.npz", allow_pickle=False, **arrays)


def write_json(path: Path, value: object) -> None:
    """Write it as the libraries do."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
