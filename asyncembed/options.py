"""The constructor keywords that the seven classes share: declared once, checked once, passed on whole."""

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, TypeGuard, get_args

from asyncembed.catalogue.described import Overrides
from asyncembed.checks import (
    check_bool,
    check_callable,
    check_choice,
    check_count,
    check_device,
    check_observers,
    check_path,
    check_precision,
    check_providers,
    check_text,
    check_token,
    unknown_keyword,
)
from asyncembed.engine.pool import PoolKeywords, PoolOptions, WorkerPool
from asyncembed.errors import OptionError
from asyncembed.observing import Observer
from asyncembed.reuse.vector_cache import CacheChoice, check_cache
from asyncembed.runtime.providers import is_gpu_package_installed
from asyncembed.runtime.session import Device, Runtime

if TYPE_CHECKING:
    from asyncembed.runtime.session import SessionOptions

MAX_BATCH_TOKENS = 256
"""On a CPU: about 100 ms of a 6-layer, 384-wide encoder. A query waits for the batch before it, and larger batches gain
little: of 1,000 mixed texts, those of 192 to 512 tokens took the same time within 3 %."""

MAX_BATCH_TOKENS_ACCELERATED = 16384
"""On an accelerator, where small batches leave most of it idle; a model of texts is measured there, within this."""

WORKERS_PER_DEVICE = 2
"""With CUDA, where nobody says otherwise: one tokenizes, copies and answers while the other one's batch is computed."""

MAX_BATCH_TOKENS_WITHOUT_GRAPH = 32768
"""For static models and BM25: some tens of milliseconds, so that sending a batch costs less than computing it."""

MAX_IN_FLIGHT = 1024
MAX_IN_FLIGHT_BYTES = 64 * 1024 * 1024


