"""What `doctor` looks at: the versions, the machine, and whether what models need works here."""

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from logging import ERROR, getLogger
from math import inf, isfinite
from pathlib import Path
from typing import Literal, TypeAlias

import anyio

from asyncembed import __version__
from asyncembed.catalogue.cpu import BFLOAT16, features, this_cpu
from asyncembed.cli.output import size_in_words
from asyncembed.cli.stored import Places
from asyncembed.engine.cgroups import cpu_quota, memory_limit
from asyncembed.engine.cores import available_cores
from asyncembed.engine.worker import ProcessWorker
from asyncembed.errors import AsyncEmbedError, RepoNotFoundError, RuntimeMissingError
from asyncembed.faking import VARIABLE, current_fakes
from asyncembed.hub import DownloadPolicy, HubAccess, list_files
from asyncembed.hub.addresses import proxy_addresses, shown_address
from asyncembed.runtime.providers import INSTALL_HINT

State: TypeAlias = Literal["ok", "note", "warning", "failed"]
"""All is well; worth knowing; works, but not as it might; does not work."""

PACKAGES = (
    "anyio", "numpy", "tokenizers", "huggingface-hub", "httpx", "pillow", "onnxruntime", "onnxruntime-gpu", "openvino",
    "onnx",
)  # fmt: skip
"""Those whose versions matter in a bug report."""

VARIABLES = (
    "ASYNCEMBED_CACHE", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_SYMLINKS",
    "WEB_CONCURRENCY", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES",
)  # fmt: skip
"""What of the environment changes what happens, and holds no secret; an address is shown without its login."""

SPARE_BYTES = 2 * 10**9
"""Less room than that is worth a warning: a large model takes as much."""

WORKER_SECONDS = 60.0

KNOWN_REPO = "Qdrant/bm25"
"""A small public repo of the catalogue."""

_ONE_TRY = DownloadPolicy(try_limit=1, resolve_try_limit=1)

