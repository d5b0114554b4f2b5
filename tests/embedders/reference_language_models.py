"""Makes repos of language models that embed and rerank, and what their authors' code gives, with torch.

Run in a throwaway environment with torch, transformers, sentence-transformers and mxbai-rerank:
`python tests/embedders/reference_language_models.py`. It writes into `tests/embedders/data` a random model of some
20 kB for each layout of files, with `reference.json`: texts or pairs, and vectors or scores in float32.
"""

import json
import shutil
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"

TEXTS = ["", "hello", "Backpressure keeps the source waiting.\n", "naïve café 東京 🙂", "word " * 90]
PAIRS = [
    ("what is backpressure?", "The source waits as the consumer does."),
    ("what is backpressure?\n", "  A document that ends with lines.\n\n"),
    ("", ""),
    ("naïve <|im_end|>", "café 東京 🙂"),
    ("short", "a long document " * 60),
    ("a long query " * 60, "short"),
    ("a long query " * 60, "a long document " * 60),
]
INSTRUCTION = "Find what contradicts the query"
QUERY_PROMPT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
LIMIT = 192

SIZE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}

TEMPLATE = """\
{%- set instruction = messages | selectattr("role", "eq", "system") | map(attribute="content") | first | \
default("Given a web search query, retrieve relevant passages that answer the query") -%}
<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. \
Note that the answer can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: {{ instruction }}
<Query>: {{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}
<Document>: {{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}<|im_end|>
<|im_start|>assistant
<think>

</think>

{{ "" }}"""


def main() -> None:
    """Write everything anew."""
    DATA.mkdir(exist_ok=True)
    for name, make in {
        "qwen3_embedding": qwen3_embedding,
        "embedding_gemma": embedding_gemma,
        "qwen3_reranker": qwen3_reranker,
        "logit_score": logit_score,
        "templated_classifier": templated_classifier,
        "mxbai_rerank": mxbai_rerank,
    }.items():
        folder = DATA / name
        shutil.rmtree(folder, ignore_errors=True)
        reference = make(folder)
        for path in folder.rglob("*"):
            if path.name in ("README.md", "generation_config.json", ".gitattributes"):
                path.unlink()
            elif path.is_file():
                path.chmod(0o644)
        text = json.dumps(reference, ensure_ascii=False)
        (folder / "reference.json").write_text(text + "\n", encoding="utf-8")


def tokenizer(ends: tuple[str, ...] = (), *, begins: tuple[str, ...] = (), limit: int = LIMIT) -> Any:
    """Byte-level BPE with Qwen's rules for words, few merges, and its special tokens."""
    import transformers  # type: ignore[import-not-found]
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    ids = {letter: id_ for id_, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    for word in ("yes", "no", "Ġdoc", "Ġquery", "Judge", "Ġthe", "the", "ument", "ĊĊ", "Ċ<", "?Ċ", ".Ċ"):
        current = word[0]
        for letter in word[1:]:
            if current + letter not in ids:
                merges.append((current, letter))
                ids[current + letter] = len(ids)
            current += letter
    library = Tokenizer(models.BPE(ids, merges))
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<bos>", "<eos>"]
    library.add_special_tokens(special)
    if begins or ends:
        library.post_processor = processors.TemplateProcessing(
            single=" ".join([*begins, "$A", *ends]),
            special_tokens=[(token, library.token_to_id(token)) for token in (*begins, *ends)],
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=library,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        model_max_length=limit,
        padding_side="left",
    )


def randomized(model: Any, seed: int) -> Any:
    """The model with random weights of bfloat16's precision, biases and norms as well."""
    import torch  # type: ignore[import-not-found]

    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn_like(tensor) * 0.3 + (1.0 if tensor.ndim == 1 else 0.0))
    return model.to(torch.bfloat16).eval()


def saved(model: Any, words: Any, folder: Path) -> str:
    """The model and its tokenizer as files."""
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def ids_of(words: Any) -> dict[str, Any]:
    """What a config says of the vocabulary."""
    padding = words.convert_tokens_to_ids("<|endoftext|>")
    return {"vocab_size": len(words), "pad_token_id": padding, "bos_token_id": None, "eos_token_id": padding}


FLOAT32: dict[str, Any] = {"model_kwargs": {"dtype": "float32"}, "device": "cpu"}


def qwen3_embedding(folder: Path) -> dict[str, Any]:
    """As Qwen3-Embedding: the last token, which the tokenizer appends, after a prompt."""
    import transformers as t
    from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]
    from sentence_transformers.models import Normalize, Pooling, Transformer  # type: ignore[import-not-found]

    words = tokenizer(("<|endoftext|>",))
    model = randomized(t.Qwen3Model(t.Qwen3Config(**SIZE, **ids_of(words), head_dim=8)), 1)
    transformer = Transformer(saved(model, words, folder))
    whole = SentenceTransformer(
        modules=[transformer, Pooling(16, "lasttoken"), Normalize()],
        prompts={"query": QUERY_PROMPT, "document": ""},
        device="cpu",
    )
    whole.save(str(folder))
    return vectors(folder)


def embedding_gemma(folder: Path) -> dict[str, Any]:
    """As EmbeddingGemma: the mean of all tokens, two linear layers, prompts for both roles."""
    import torch
    import transformers as t
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Normalize, Pooling, Transformer

    words = tokenizer(("<eos>",), begins=("<bos>",))
    config = t.Gemma3TextConfig(
        **SIZE | {"num_key_value_heads": 1, "num_hidden_layers": 3},
        **ids_of(words),
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=16,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        use_bidirectional_attention=True,
    )
    transformer = Transformer(saved(randomized(t.Gemma3TextModel(config), 2), words, folder))
    denses = [
        Dense(size, other, bias=False, activation_function=torch.nn.Identity()) for size, other in ((16, 32), (32, 16))
    ]
    whole = SentenceTransformer(
        modules=[transformer, Pooling(16, "mean"), *denses, Normalize()],
        prompts={"query": "task: search result | query: ", "document": "title: none | text: "},
        device="cpu",
    )
    whole.save(str(folder))
    return vectors(folder)


