"""What every encoder is: the seam between the engine and the families.

An encoder lives in one worker, serves one batch at a time, and knows nothing of asyncio.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, get_args

from asyncembed.catalogue.spec import ModelSpec
from asyncembed.errors import EncodeError, InputError, OptionError
from asyncembed.runtime.session import SessionOptions

if TYPE_CHECKING:
    import numpy.typing as npt

    from asyncembed.results import HybridOutput

Results: TypeAlias = "Sequence[Any] | npt.NDArray[Any]"
"""One result per input, by position."""

Failures: TypeAlias = Mapping[int, InputError | EncodeError]
"""Position in the batch → why that input alone has no result."""

Mode: TypeAlias = Literal["embed", "query", "passage", "image", "pair", "count", "chunks"]

Long: TypeAlias = Literal["truncate", "error", "mean"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """Everything a worker needs to build one encoder; travels to the worker by pickle.

    Attributes:
        spec: The model.
        directory: Where its files lie.
        session: How its graph runs.
        max_length: Limit in tokens that overrides the model's own; None keeps that.
        max_batch_tokens: Most tokens, padding included, that one run of the graph may compute.
        accelerated_batch_tokens: The same where something other than the CPU computes; None: no other number there.
        max_batch_size: Most inputs that one run of the graph may take; None: no limit.
        batch_invariant: Run the inputs of a dynamically quantised graph one by one.
        is_exported: Whether its graph was built from the weights here, as its source has none.
        prepared: What `runtime.prepared` has made of its graph; None: nothing.
        keywords: What the family's own constructor keywords say (k, b, language, ...).
    """

    spec: ModelSpec
    directory: Path
    session: SessionOptions = field(default_factory=SessionOptions)
    max_length: int | None = None
    max_batch_tokens: int = 256
    accelerated_batch_tokens: int | None = None
    max_batch_size: int | None = None
    batch_invariant: bool = True
    is_exported: bool = False
    prepared: Path | None = None
    keywords: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What one call asks beyond its inputs. Inputs share a batch only if their calls are equal.

    Attributes:
        mode: What the inputs are, or, for "count", that only their tokens are to be counted; for "chunks" they are
            each a `TokenWindow`, of which every span gets a vector.
        task: Task of a multi-task model.
        prompt: Text put before each input.
        long: What becomes of an input over the limit: "truncate" cuts it, "error" makes it an `InputError`, "mean" (of
            dense vectors) takes the mean of its windows.
        truncate_dim: Keep only this many leading components, then normalise again (Matryoshka).
        dtype: Element type of the results.
        output: "float", or the quantised forms "int8" and "binary".
        int8_ranges: For "int8": the smallest and largest value of each component, float32 (2, dim) as bytes.
        instruction: What a reranker that takes one is to look for.
        activation: What is done to the logit of a pair: "sigmoid" maps it to 0..1; "auto": what its authors do.
        truncated: With "count": only the tokens count that are left of an input when it is cut at the limit.
        include_extension: With "count": the tokens count, too, that the encoder itself puts into a text.
        role: With "count" and `include_extension`: what the texts are.
        outputs: Of a hybrid model: which of its results are wanted, in the order of `HYBRID_OUTPUTS`.
    """

    mode: Mode = "embed"
    task: str | int | None = None
    prompt: str | None = None
    long: Long = "truncate"
    truncate_dim: int | None = None
    dtype: Literal["float32", "float16"] = "float32"
    output: Literal["float", "int8", "binary"] = "float"
    int8_ranges: bytes | None = None
    activation: Literal["none", "sigmoid", "auto"] = "none"
    instruction: str | None = None
    truncated: bool = True
    include_extension: bool = False
    role: Literal["query", "document"] = "document"
    outputs: "tuple[HybridOutput, ...]" = ()

    def __post_init__(self) -> None:
        if self.long not in get_args(Long):
            raise OptionError(f"long must be one of {', '.join(map(repr, get_args(Long)))}; got {self.long!r}")


