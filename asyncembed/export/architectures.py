"""Which architectures can be exported: a new one is a record here, or a module beside `bert_like`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from asyncembed.errors import ModelLoadError, UnsupportedModelError
from asyncembed.export import bert_like
from asyncembed.export.onnx_builder import Graph
from asyncembed.repo_files import quoted, read_json
from asyncembed.runtime.safetensors import Tensors, find_weights


class Architecture(Protocol):
    """What one kind of encoder computes, apart from any weights. `model` is only used in messages."""

    def check(self, config: Mapping[str, object], model: str) -> None:
        """Raise `UnsupportedModelError` where `config` asks for something that `build` does not compute."""
        ...

    def build(self, config: Mapping[str, object], tensors: Tensors, model: str) -> Graph:
        """The graph of the encoder that `config` describes, with the weights `tensors`.

        Its inputs are int64 (batch, tokens), its output is `last_hidden_state`, float32 (batch, tokens, dim).
        """
        ...


ARCHITECTURES: Mapping[str, Architecture] = {
    "bert": bert_like.BERT,
    "camembert": bert_like.ROBERTA,
    "distilbert": bert_like.DISTILBERT,
    "electra": bert_like.ELECTRA,
    "mpnet": bert_like.MPNET,
    "roberta": bert_like.ROBERTA,
    "xlm-roberta": bert_like.ROBERTA,
}
"""By the `model_type` of config.json."""


def is_exportable(directory: Path) -> bool:
    """Whether `directory` holds weights and a config.json that `ensure_graph` can make a graph of.

    Reads the config only: weights that are broken or incomplete are found by the export itself.
    """
    try:
        read_config(directory)
        return bool(find_weights(directory))
    except (ModelLoadError, UnsupportedModelError):
        return False


def read_config(directory: Path) -> tuple[Architecture, Mapping[str, object]]:
    """The architecture that the `config.json` of `directory` names, and that config.

    Raises:
        ModelLoadError: There is no config.json, or it is broken.
        UnsupportedModelError: The architecture is not known, or something in the config is not computed.
    """
    model = str(directory)
    config = read_json(directory / "config.json")
    if not isinstance(config, dict):
        raise ModelLoadError(f"{directory / 'config.json'} cannot be read: it is no JSON object", model=model)
    name = config.get("model_type")
    architecture = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if architecture is None:
        raise UnsupportedModelError(
            f"{model} has no ONNX file, and one cannot be built for its architecture {quoted(name)}: "
            f"those known are {', '.join(ARCHITECTURES)}",
            model=model,
        )
    custom = config.get("auto_map")
    if isinstance(custom, dict) and "AutoModel" in custom:
        raise UnsupportedModelError(
            f"{model} has no ONNX file, and one cannot be built: its config.json says {name!r}, "
            f"but also that the model brings code of its own (auto_map: {quoted(custom['AutoModel'])})",
            model=model,
        )
    architecture.check(config, model)
    return architecture, config
