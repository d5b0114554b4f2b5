"""From a config to a loaded encoder: the one place that knows which module serves which `spec.encoder`.

An encoder of somebody else's is named "package.module:factory"; the factory takes the `EncoderConfig`. Workers do not
import the caller's main module, so it must live in an importable one.
"""

from collections.abc import Callable
from importlib import import_module

from asyncembed.encoders.encoder import Encoder, EncoderConfig
from asyncembed.errors import UnsupportedModelError


def build(config: EncoderConfig) -> Encoder:
    """Load the model of `config`; blocks while it reads files and builds the session.

    Raises:
        UnsupportedModelError: No encoder has this name, or the model asks for something it cannot do.
        RuntimeMissingError: onnxruntime or the execution provider asked for is not installed.
    """
    name = config.spec.encoder
    if ":" in name:
        return _foreign(name)(config)
    match name:
        case "dense":
            from asyncembed.encoders.dense import DenseEncoder

            return DenseEncoder(config)
        case "colbert" | "token_states":
            from asyncembed.encoders.colbert import LateInteractionEncoder

            return LateInteractionEncoder(config)
        case "image":
            from asyncembed.encoders.vision import ImageEncoder

            return ImageEncoder(config)
        case "colpali":
            from asyncembed.encoders.colpali import ColPaliEncoder

            return ColPaliEncoder(config)
        case "colmodernvbert":
            from asyncembed.encoders.colpali import ColModernVBertEncoder

            return ColModernVBertEncoder(config)
        case "static":
            from asyncembed.encoders.static import StaticEncoder

            return StaticEncoder(config)
        case "splade":
            from asyncembed.encoders.splade import splade

            return splade(config)
        case "inference_free_splade":
            from asyncembed.encoders.splade import inference_free_splade

            return inference_free_splade(config)
        case "bm25":
            from asyncembed.encoders.bm25 import Bm25Encoder

            return Bm25Encoder(config)
        case "bm42":
            from asyncembed.encoders.bm42 import bm42

            return bm42(config)
        case "minicoil":
            from asyncembed.encoders.minicoil import minicoil

            return minicoil(config)
        case "cross_encoder":
            from asyncembed.encoders.reranker import CrossEncoder

            return CrossEncoder(config)
        case unknown:
            raise UnsupportedModelError(f"no encoder is called {unknown!r}", model=config.spec.name)


def _foreign(name: str) -> Callable[[EncoderConfig], Encoder]:
    module_name, _, attribute = name.partition(":")
    try:
        factory: Callable[[EncoderConfig], Encoder] = getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UnsupportedModelError(f"the encoder {name!r} cannot be imported in a worker: {error}") from error
    return factory
