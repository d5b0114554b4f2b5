"""Which of a graph's outputs a model's spec means."""

from asyncembed.catalogue.spec import ModelSpec
from asyncembed.encoders.settings import GraphSettings
from asyncembed.errors import UnsupportedModelError
from asyncembed.runtime.session import Session

FINISHED_OUTPUTS = ("sentence_embedding", "sentence_embeddings", "text_embeds", "dense_vecs")
"""What exporters call the vector of a whole text. It is not `pooler_output`, which only served to train the model."""

_STATES = ("last_hidden_state", "token_embeddings", "hidden_states")
"""What they call the hidden states."""


def find_output(session: Session, spec: ModelSpec, settings: GraphSettings) -> str:
    """Name of the graph's output that `spec` means.

    Raises:
        UnsupportedModelError: The graph has no such output.
    """
    names = session.output_names
    wanted = spec.graph_output
    if settings.output_name in names:
        return settings.output_name
    if settings.takes_finished == "any" and (finished := _finished_output(session, spec.dim)):
        return finished
    if isinstance(wanted, str) and wanted in names:
        return wanted
    if isinstance(wanted, int) and wanted < len(names):
        return _with_states(session, spec, names[wanted]) if _asks_for_states(spec, settings) else names[wanted]
    raise UnsupportedModelError(
        f"the graph {spec.model_file} has no output {wanted!r}, only {', '.join(names)}", model=spec.name
    )


def is_finished(session: Session, spec: ModelSpec, settings: GraphSettings, output: str) -> bool:
    """Whether this output is a vector to which nothing of what the repo says is to be done, but unit length."""
    return settings.takes_finished is not None and _may_be_vectors(session, output, spec.dim)


def _finished_output(session: Session, dim: int | None) -> str | None:
    names = session.output_names
    candidates = (*FINISHED_OUTPUTS, *(names if len(names) == 1 else ()))
    return next((name for name in candidates if name in names and _may_be_vectors(session, name, dim)), None)


def _may_be_vectors(session: Session, output: str, dim: int | None) -> bool:
    shape = session.output_shape(output)
    if not shape:  # not stated: then the name has to do
        return output in FINISHED_OUTPUTS
    return len(shape) == 2 and (dim is None or shape[1] in (None, dim))


def _asks_for_states(spec: ModelSpec, settings: GraphSettings) -> bool:
    """Whether hidden states are to be pooled, and nobody says which output they are."""
    is_named = spec.is_catalogued or spec.graph_output != 0 or settings.takes_finished == "named"
    return spec.pooling != "none" and not is_named


def _with_states(session: Session, spec: ModelSpec, output: str) -> str:
    """The output with hidden states: by its name, else this one if it may have them, else the first that may."""
    named = next((name for name in _STATES if name in session.output_names), None)
    candidates = [name for name in (named, output, *session.output_names) if name is not None]
    if found := next((name for name in candidates if _may_be_states(session, name)), None):
        return found
    if all(name == "logits" or name.startswith("present") for name in session.output_names):
        raise UnsupportedModelError(
            f"the graph {spec.model_file} generates text: it gives {', '.join(session.output_names[:4])}, and no "
            "hidden states, of which a vector could be made",
            model=spec.name,
        )
    return output


def _may_be_states(session: Session, output: str) -> bool:
    """Whether it may have a vector for each token, which neither logits of words are nor keys and values."""
    if output == "logits" or output.startswith("present"):
        return False
    shape = session.output_shape(output)
    return not shape or len(shape) == 3