class OptionKeywords(PoolKeywords, total=False):
    """The constructor keywords that the seven classes share, for signatures; `asyncembed.Options` documents them."""

    model_path: str | os.PathLike[str] | None
    revision: str | None
    cache_dir: str | os.PathLike[str] | None
    local_files_only: bool
    token: str | bool | None
    progress: "bool | Callable[[Any], None] | None"
    device: Device
    providers: Sequence[str | tuple[str, dict[str, Any]]] | None
    runtime: Runtime
    pool: WorkerPool | None
    precision: str | None
    onnx_file: str | None
    output_name: str | int | None
    max_length: int | None
    max_batch_tokens: int | None
    max_batch_size: int | None
    max_in_flight: int | None
    max_in_flight_bytes: int | None
    batch_invariant: bool
    prepare: bool
    lazy: bool
    observers: Sequence[Observer]
    deduplicate: bool | None
    cache: CacheChoice | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(PoolOptions):
    """How a model is found, loaded and run. Also, without `pool`: what `asyncembed.WorkerPool` takes.

    Attributes:
        model_path: Directory with the files of the named model, instead of the hub.
        revision: Branch, tag or commit on the hub; None: the default branch.
        cache_dir: Cache of the hub's files, instead of the one that huggingface_hub uses.
        local_files_only: Never use the network.
        token: Access token for the hub; None: the usual one, False: none.
        progress: A callback for download events; False: no progress bar; None: a bar in a terminal.
        device: "auto" takes CUDA where it is installed and works, "cuda" demands it, "cpu" never asks.
        providers: Execution providers by name, or (name, options), instead of `device`.
        runtime: "openvino" runs the graph with OpenVINO on the CPU, where that can (`asyncembed[openvino]`). It pays
            with `precision="bf16"` on CPUs that have bfloat16 in hardware, and hardly anywhere else.
        pool: A pool shared with other embedders; it decides all that concerns the workers.
        precision: Which of a repo's ONNX files to take ("fp32", "fp16", "int8", "uint8", "q4", "q4f16", "bnb4", "q2",
            "q1", ...), where it has several; of several for one precision, the one that suits this machine's CPU.
            "int8" is made here instead, once, where the CPU computes: of the weights if a graph can be built of them,
            else of a float32 graph of the usual form. A result then does not depend on its batch. With
            `runtime="openvino"`, "bf16" computes the plain file in bfloat16. None takes the plain file, or with
            `device="cuda"` that of "fp16" beside it, where there is one.
        onnx_file: The ONNX file to take, as a path inside the repo, also as Windows writes it: a repo's own quantised
            one, too, whose inputs run one by one.
        output_name: The output of the graph to take, by its name or position. None takes what the model's files say,
            and a finished vector (`sentence_embedding`) where a graph has one and they say nothing else.
        max_length: Limit of an input in tokens, instead of the model's own; what is longer is cut.
        max_batch_tokens: Most tokens, padding included, computed in one run of the graph; those of a text of more than
            512 count for its attention, too. None: what suits the model (256; on a GPU what a measurement says).
        max_batch_size: Most inputs computed in one run of the graph.
        max_in_flight: How many inputs a stream may read ahead of its consumer.
        max_in_flight_bytes: About how much memory those inputs and their waiting results may take.
        batch_invariant: Run the inputs of a dynamically quantised file one by one, so that a result does not depend
            on the others in its batch.
        prepare: Keep a large model in the cache as the CPU computes it, made once when it is first opened, so that it
            opens sooner and all workers share one copy of its weights. False: each worker makes its own.
        lazy: Opening finds no files and starts no workers: the first call does, and others wait with it. What the
            model's files say (`max_length`, ...) is known from then on. Where it cannot be loaded, the calls that wait
            raise the error, and the next one tries again.
        observers: Functions that hear of its opening, calls and batches: see `asyncembed.observing`.
        deduplicate: Whether inputs that are equal, and wait at the same time, are computed once, whoever asks: in one
            stream, or in calls side by side. None: they are, but for models without a graph (to compute an input takes
            no longer than to look for another one) and encoders of somebody else's (equal inputs need not have equal
            results there).
        cache: Keep results: a path (see `asyncembed.VectorCacheFile`, which also takes a size), or a `VectorCache` of
            your own. What was computed by the same model (see `fingerprint`), for an equal call, is not computed again.
    """

    model_path: str | os.PathLike[str] | None = None
    revision: str | None = None
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    token: str | bool | None = field(default=None, repr=False)
    progress: "bool | Callable[[Any], None] | None" = None
    device: Device = "auto"
    providers: Sequence[str | tuple[str, dict[str, Any]]] | None = None
    runtime: Runtime = "onnxruntime"
    pool: WorkerPool | None = None
    precision: str | None = None
    onnx_file: str | None = None
    output_name: str | int | None = None
    max_length: int | None = None
    max_batch_tokens: int | None = None
    max_batch_size: int | None = None
    max_in_flight: int | None = None
    max_in_flight_bytes: int | None = None
    batch_invariant: bool = True
    prepare: bool = True
    lazy: bool = False
    observers: Sequence[Observer] = ()
    deduplicate: bool | None = None
    cache: CacheChoice | None = None

    def __post_init__(self) -> None:
        PoolOptions.__post_init__(self)
        for name in (
            "max_length", "max_batch_tokens", "max_batch_size", "max_in_flight", "max_in_flight_bytes",
        ):  # fmt: skip
            check_count(name, getattr(self, name), minimum=1)
        for name in ("model_path", "cache_dir"):
            path = getattr(self, name)
            check_path(name, path)
            # Now, as the program may change its working directory before it opens the model.
            object.__setattr__(self, name, None if path is None else absolute(path))
        for name in ("revision", "onnx_file"):
            check_text(name, getattr(self, name))
        for name in ("local_files_only", "batch_invariant", "prepare", "lazy"):
            check_bool(name, getattr(self, name))
        if self.onnx_file is not None:
            object.__setattr__(self, "onnx_file", self.onnx_file.replace("\\", "/"))  # as `os.path.join` gives it
        check_token(self.token)
        if not isinstance(self.progress, bool):
            check_callable("progress", self.progress, what="a function that takes events, False for no bar, or None")
        self._check_graph()
        check_bool("deduplicate", self.deduplicate, may_be_none=True)
        check_cache(self.cache)
        if isinstance(self.cache, str | os.PathLike):
            object.__setattr__(self, "cache", absolute(self.cache))
        check_observers(self.observers)
        object.__setattr__(self, "observers", tuple(self.observers))
        if self.pool is not None:
            if not isinstance(self.pool, WorkerPool):
                raise OptionError(f"pool must be a WorkerPool; got {self.pool!r}")
            if clashing := self.changed_for_pool():
                raise OptionError(f"{', '.join(clashing)}: with pool=, give this to the WorkerPool instead")

    def _check_graph(self) -> None:
        """See that what says which graph is taken, and where it runs, can work, and goes together."""
        check_precision(self.precision)
        check_device(self.device, get_args(Device))
        check_choice("runtime", self.runtime, get_args(Runtime))
        if isinstance(self.output_name, int):
            check_count("output_name", self.output_name, minimum=0)
        else:
            check_text("output_name", self.output_name)
        if self.providers is not None:
            check_providers(self.providers)
            if self.device != "auto":
                raise OptionError("give either device or providers, not both")
        if self.runtime == "openvino" and (self.device == "cuda" or self.providers is not None):
            raise OptionError('runtime="openvino" computes on the CPU: leave out device= and providers=')
        if self.precision == "bf16" and self.runtime != "openvino":
            raise OptionError('precision="bf16" is what OpenVINO computes in: say runtime="openvino" as well')
        if self.precision is not None and self.onnx_file is not None:
            raise OptionError("give either precision or onnx_file, not both")

    @property
    def file_precision(self) -> str | None:
        """The precision of the ONNX file to take; None: the plain one."""
        return None if self.precision == "bf16" else self.precision

    @property
    def preferred_precision(self) -> str | None:
        """That of the ONNX file to take where it lies beside the plain one; None: the caller's word decides."""
        is_left_open = self.precision is None and self.onnx_file is None
        return "fp16" if self.demands_cuda and is_left_open else None

    @property
    def wants_int8(self) -> bool:
        """Whether a graph in 8 bits is asked for."""
        return self.precision in ("int8", "q8")

    @property
    def own_cache_dir(self) -> Path | None:
        """Where what we make of a model is kept: beside the hub's files, where the user wants those elsewhere."""
        return None if self.cache_dir is None else Path(self.cache_dir, "asyncembed").expanduser().absolute()

    @property
    def is_for_cpu(self) -> bool:
        """Whether it is certain that onnxruntime computes, on the CPU."""
        if self.runtime == "openvino":
            return False
        if self.providers is None:
            return self.device == "cpu" or (self.device == "auto" and not is_gpu_package_installed())
        return self.provider_names == ["cpu"]

    @property
    def demands_cuda(self) -> bool:
        """Whether CUDA computes, or nothing does."""
        return self.device == "cuda" or self.provider_names[:1] == ["cuda"]

    @property
    def provider_names(self) -> list[str]:
        """Those that the caller names, as short as they may be written."""
        names = [entry if isinstance(entry, str) else entry[0] for entry in self.providers or ()]
        return [name.removesuffix("ExecutionProvider").lower() for name in names]

    def pool_keywords(self) -> PoolKeywords:
        """What a pool of one's own is made with."""
        keywords = PoolOptions.pool_keywords(self)
        if self.workers is None and self.demands_cuda:
            keywords["device_ids"] = tuple(self.device_ids or (0,)) * WORKERS_PER_DEVICE
        return keywords

    @classmethod
    def from_keywords(cls, keywords: OptionKeywords, *, own: Collection[str] = ()) -> "Options":
        """Check the keywords of a constructor; `own` are those it has besides, which a misspelt one may mean.

        Raises:
            OptionError: An unknown keyword, or a value that cannot work.
        """
        known = OptionKeywords.__annotations__
        for name in keywords:
            if name not in known:
                raise unknown_keyword(name, [*own, *known])
        return cls(**keywords)

    def batch_tokens(self, *, has_graph: bool) -> int:
        """The token budget on a CPU: what was asked for, or what suits the model."""
        if self.max_batch_tokens is not None:
            return self.max_batch_tokens
        return MAX_BATCH_TOKENS if has_graph else MAX_BATCH_TOKENS_WITHOUT_GRAPH

    def accelerated_batch_tokens(self) -> int | None:
        """The token budget where an accelerator has come up, which only a worker can tell; None: the same."""
        return MAX_BATCH_TOKENS_ACCELERATED if self.max_batch_tokens is None else None

    def session_options(self) -> "SessionOptions":
        """What of this concerns the session; the pool adds threads and device."""
        from asyncembed.runtime.session import SessionOptions

        if self.runtime == "openvino":
            return SessionOptions(device="cpu", runtime=self.runtime, bfloat16=self.precision == "bf16")
        if self.providers is None:
            return SessionOptions(device=self.device)
        pairs = [(entry, {}) if isinstance(entry, str) else entry for entry in self.providers]
        return SessionOptions(
            providers=tuple(
                (name, tuple(sorted((key, str(value)) for key, value in settings.items()))) for name, settings in pairs
            )
        )