def vectors(folder: Path) -> dict[str, Any]:
    """Of the texts: by themselves, and as queries and documents."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), **FLOAT32)
    kinds = {"plain": {}, "query": {"prompt_name": "query"}, "document": {"prompt_name": "document"}}
    return {"texts": TEXTS, **{kind: model.encode(TEXTS, **how).tolist() for kind, how in kinds.items()}}


def qwen3_reranker(folder: Path) -> dict[str, Any]:
    """As Qwen3-Reranker, whose scores are computed as its model card does."""
    import torch
    import transformers as t

    words = tokenizer()
    model = randomized(t.Qwen3ForCausalLM(t.Qwen3Config(**SIZE, **ids_of(words), head_dim=8)), 3)
    saved(model, words, folder)
    model = t.Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    start, end = (
        words.encode(text, add_special_tokens=False)
        for text in (
            (
                "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
                'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
            ),
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        )
    )

    def score(query: str, document: str, instruction: str) -> float:
        middle = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
        room = LARGE_LIMIT - len(start) - len(end)
        ids = start + words.encode(middle, add_special_tokens=False)[:room] + end
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        yes, no = (words.convert_tokens_to_ids(word) for word in ("yes", "no"))
        return float(logits[yes] - logits[no])

    default = "Given a web search query, retrieve relevant passages that answer the query"
    return {
        "pairs": PAIRS,
        "limit": LARGE_LIMIT,
        "plain": [score(*pair, default) for pair in PAIRS],
        "instructed": [score(*pair, INSTRUCTION) for pair in PAIRS],
        "instruction": INSTRUCTION,
    }


LARGE_LIMIT = 700
"""The words around a pair take some 300 tokens of the small vocabulary."""


def logit_score(folder: Path) -> dict[str, Any]:
    """As sentence-transformers saves a language model with `LogitScore` and a chat template."""
    import transformers as t
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Transformer  # type: ignore[import-not-found]
    from sentence_transformers.cross_encoder.modules import LogitScore  # type: ignore[import-not-found]

    words = tokenizer(limit=LARGE_LIMIT)
    words.chat_template = TEMPLATE
    model = randomized(t.Qwen3ForCausalLM(t.Qwen3Config(**SIZE, **ids_of(words), head_dim=8)), 4)
    transformer = Transformer(saved(model, words, folder), transformer_task="text-generation")
    yes, no = (words.convert_tokens_to_ids(word) for word in ("yes", "no"))
    CrossEncoder(modules=[transformer, LogitScore(yes, no)], device="cpu").save(str(folder))
    return predicted(folder)


def templated_classifier(folder: Path) -> dict[str, Any]:
    """As sentence-transformers saves a classifier on a language model, which reads a chat template's text."""
    import transformers as t
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Transformer

    words = tokenizer(limit=LARGE_LIMIT)
    words.chat_template = TEMPLATE
    way = {"method": "forward", "method_output_name": "logits"}
    config = t.Qwen3Config(**SIZE, **ids_of(words), head_dim=8, num_labels=1)
    model = randomized(t.Qwen3ForSequenceClassification(config), 5)
    transformer = Transformer(
        saved(model, words, folder),
        transformer_task="sequence-classification",
        modality_config={"text": way, "message": way | {"format": "flat"}},
        module_output_name="scores",
    )
    CrossEncoder(modules=[transformer], device="cpu").save(str(folder))
    return predicted(folder)


def predicted(folder: Path) -> dict[str, Any]:
    """The scores of the pairs, without and with an instruction; one by one, as a batch is padded."""
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), **FLOAT32)

    def scores(**how: Any) -> list[float]:
        raw = torch.nn.Identity()
        return [float(model.predict([pair], activation_fn=raw, batch_size=1, **how)[0]) for pair in PAIRS]

    return {
        "pairs": PAIRS,
        "limit": LARGE_LIMIT,
        "plain": scores(),
        "instructed": scores(prompt=INSTRUCTION),
        "instruction": INSTRUCTION,
    }


def mxbai_rerank(folder: Path) -> dict[str, Any]:
    """As mxbai-rerank-v2, whose scores its authors' package computes."""
    import torch
    import transformers as t
    from mxbai_rerank import MxbaiRerankV2  # type: ignore[import-not-found]

    words = tokenizer()
    saved(randomized(t.Qwen2ForCausalLM(t.Qwen2Config(**SIZE, **ids_of(words))), 6), words, folder)
    model = MxbaiRerankV2(str(folder), device="cpu", torch_dtype=torch.float32, max_length=300)

    def prepare(first: list[int], second: list[int], *, max_length: int, **_: Any) -> dict[str, list[int]]:
        """What transformers had until its version 5, with `truncation="only_second"`."""
        return {"input_ids": first + second[: max_length - len(first)]}

    model.tokenizer.prepare_for_model = prepare

    def scores(instruction: str | None) -> list[float]:
        return [float(model.predict([query], [document], instruction=instruction)[0]) for query, document in PAIRS]

    return {
        "pairs": PAIRS,
        # Theirs is the limit of what is read of a pair; the words around it are beside it.
        "limit": 300 + model.predefined_length,
        "plain": scores(None),
        "instructed": scores(INSTRUCTION),
        "instruction": INSTRUCTION,
    }


if __name__ == "__main__":
    main()
