"""From a config to a loaded encoder: the one place that knows which module serves which `spec.encoder`."""

from asyncembed.encoders.encoder import Encoder, EncoderConfig
from asyncembed.errors import UnsupportedModelError


def build(config: EncoderConfig) -> Encoder:
    """Load the model of `config`; blocks while it reads files and builds the session.

    Raises:
        UnsupportedModelError: No encoder has this name, or the model asks for something it cannot do.
        RuntimeMissingError: onnxruntime or the execution provider asked for is not installed.
    """
    match config.spec.encoder:
        case "dense":
            from asyncembed.encoders.dense import DenseEncoder

            return DenseEncoder(config)
        case "static":
            from asyncembed.encoders.static import StaticEncoder

            return StaticEncoder(config)
        case unknown:
            raise UnsupportedModelError(f"no encoder is called {unknown!r}", model=config.spec.name)