def is_path(model_name: object) -> TypeGuard[str | os.PathLike[str]]:
    """Whether it is certainly a directory: a `Path`, or a text that is written as a path and as no name."""
    if isinstance(model_name, str):
        if os.name == "nt" and is_path_on_windows(model_name):
            return True
        return model_name.startswith((".", "~")) or os.path.isabs(model_name)  # noqa: PTH117 (a name is no path)
    return isinstance(model_name, os.PathLike)


def is_path_on_windows(model_name: str) -> bool:
    """Whether it has a drive, or a separator that no name has."""
    return "\\" in model_name or PureWindowsPath(model_name).drive != ""


def absolute(path: str | os.PathLike[str]) -> Path:
    """A path that stays valid when the working directory changes; "~" is the home directory."""
    expanded = os.path.expanduser(path)  # noqa: PTH111 (leaves a "~" that nobody has; pathlib raises)
    try:
        return Path(expanded).absolute()
    except FileNotFoundError:  # the working directory is gone
        return Path(expanded)


def overrides_of(options: Options) -> Overrides:
    """What the options say instead of a model's own configuration."""
    return Overrides(
        max_length=options.max_length,
        onnx_file=options.onnx_file,
        precision=options.file_precision,
        preferred_precision=options.preferred_precision,
        graph_output=options.output_name,
    )
