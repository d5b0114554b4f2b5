"""The architectures whose graphs can be built, by the `model_type` of config.json."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from asyncembed.errors import ModelLoadError, UnsupportedModelError
from asyncembed.export.bert_like import ALBERT, BERT, DISTILBERT, ELECTRA, MPNET, ROBERTA
from asyncembed.export.construction import Answer, Construction
from asyncembed.export.deberta import DEBERTA_V2
from asyncembed.export.decoders import EUROBERT, GEMMA3, LLAMA, LLAMA_BIDIRECTIONAL, MISTRAL, QWEN2, QWEN3
from asyncembed.export.heads import Head, HeadBuilder, HeadName, name_of, states
from asyncembed.export.modernbert import MODERNBERT
from asyncembed.export.onnx_builder import Graph
from asyncembed.export.rotary_bert import GTE, NOMIC
from asyncembed.export.t5 import T5
from asyncembed.repo_files import quoted, read_json
from asyncembed.runtime.safetensors import Tensors


class Finish(Protocol):
    """What is done to a graph before it is written."""

    def __call__(self, graph: Graph, *, last: int) -> None:
        """`last` of its nodes, the first ones, compute something for each token."""


class Architecture(Protocol):
    """How the encoder of one kind of checkpoint computes."""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What may stand before every tensor's name where a checkpoint has a head around the encoder."""

    @property
    def word_embeddings(self) -> str:
        """The tensor with a row per token of the vocabulary, without a prefix."""

    @property
    def brings_code(self) -> bool:
        """Whether repos of this kind bring code of their own, which computes the same."""

    @property
    def heads(self) -> Mapping[HeadName, HeadBuilder]:
        """What may stand on the hidden states besides themselves."""

    def width(self, config: Mapping[str, Any]) -> int:
        """How many numbers a hidden state has."""

    def objections(self, config: Mapping[str, Any]) -> Iterator[str]:
        """Why the graph would not be the encoder that `config` describes. Whoever goes on after one must not."""

    def encode(self, c: Construction) -> str:
        """The flat hidden states after the last layer, (batch · tokens, width)."""


ARCHITECTURES: Mapping[str, Architecture] = {
    "albert": ALBERT,
    "bert": BERT,
    "camembert": ROBERTA,
    "deberta-v2": DEBERTA_V2,
    "distilbert": DISTILBERT,
    "electra": ELECTRA,
    "gte": GTE,
    "modernbert": MODERNBERT,
    "mpnet": MPNET,
    "new": GTE,
    "nomic_bert": NOMIC,
    "roberta": ROBERTA,
    "t5": T5,
    "xlm-roberta": ROBERTA,
    "eurobert": EUROBERT,
    "gemma3_text": GEMMA3,
    "llama": LLAMA,
    "llama_bidirec": LLAMA_BIDIRECTIONAL,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
}


_LIMITS: Mapping[str, int] = {
    **dict.fromkeys(("num_hidden_layers", "n_layers", "n_layer"), 2**12),
    **dict.fromkeys(("hidden_size", "dim", "n_embd", "head_dim"), 2**20),
}
"""Numbers that something is allocated by before a tensor is compared with them, and what they are far below."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A graph that can be built. `model` is for messages."""

    model: str
    architecture: Architecture
    config: Mapping[str, Any]
    head: Head

    def build(self, tensors: Tensors, *, in_chunks: bool = True, finish: Finish | None = None) -> Graph:
        """The graph, with the weights `tensors`; `in_chunks` as `ensure_graph` takes it.

        Inputs, int64 (batch, tokens): `input_ids`, `attention_mask` (1 for a real token, 0 for padding), and where the
        architecture has them, `token_type_ids`. Output: that of the head.

        Raises:
            ModelLoadError: A weight is missing, or has a shape that does not fit.
            UnsupportedModelError: A weight is quantised (raised when it is written).
        """
        architecture = self.architecture
        answer = self.head if isinstance(self.head, Answer) else None
        prefix = self._prefix(tensors)
        c = Construction.begin(
            self.config, tensors, model=self.model, prefix=prefix, answer=answer, in_chunks=in_chunks
        )
        hidden = architecture.encode(c)
        per_token = c.graph.size
        name = name_of(self.head)
        if name == "states":
            states(c, hidden, architecture.width(self.config))
        else:
            architecture.heads[name](c, hidden)
        if finish is not None:
            finish(c.graph, last=c.graph.size if name == "words" else per_token)
        return c.graph

    def vocabulary(self, tensors: Tensors) -> int:
        """How many words the encoder knows; `build` has seen that it has a table of them."""
        return tensors.shape(self._prefix(tensors) + self.architecture.word_embeddings)[0]

    def _prefix(self, tensors: Tensors) -> str:
        """What stands before the encoder's tensors."""
        architecture = self.architecture
        known = (prefix for prefix in architecture.prefixes if prefix + architecture.word_embeddings in tensors)
        return next(known, "")


def read_plan(directory: Path, head: Head = "states") -> Plan:
    """What the `config.json` of `directory` asks for.

    Raises:
        ModelLoadError: There is no config.json, or it is broken.
        UnsupportedModelError: The architecture is not known, or the graph would not be the encoder that is described.
    """
    model = str(directory)
    config = read_json(directory / "config.json")
    if not isinstance(config, dict):
        raise ModelLoadError(f"{directory / 'config.json'} cannot be read: it is no JSON object", model=model)
    for objection in _objections(config, head):
        raise UnsupportedModelError(
            f"{model} has no ONNX file, and none can be built: its config.json {objection}; use a repo that has one, "
            'or let sentence-transformers write one: SentenceTransformer(path, backend="onnx").save_pretrained(path)',
            model=model,
        )
    return Plan(model, ARCHITECTURES[config["model_type"]], config, head)


def _objections(config: Mapping[str, Any], head: Head) -> Iterator[str]:
    """Why the graph would not be what `config` describes. Whoever goes on after one must not."""
    name = config.get("model_type")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        yield f"names the architecture {quoted(name)}, and those known are {', '.join(ARCHITECTURES)}"
    architecture = ARCHITECTURES[config["model_type"]]
    custom = config.get("auto_map")
    if isinstance(custom, dict) and "AutoModel" in custom and not architecture.brings_code:
        yield f"says that the model brings code of its own (auto_map: {quoted(custom['AutoModel'])})"
    if config.get("quantization_config") is not None:
        yield f"has quantization_config = {quoted(config['quantization_config'])}, and only None is computed"
    for key, limit in _LIMITS.items():
        if type(config.get(key)) is int and config[key] >= limit:
            yield f"has no usable {key}"
    for key in ("rope_scaling", "rope_parameters"):
        if config.get(key) is not None and not isinstance(config[key], dict):
            yield f"has {key} = {quoted(config[key])}, and only an object says how positions rotate"
    yield from architecture.objections(config)
    if name_of(head) not in ("states", *architecture.heads):
        built = ", ".join(["states", *architecture.heads])
        yield f"names the architecture {quoted(name)}, of which only {built} are built, not {head}"
