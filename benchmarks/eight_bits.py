"""Graphs in 8 bits beside the float ones of the same weights, and beside onnxruntime's own dynamic quantisation.

All-MiniLM-L6-v2 with its real weights: speed, size, how near the vectors of docstrings are, and how much those of a
text differ alone and among others. A model of BERT-base's size with random weights: the same but the nearness, of which
random weights say nothing; and what it takes to make it. The sides run in turn, in one process, on one thread, and
processor time is counted, which is less disturbed by what else runs than the clock's.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

from asyncembed.cli.accuracy import compared
from asyncembed.export.graph_cache import ensure_graph
from benchmarks.common import machine, minilm, say, texts

SHAPES = [(1, 12), (4, 64), (1, 256), (16, 128)]
TOKENS_A_ROUND = 1024
TEXTS, LONGEST = 300, 256

Run = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], npt.NDArray[np.float32]]


def main() -> None:
    """Measure both models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=12, help="of the larger model")
    options = parser.parse_args()
    say(machine())
    with tempfile.TemporaryDirectory() as place:
        directory, _ = minilm()
        measure(directory, Path(place, "minilm"), rounds=options.rounds, is_real=True)
        base = write_random_bert(Path(place, "base"), layers=options.layers)
        measure(base, Path(place, "of base"), rounds=options.rounds, is_real=False)


def measure(directory: Path, place: Path, *, rounds: int, is_real: bool) -> None:
    """All of one model, with its graphs in `place`."""
    say(f"\n{directory.name}, {'real' if is_real else 'random'} weights")
    place.mkdir()
    graphs = {"fp32": make(directory, place, is_int8=False), "int8": make(directory, place, is_int8=True)}
    graphs["onnxruntime's"] = quantize_dynamically(graphs["fp32"], place)
    sizes = {side: sum(file.stat().st_size for file in graph.parent.iterdir()) for side, graph in graphs.items()}
    for side, size in sizes.items():
        say(f"  {side}: {size / 1e6:.1f} MB, {size / sizes['fp32']:.3f} times fp32")
    runs = {side: load(graph) for side, graph in graphs.items()}
    if is_real:
        compare_vectors(directory, runs)
    for shape in SHAPES:
        compare_speed(runs, shape, rounds)


def make(directory: Path, place: Path, *, is_int8: bool) -> Path:
    """Build a graph in a process of its own, whose time and peak memory are told."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        graph, seconds, peak_bytes = pool.apply(_make, (directory, place, is_int8))
    form = "int8" if is_int8 else "fp32"
    say(f"  made {form} in {seconds:.1f} s of processor time, peak of its process {peak_bytes / 1e6:.0f} MB")
    return graph


def _make(directory: Path, place: Path, is_int8: bool) -> tuple[Path, float, int]:
    started = time.process_time()
    graph = ensure_graph(directory, is_int8=is_int8, cache_dir=place)
    return graph, time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def quantize_dynamically(graph: Path, place: Path) -> Path:
    """What onnxruntime makes of the float graph: a scale for a whole batch of activations."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    made = place / "dynamic" / "model.onnx"
    made.parent.mkdir()
    quantize_dynamic(graph, made, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
    return made


def load(graph: Path) -> Run:
    """A session on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return np.asarray(session.run(None, inputs)[0], np.float32)

    return run


def compare_vectors(directory: Path, runs: Mapping[str, Run]) -> None:
    """Of each side, against fp32's; and alone, against those in batches of five."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.no_padding()
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts(TEXTS))]
    exact = vectors(runs["fp32"], ids, size=1)
    for side, run in runs.items():
        alone, together = vectors(run, ids, size=1), vectors(run, ids, size=5)
        near, differs = compared(exact, alone), np.abs(alone - together).max()
        say(
            f"  {side}: cosine {near.cosine_mean:.5f} on average, {near.cosine_min:.5f} at least, of the ten nearest "
            f"{near.nearest_shared:.1%} shared; alone and among others up to {differs:.1e} apart"
        )


def vectors(run: Run, ids: list[list[int]], *, size: int) -> npt.NDArray[np.float32]:
    """Mean pooling and normalisation, in padded batches of this size."""
    found = []
    for start in range(0, len(ids), size):
        batch = ids[start : start + size]
        mask = np.array([[1] * len(row) + [0] * (max(map(len, batch)) - len(row)) for row in batch])
        padded = np.array([[*row, *[0] * (mask.shape[1] - len(row))] for row in batch])
        summed = (run(padded, mask) * mask[..., None]).sum(axis=1)
        found.append(summed / np.linalg.norm(summed, axis=1, keepdims=True))
    return np.concatenate(found).astype(np.float32)


def compare_speed(runs: Mapping[str, Run], shape: tuple[int, int], rounds: int) -> None:
    """Median processor time of each side, in turn."""
    ids = np.random.default_rng(0).integers(1000, 30000, shape)
    mask = np.ones_like(ids)
    seconds: dict[str, list[float]] = {side: [] for side in runs}
    for number in range(rounds + 1):
        for side in sorted(runs, reverse=bool(number % 2)):
            started = time.process_time()
            for _ in range(max(1, TOKENS_A_ROUND // ids.size)):
                runs[side](ids, mask)
            seconds[side].append(time.process_time() - started)
    medians = {side: statistics.median(values[1:]) for side, values in seconds.items()}
    least = {side: min(values[1:]) for side, values in seconds.items()}
    said = (
        f"{side} {medians['fp32'] / medians[side]:.2f} ({least['fp32'] / least[side]:.2f})"
        for side in runs
        if side != "fp32"
    )
    say(f"  {shape[0]} x {shape[1]}: times as fast as fp32, by the medians (by the least): {', '.join(said)}")


def write_random_bert(directory: Path, *, layers: int, width: int = 768, words: int = 30522) -> Path:
    """A BERT of this size, as safetensors."""
    rows = {"word": words, "position": 512, "token_type": 2}
    shapes: dict[str, tuple[int, ...]] = {
        f"embeddings.{name}_embeddings.weight": (count, width) for name, count in rows.items()
    }
    norms = ["embeddings.LayerNorm"]
    for layer in (f"encoder.layer.{i}." for i in range(layers)):
        norms += [f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"]
        maps = {f"attention.self.{name}": (width, width) for name in ("query", "key", "value")}
        maps |= {"attention.output.dense": (width, width), "intermediate.dense": (4 * width, width)}
        for name, shape in (maps | {"output.dense": (width, 4 * width)}).items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
    for norm in norms:
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    directory.mkdir()
    _write(directory / "model.safetensors", shapes)
    config = {"num_hidden_layers": layers, "num_attention_heads": 12, "hidden_size": width, "vocab_size": words}
    (directory / "config.json").write_text(json.dumps({"model_type": "bert", **config}), "utf-8")
    return directory


def _write(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Random tensors, and ones for the weights of norms."""
    header, place = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    said = json.dumps(header).encode()
    random = np.random.default_rng(1)
    with path.open("wb") as file:
        file.write(len(said).to_bytes(8, "little") + said)
        for name, shape in shapes.items():
            values = random.standard_normal(shape, np.float32) * np.float32(0.05)
            file.write((values + ("LayerNorm.weight" in name)).astype("<f4").tobytes())


if __name__ == "__main__":
    main()