@dataclass(frozen=True, slots=True)
class TokenWindow:
    """Tokens of a document that go through the model together, and the chunks among them.

    It travels by pickle, and is equal to another one of the same bytes.

    Attributes:
        ids_bytes: What the graph takes, special tokens and those of a prompt included: int32 (tokens,).
        spans_bytes: First and last token of each chunk, the last one exclusive, by their places among these: int32
            (chunks, 2).
        texts: Those of the chunks, for an encoder that asks for them; else empty.
    """

    ids_bytes: bytes
    spans_bytes: bytes
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, ids: Sequence[int], spans: Sequence[tuple[int, int]], texts: Sequence[str] = ()) -> "TokenWindow":
        """One of these tokens and chunks."""
        bounds = [bound for span in spans for bound in span]
        return cls(array("i", ids).tobytes(), array("i", bounds).tobytes(), tuple(texts))

    @property
    def ids(self) -> Sequence[int]:
        """The tokens."""
        return array("i", self.ids_bytes)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The chunks."""
        bounds = array("i", self.spans_bytes)
        return list(zip(bounds[::2], bounds[1::2], strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What an encoder knows of its model once that is loaded; travels to the parent by pickle.

    Attributes:
        max_length: Most tokens of an input, special tokens included; None: no limit.
        special_tokens: How many of them are put around every input.
        dim: Length of the vectors, where all have one.
        tokens_per_image: What an image counts; 0 for a model of texts.
        max_batch_tokens: Most tokens of a batch, by what computes them; None: as the config says.
        attention_tokens: Tokens of an input whose attention costs as much as all else; None: nothing of it grows with a
            square.
        dynamically_quantized: Whether a result would depend on its neighbours in a run of the graph.
        providers: The execution providers that came up, the one that computes first; empty without a graph.
        warning: What the user should know of where the model runs; None: nothing.
        outputs: Of a hybrid model: which results it has, in the order of `HYBRID_OUTPUTS`.
        token_dim: Of a hybrid model: length of the vectors of tokens, where it has such.
    """

    max_length: int | None = None
    special_tokens: int = 2
    dim: int | None = None
    tokens_per_image: int = 0
    max_batch_tokens: int | None = None
    attention_tokens: int | None = None
    dynamically_quantized: bool = False
    providers: tuple[str, ...] = ()
    warning: str | None = None
    outputs: "tuple[HybridOutput, ...]" = ()
    token_dim: int | None = None

    @property
    def is_accelerated(self) -> bool:
        """Whether something other than the CPU computes."""
        return bool(self.providers) and "CPU" not in self.providers[0]

    @property
    def runs_on(self) -> str:
        """What computes first, for people."""
        return self.providers[0] if self.providers else "the CPU, without a graph"


@dataclass(slots=True)
class Encoded:
    """What an encoder makes of one batch; travels to the parent by pickle.

    Attributes:
        results: One result per input, in input order; a dense batch is one array (n, dim).
        failures: Position in the batch → why that input alone has no result; `results` holds any value there. An
            `EncodeError` where the input is right, but what the model gives for it is not finite.
        tokens: Real tokens computed; of `counts` the sum.
        padded_tokens: Tokens computed, padding included.
        counts: Tokens computed for each input, by position: -n for one of n tokens that was cut at the limit. None: not
            known, or nothing was computed. Python's own numbers, which pickle sooner than an array.
    """

    results: Results
    failures: Failures = field(default_factory=dict)
    tokens: int = 0
    padded_tokens: int = 0
    counts: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.counts is not None:
            self.tokens = sum(map(abs, self.counts))


class Encoder(Protocol):
    """One model, loaded. One of somebody else's may do without `info`."""

    @property
    def info(self) -> ModelInfo:
        """What is known of the model; never changes."""
        ...

    def encode(self, inputs: Sequence[object], call: Call) -> Encoded:
        """Compute one batch.

        A wrong input goes into `Encoded.failures`; an exception means that the whole batch failed.
        """
        ...
