"""Sparse embeddings and reranking, side by side with fastembed.

    uv run python -m benchmarks.sparse_rerank [bm25] [splade] [rerank] [--rounds 5]

- BM25: docstrings of the standard library, whose stop words are given to both sides; two workers here, and fastembed
  both in its one process and with `parallel=2`.
- SPLADE: a masked language model of the size of BERT base (12 layers, 768 wide, 30522 words) with random weights, on
  texts of mixed length.
- Rerank: one query and 200 documents of mixed length, with a cross-encoder of the size of MiniLM-L6 (384 wide).

Both sides read the same files and have all cores: fastembed in one session that uses them all, this package in two
workers of one thread each. fastembed gets batches of 32 for SPLADE (its default of 256 would take tens of GB here) and
its defaults elsewhere. The sides alternate in one run; the results are compared first.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import onnx
import psutil
from fastembed import SparseTextEmbedding as FastembedSparse
from fastembed.rerank.cross_encoder import TextCrossEncoder as FastembedCrossEncoder
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from asyncembed import SparseTextEmbedding, TextCrossEncoder
from benchmarks.common import machine, say, spread, texts

BM25, SPLADE, RERANKER = "Qdrant/bm25", "prithivida/Splade_PP_en_v1", "Xenova/ms-marco-MiniLM-L-6-v2"
STOP_WORDS = {"a", "an", "and", "are", "as", "be", "by", "for", "if", "in", "is", "it", "of", "on", "or", "the", "to"}
QUERY = "how do I wait for several tasks with a time limit"
WORDS = 30_522
LIMIT = 512

Side = Callable[[], Awaitable[Sequence[Any]]]


async def compare(name: str, ours: Side, others: Mapping[str, Side], rounds: int, check: Callable[..., None]) -> None:
    """Time the sides in turn, and print medians and ratios."""
    sides = {"asyncembed": ours, **others}
    results = {label: await side() for label, side in sides.items()}
    for label in others:
        check(results["asyncembed"], results[label])
    seconds: dict[str, list[float]] = {label: [] for label in sides}
    for _ in range(rounds):
        for label, side in sides.items():
            started = time.perf_counter()
            await side()
            seconds[label].append(time.perf_counter() - started)
    say(f"\n{name}")
    for label, values in seconds.items():
        ratios = [other / own for other, own in zip(values, seconds["asyncembed"], strict=True)]
        say(f"  {label:<24} {spread(values)} s   {statistics.median(ratios):.2f} times asyncembed's")


# ---------------------------------------------------------------- the three comparisons


async def bm25(rounds: int) -> None:
    documents = texts(20_000)
    theirs = FastembedSparse(BM25, specific_model_path=".", stopwords=STOP_WORDS)

    async def one_process() -> Sequence[Any]:
        return list(theirs.embed(documents))

    async def parallel() -> Sequence[Any]:
        return list(theirs.embed(documents, parallel=2))

    async with SparseTextEmbedding(BM25, stopwords=STOP_WORDS, workers=2, threads=1) as model:

        async def ours() -> Sequence[Any]:
            return await model.embed(documents).collect()

        words = await model.token_count(documents)
        title = f"BM25: {len(documents)} documents, {words} words"
        others = {"fastembed": one_process, "fastembed, parallel=2": parallel}
        await compare(title, ours, others, rounds, same_vectors)


async def splade(rounds: int, directory: Path) -> None:
    documents = mixed_texts(64, median=60)
    write_transformer(directory / "model.onnx", layers=12, width=768, head="words")
    theirs = FastembedSparse(SPLADE, specific_model_path=str(directory))

    async def fastembed() -> Sequence[Any]:
        return list(theirs.embed(documents, batch_size=32))

    async with SparseTextEmbedding(SPLADE, model_path=directory, workers=2, threads=1) as model:

        async def ours() -> Sequence[Any]:
            return await model.embed(documents).collect()

        title = f"SPLADE: {len(documents)} texts, {await model.token_count(documents)} tokens"
        await compare(title, ours, {"fastembed": fastembed}, rounds, same_vectors)


async def rerank(rounds: int, directory: Path) -> None:
    documents = mixed_texts(200, median=90)
    write_transformer(directory / "onnx" / "model.onnx", layers=6, width=384, head="score")
    theirs = FastembedCrossEncoder(RERANKER, specific_model_path=str(directory))

    async def fastembed() -> Sequence[Any]:
        return list(theirs.rerank(QUERY, documents))

    async with TextCrossEncoder(RERANKER, model_path=directory, workers=2, threads=1) as model:

        async def ours() -> Sequence[Any]:
            return list(await model.rerank(QUERY, documents, priority="interactive").collect())

        tokens = await model.token_count([(QUERY, document) for document in documents])
        title = f"Rerank: 1 query, {len(documents)} documents, {tokens} tokens"
        await compare(title, ours, {"fastembed": fastembed}, rounds, same_scores)


def same_vectors(found: Sequence[Any], expected: Sequence[Any]) -> None:
    for own, other in zip(found, expected, strict=True):
        ours, theirs = own.as_dict(), other.as_dict()
        # A logit next to 0 may be an entry for one side only.
        for index in ours.keys() | theirs.keys():
            difference = abs(ours.get(index, 0) - theirs.get(index, 0))
            assert difference < 1e-3, (index, ours.get(index), theirs.get(index))


def same_scores(found: Sequence[Any], expected: Sequence[Any]) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------- inputs and models


def mixed_texts(count: int, median: int) -> list[str]:
    """Texts of words of the vocabulary, whose lengths are spread as those of passages are (log-normal)."""
    chance = random.Random(7)
    lengths = [min(LIMIT, max(3, round(chance.lognormvariate(np.log(median), 0.8)))) for _ in range(count)]
    return [" ".join(f"w{chance.randrange(WORDS - 10)}" for _ in range(length)) for length in lengths]


def write_tokenizer(directory: Path) -> None:
    """A word is a token: w0, w1, ..."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(WORDS - 5))]
    tokenizer = Tokenizer(models.WordLevel({token: id_ for id_, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(tokens[:5])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"model_max_length": LIMIT, "pad_token": "[PAD]"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    (directory / "special_tokens_map.json").write_text(json.dumps({"pad_token": "[PAD]"}), "utf-8")
    (directory / "config.json").write_text(json.dumps({"pad_token_id": 0}), "utf-8")


class Graph:
    """Nodes and random weights of a graph, collected by name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)

    def constant(self, values: Any) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def matrix(self, rows: int, columns: int) -> str:
        scale = np.float32(1 / np.sqrt(rows))
        return self.constant(self._random.standard_normal((rows, columns), dtype=np.float32) * scale)

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def normalized(self, hidden: str, width: int) -> str:
        ones, zeros = self.constant(np.ones(width, np.float32)), self.constant(np.zeros(width, np.float32))
        return self.add("LayerNormalization", hidden, ones, zeros, axis=-1)

    def heads(self, hidden: str, weights: str, width: int, order: list[int]) -> str:
        shape = self.constant(np.array([0, 0, width // 64, 64]))
        return self.add("Transpose", self.add("Reshape", self.add("MatMul", hidden, weights), shape), perm=order)


def write_transformer(path: Path, *, layers: int, width: int, head: str) -> None:
    """A BERT of this size with random weights, and logits for words or one score as its output."""
    write_tokenizer(path.parent if path.parent.name != "onnx" else path.parent.parent)
    graph = Graph()
    embeddings = graph.matrix(WORDS, width)
    hidden = graph.normalized(graph.add("Gather", embeddings, "input_ids"), width)
    mask = graph.add("Cast", "attention_mask", to=TensorProto.FLOAT)
    mask = graph.add("Unsqueeze", mask, graph.constant(np.array([1, 2])))
    absent = graph.add("Sub", graph.constant(np.float32(1)), mask)
    penalty = graph.add("Mul", absent, graph.constant(np.float32(-1e9)))
    for _ in range(layers):
        query = graph.heads(hidden, graph.matrix(width, width), width, [0, 2, 1, 3])
        key = graph.heads(hidden, graph.matrix(width, width), width, [0, 2, 3, 1])
        value = graph.heads(hidden, graph.matrix(width, width), width, [0, 2, 1, 3])
        scores = graph.add("Mul", graph.add("MatMul", query, key), graph.constant(np.float32(1 / 8)))
        attention = graph.add("Softmax", graph.add("Add", scores, penalty), axis=-1)
        mixed = graph.add("Transpose", graph.add("MatMul", attention, value), perm=[0, 2, 1, 3])
        mixed = graph.add("Reshape", mixed, graph.constant(np.array([0, 0, width])))
        mixed = graph.add("MatMul", mixed, graph.matrix(width, width))
        hidden = graph.normalized(graph.add("Add", hidden, mixed), width)
        wide = graph.add("MatMul", hidden, graph.matrix(width, 4 * width))
        half = graph.add("Mul", wide, graph.constant(np.float32(0.5)))
        curve = graph.add("Erf", graph.add("Div", wide, graph.constant(np.float32(np.sqrt(2)))))
        active = graph.add("Mul", half, graph.add("Add", curve, graph.constant(np.float32(1))))
        narrow = graph.add("MatMul", active, graph.matrix(4 * width, width))
        hidden = graph.normalized(graph.add("Add", hidden, narrow), width)
    if head == "words":
        logits = graph.add("MatMul", hidden, graph.matrix(width, WORDS))
        # Trained models let few words through; so do these, of which about one in 300 per token is positive.
        graph.add("Sub", logits, graph.constant(np.float32(2.7)), output="output")
        shape: list[str | int] = ["batch", "tokens", WORDS]
    else:
        first = graph.add("Gather", hidden, graph.constant(np.int64(0)), axis=1)
        graph.add("MatMul", first, graph.matrix(width, 1), output="output")
        shape = ["batch", 1]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)
    built = helper.make_graph(graph.nodes, "transformer", inputs, [output], graph.weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(built, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["bm25", "splade", "rerank"])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    say(f"{machine()}; load {psutil.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as directory:
        for part in arguments.parts:
            match part:
                case "bm25":
                    await bm25(arguments.rounds)
                case "splade":
                    await splade(arguments.rounds, Path(directory) / "splade")
                case "rerank":
                    await rerank(arguments.rounds, Path(directory) / "rerank")
                case unknown:
                    raise SystemExit(f"no part is called {unknown}")


if __name__ == "__main__":
    anyio.run(main)
