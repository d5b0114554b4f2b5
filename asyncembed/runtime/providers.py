"""Which execution providers a session asks onnxruntime for, decided from names alone.

A provider that somebody asked for and that is not there is an error. Only `device="auto"` may choose, and it
chooses among what is installed: work never moves from a GPU to the CPU without a word.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from asyncembed.errors import RuntimeMissingError
from asyncembed.runtime.session import SessionOptions

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

INSTALL_HINT = 'pip install "asyncembed[cpu]", or "asyncembed[gpu]" for CUDA'


@dataclass(frozen=True, slots=True)
class ProviderChoice:
    """What to ask onnxruntime for.

    Attributes:
        providers: Name and options of each, most wanted first.
        required: Names that the session must end up with; if one is missing, loading has failed.
    """

    providers: tuple[tuple[str, dict[str, str]], ...]
    required: frozenset[str]

    @property
    def uses_cuda(self) -> bool:
        """Whether CUDA's libraries will be needed."""
        return any(name == CUDA for name, _ in self.providers)


ON_CPU = ProviderChoice(((CPU, {}),), frozenset({CPU}))


def choose_providers(options: SessionOptions, available: Sequence[str]) -> ProviderChoice:
    """Turn `options` into providers, given the names that the installed onnxruntime was built with.

    `options.providers` wins over `options.device`. "auto" takes CUDA where it is available, with the CPU
    behind it.

    Raises:
        RuntimeMissingError: A provider that was asked for is not available; the message names those that are.
    """
    device_options = {} if options.device_id is None else {"device_id": str(options.device_id)}
    if options.providers is not None:
        named = [(_full_name(name), dict(settings)) for name, settings in options.providers]
        for name, _ in named:
            _require(name, available)
        chosen = tuple((name, {**device_options, **settings} if name == CUDA else settings) for name, settings in named)
        return ProviderChoice(chosen, frozenset(name for name, _ in chosen))
    if options.device == "cuda":
        _require(CUDA, available)
        return ProviderChoice(((CUDA, device_options), (CPU, {})), frozenset({CUDA}))
    if options.device == "auto" and CUDA in available:
        return ProviderChoice(((CUDA, device_options), (CPU, {})), frozenset())
    return ON_CPU


def fallback_warning(options: SessionOptions, available: Sequence[str], active: Sequence[str]) -> str | None:
    """What to tell somebody who is set up for CUDA, but whose session with `device="auto"` runs without it."""
    if options.providers is not None or options.device != "auto" or CUDA in active:
        return None
    if CUDA in available:
        reason = "onnxruntime has CUDA, but it did not start here; its own message is on standard error"
    elif is_gpu_package_installed():
        reason = (
            f"onnxruntime-gpu is installed, but what is loaded has only {_joined(available)}: another package, "
            "mostly onnxruntime, has replaced its files (pip uninstall onnxruntime onnxruntime-gpu; "
            'pip install "asyncembed[gpu]")'
        )
    elif options.device_id is not None:
        reason = (
            f'device_ids= is for GPUs, and the installed onnxruntime has only {_joined(available)} ("asyncembed[gpu]")'
        )
    else:
        return None
    return f'{reason}. device="cuda" makes this an error, device="cpu" silences it.'


def is_gpu_package_installed() -> bool:
    """Whether the package with CUDA is installed; that it works is another matter."""
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and no worker's business

    try:
        version("onnxruntime-gpu")
    except PackageNotFoundError:
        return False
    return True


def missing_after_load(missing: Sequence[str], active: Sequence[str]) -> RuntimeMissingError:
    """The error for providers that the package offers but that did not come up on this machine."""
    message = (
        f"{_joined(missing)} is installed but could not start here (the session runs on {_joined(active)}); "
        "onnxruntime's own message is on standard error."
    )
    if CUDA in missing:
        message += (
            " CUDA needs an NVIDIA GPU, its driver, and the CUDA and cuDNN libraries that this onnxruntime "
            'was built for (pip install "onnxruntime-gpu[cuda,cudnn]").'
        )
    return RuntimeMissingError(message + ' To run without it, ask for device="cpu".')


def _require(name: str, available: Sequence[str]) -> None:
    if name in available:
        return
    message = f"{name} is not available: the installed onnxruntime has {_joined(available)}."
    if name == CUDA:
        message += (
            " Replace onnxruntime by onnxruntime-gpu (pip uninstall onnxruntime; "
            'pip install "asyncembed[gpu]"), or ask for device="cpu".'
        )
    else:
        message += " Install the build of onnxruntime that has it, or leave it out of providers=."
    raise RuntimeMissingError(message)


def _full_name(name: str) -> str:
    """`cuda` and `CUDA` are accepted for `CUDAExecutionProvider`, and so on for the others."""
    known = {
        "cpu": CPU,
        "cuda": CUDA,
        "tensorrt": "TensorrtExecutionProvider",
        "openvino": "OpenVINOExecutionProvider",
    }
    return known.get(name.lower(), name)


def _joined(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