ONE_NODE = (
    b'\x08\x08:2\n\x0b\n\x01x\x12\x01y"\x03Neg\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01b\x0f\n'
    b"\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
"""The smallest graph of use, as ONNX: y = -x, for float32 (1,)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: What it is about.
        state: How it is.
        text: What was found.
        advice: What to do, where something can be done.
    """

    subject: str
    state: State
    text: str
    advice: str = ""


def examine(cache_dir: Path | None = None, *, network: bool = True) -> Iterator[Finding]:
    """Look at everything, one after the other; takes some seconds. Blocks.

    A look that fails in a way that nobody has foreseen is a finding, too: a doctor does not faint.
    """
    looks: list[Callable[[], Iterator[Finding]]] = [
        versions,
        processor,
        graphics,
        memory,
        limits,
        shared_memory,
        worker,
        partial(cache, cache_dir),
        environment,
        partial(hub, network=network),
    ]
    for look in looks:
        name = getattr(look, "func", look).__name__.replace("_", " ")
        try:
            yield from look()
        except Exception as error:  # noqa: BLE001 (it is told)
            yield Finding(name, "failed", f"could not be looked at: {type(error).__name__}: {error}")


# ---------------------------------------------------------------- the programs


def versions() -> Iterator[Finding]:
    """Python, this package and those that it stands on."""
    yield Finding("asyncembed", "ok", f"{__version__} in {Path(__file__).parents[1]}")
    implementation = platform.python_implementation()
    yield Finding("python", "ok", f"{implementation} {platform.python_version()} in {sys.prefix}")
    libc = " ".join(platform.libc_ver())
    yield Finding(
        "system", "ok", f"{platform.system()} {platform.release()}, {platform.machine()}, {libc}".rstrip(", ")
    )
    found = {package: installed for package in PACKAGES if (installed := _version(package)) is not None}
    yield Finding("packages", "ok", ", ".join(f"{package} {installed}" for package, installed in found.items()))
    runtimes = [package for package in found if package.startswith("onnxruntime")]
    if len(runtimes) > 1:
        yield Finding(
            "onnxruntime",
            "warning",
            f"{' and '.join(runtimes)} have files of the same names: one of them is broken",
            f'pip uninstall {" ".join(runtimes)}, and then pip install "asyncembed[cpu]" or "asyncembed[gpu]"',
        )


def versions_in_words() -> str:
    """Python's version, and those of what computes."""
    packages = ("onnxruntime", "onnxruntime-gpu", "tokenizers", "numpy")
    found = [f"{package} {installed}" for package in packages if (installed := _version(package)) is not None]
    return ", ".join([f"asyncembed {__version__}", f"Python {platform.python_version()}", *found])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# ---------------------------------------------------------------- the machine


def processor() -> Iterator[Finding]:
    """What the CPU can do, and how much of it this process may use."""
    told = sorted(features() & _TOLD_FEATURES)
    yield Finding("cpu", "ok", f"{processor_name()}; {_CPU_KINDS[this_cpu()]} ({' '.join(told)})")
    if not BFLOAT16.isdisjoint(told):
        yield Finding(
            "bfloat16",
            "note",
            'in hardware: runtime="openvino", precision="bf16" is faster than fp32, and nearer to it than int8',
        )
    cores, quota = available_cores(), cpu_quota()
    text = f"{cores} used of {os.cpu_count()}"
    if isfinite(quota):
        text += f", the container's limit is {quota:g}"
    if hasattr(os, "sched_getaffinity"):
        text += f", {len(os.sched_getaffinity(0))} in reach of this process"
    if quota < 1:
        yield Finding("cores", "warning", text, "less than one core: a worker is halted in the middle of each batch")
    else:
        yield Finding("cores", "ok", text)


_CPU_KINDS = {
    "arm64": "ARM, files for arm64",
    "avx512_vnni": "AVX-512 with VNNI: int8 files are fast",
    "avx512": "AVX-512",
    "avx_vnni": "AVX2 with VNNI",
    "avx2": "AVX2",
    "other": "neither AVX2 nor ARM64: models are slow here",
}


_TOLD_FEATURES = BFLOAT16.union(
    "AVX AVX2 FMA3 F16C AVX512F AVX512BW AVX512VNNI AVX512FP16 NEON ASIMD ASIMDDP ASIMDFHM SVE".split()  # noqa: SIM905
)
"""Those that decide how fast a model is."""


def processor_name() -> str:
    """The CPU, as Linux or Windows calls it; elsewhere its kind: to ask for more takes a program."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return os.environ.get("PROCESSOR_IDENTIFIER", platform.machine())


def graphics(drivers: Path = Path("/proc/driver/nvidia/gpus")) -> Iterator[Finding]:
    """The NVIDIA GPUs that Linux has a driver for, and whether what is installed can use them."""
    models: list[str] = []
    for file in sorted(drivers.glob("*/information")):
        with suppress(OSError):
            lines = file.read_text("utf-8", errors="replace").splitlines()
            models += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    if not models:
        return
    is_used = _version("onnxruntime-gpu") is not None
    advice = "" if is_used else 'pip uninstall onnxruntime, and then pip install "asyncembed[gpu]"'
    text = ", ".join(models) + ("" if is_used else "; what is installed computes on the CPU")
    yield Finding("gpu", "ok" if is_used else "note", text, advice)


def memory() -> Iterator[Finding]:
    """What there is, and what a container allows."""
    total, available = _memory_of_linux()
    limit = memory_limit()
    if total is None:
        yield Finding("memory", "note", "this system does not say how much there is")
        return
    text = f"{size_in_words(available or 0)} free of {size_in_words(total)}"
    if limit < total:
        text += f"; the container's limit is {size_in_words(int(limit))}"
    is_scarce = min(limit, available or inf) < SPARE_BYTES
    advice = "each worker holds the model once: workers=1 takes least" if is_scarce else ""
    yield Finding("memory", "warning" if is_scarce else "ok", text, advice)


def _memory_of_linux() -> tuple[int | None, int | None]:
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:
        return None, None
    sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    return sizes.get("MemTotal"), sizes.get("MemAvailable")


def limits() -> Iterator[Finding]:
    """How many files and processes there may be."""
    if sys.platform == "win32":
        return
    import resource

    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < 256:
        yield Finding("open files", "warning", f"at most {files}", "ulimit -n 1024: each worker takes about ten")
    else:
        yield Finding("open files", "ok", "no limit" if files == resource.RLIM_INFINITY else f"at most {files}")


def shared_memory() -> Iterator[Finding]:
    """Where Linux keeps the semaphores of worker processes."""
    if not sys.platform.startswith("linux"):
        return
    place = Path("/dev/shm")  # noqa: S108 (it is looked at, and nothing is put there)
    if not os.access(place, os.W_OK):
        yield Finding(
            str(place), "failed", "is not there, or cannot be written: no worker process can start",
            "mount it (docker: --shm-size), or compute in threads with workers=0",
        )  # fmt: skip
        return
    usage = shutil.disk_usage(place)
    is_full = usage.total > 0 and usage.free < 2**20
    text = f"{size_in_words(usage.free)} free of {size_in_words(usage.total)}"
    yield Finding(str(place), "warning" if is_full else "ok", text, "make room there" if is_full else "")


def worker() -> Iterator[Finding]:
    """Whether a worker process starts, and what computes in it."""
    helper = ProcessWorker(threads=1)
    started = time.perf_counter()
    try:
        helper.start().result(WORKER_SECONDS)
        seconds = time.perf_counter() - started
        yield Finding("worker process", "ok", f"starts in {seconds:.1f} s")
        found: dict[str, str | None] = helper.call(try_providers).result(WORKER_SECONDS)
    except RuntimeMissingError:
        yield Finding("onnxruntime", "failed", "is not installed", INSTALL_HINT)
        return
    except AsyncEmbedError as error:
        yield Finding("worker process", "failed", str(error), "workers=0 computes in threads of your program")
        return
    except Exception as error:  # noqa: BLE001 (whatever it is, a worker that starts does not raise it)
        yield Finding("worker process", "failed", f"{type(error).__name__}: {error}", "see what it wrote above")
        return
    finally:
        helper.kill()
        helper.stop()
    for name, problem in found.items():
        state: State = "ok" if problem is None else "warning"
        yield Finding(
            name, state, "computes" if problem is None else "is installed, but does not compute", problem or ""
        )


def try_providers() -> dict[str, str | None]:
    """By each provider that the installed onnxruntime has, and OpenVINO: what went wrong with one run of it, or None.

    Runs in a worker, as a runtime that does not suit the machine ends its process.
    """
    import numpy as np

    from asyncembed.runtime.onnx import import_onnxruntime
    from asyncembed.runtime.session import SessionOptions, open_session

    found: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory(prefix="asyncembed-", ignore_cleanup_errors=True) as folder:
        graph = Path(folder, "negate.onnx")
        graph.write_bytes(ONE_NODE)
        ways = {
            name: SessionOptions(providers=((name, ()),))
            for name in import_onnxruntime().get_available_providers()
            if name not in _REMOTE_PROVIDERS
        }
        if find_spec("openvino") is not None:
            ways["OpenVINO"] = SessionOptions(runtime="openvino")
        for name, options in ways.items():
            try:
                session = open_session(graph, options)
                (answer,) = session.run(["y"], {"x": np.ones(1, np.float32)})
                wrong = None if answer.tolist() == [-1.0] else f"-1 was expected and {answer[0]} came out"
                found[name] = wrong or (session.warning if options.runtime == "openvino" else None)
            except Exception as error:  # noqa: BLE001 (it is told)
                found[name] = str(error)
    return found


_REMOTE_PROVIDERS = ("AzureExecutionProvider",)
"""Part of every build; it asks a service, and computes nothing here."""


# ---------------------------------------------------------------- the cache and the hub


def cache(cache_dir: Path | None) -> Iterator[Finding]:
    """Whether what is downloaded and made can be kept."""
    places = Places.of(cache_dir)
    yield _place("hub cache", places.hub, "cache_dir=, HF_HUB_CACHE or HF_HOME")
    yield _place("own cache", places.own, "cache_dir= or ASYNCEMBED_CACHE")
    if places.hub.is_dir() and os.access(places.hub, os.W_OK):
        yield _links(places.hub)


def _place(subject: str, place: Path, advice: str) -> Finding:
    """Whether something can be put into a directory, which need not be there yet."""
    nearest = next(parent for parent in (place, *place.parents) if parent.exists())
    if not nearest.is_dir():
        return Finding(subject, "failed", f"{place}: {nearest} is no directory", f"name another one with {advice}")
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        text = f"{place} cannot be written ({error.strerror}): only models that are wholly in it can be opened"
        return Finding(subject, "warning", text, f"name another one with {advice}")
    free = shutil.disk_usage(nearest).free
    text = f"{place}{'' if nearest == place else ' (not there yet)'}, {size_in_words(free)} free"
    is_full = free < SPARE_BYTES
    return Finding(subject, "warning" if is_full else "ok", text, "`asyncembed cache` says what is in it" * is_full)


def _links(root: Path) -> Finding:
    with tempfile.TemporaryDirectory(dir=root, prefix=".asyncembed-", ignore_cleanup_errors=True) as folder:
        target, link = Path(folder, "target"), Path(folder, "link")
        target.touch()
        try:
            link.symlink_to(target.name)
        except (OSError, NotImplementedError) as error:
            text = f"cannot be made in {root} ({error}): files of several revisions are kept several times"
            return Finding("links", "note", text)
        return Finding("links", "ok", "can be made in the hub's cache")


def environment() -> Iterator[Finding]:
    """Variables that change what happens; never the value of a secret."""
    shown = [f"{name}={_shown(os.environ[name])}" for name in VARIABLES if name in os.environ]
    yield Finding("environment", "ok", ", ".join(shown) or "nothing of it concerns models")
    if current_fakes() is not None:
        yield Finding("fakes", "warning", f"{VARIABLE} is set: models are fakes", f"unset {VARIABLE}")


def _shown(value: str) -> str:
    return shown_address(value) if "://" in value else value


def hub(*, network: bool) -> Iterator[Finding]:
    """Whether the hub answers, and knows the token if there is one."""
    from huggingface_hub import constants, get_token

    where = shown_address(constants.ENDPOINT)
    if proxies := sorted({shown_address(address) for address in proxy_addresses()}):
        yield Finding("proxy", "note", ", ".join(proxies))
    if constants.is_offline_mode() or not network:
        reason = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else "as --offline says"
        yield Finding("hub", "note", f"{where} is not asked, {reason}")
        return
    token = get_token()
    started = time.perf_counter()
    try:
        with _quiet(), tempfile.TemporaryDirectory(prefix="asyncembed-", ignore_cleanup_errors=True) as folder:
            anyio.run(list_files, KNOWN_REPO, HubAccess(cache_dir=folder, progress=False, policy=_ONE_TRY))
        text = f"{where} answers in {time.perf_counter() - started:.1f} s"
    except RepoNotFoundError:  # a mirror need not have it
        text = f"{where} answers, but has no {KNOWN_REPO}"
    except AsyncEmbedError as error:
        advice = "what is in the cache works without it (HF_HUB_OFFLINE=1)"
        yield Finding("hub", "failed", f"{where}: {error}", advice)
        return
    yield Finding("hub", "ok", f"{text}, {'asked without a token' if token is None else 'and takes the token'}")


@contextmanager
def _quiet() -> Iterator[None]:
    """What went wrong is a finding, and not a line of the log as well."""
    logger = getLogger("asyncembed")
    before = logger.level
    logger.setLevel(ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
