"""What this machine's CPU can do, as far as it decides which quantised file runs best on it."""

import platform
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Literal, TypeAlias

Cpu: TypeAlias = Literal["arm64", "avx512_vnni", "avx_vnni", "avx512", "avx2", "other"]
"""The kinds of CPU that files are made for. Those with VNNI add up products of 8-bit numbers without overflow."""


BFLOAT16 = frozenset({"AVX512BF16", "AMXBF16"})
"""What a CPU has of that computes products of bfloat16 at twice the speed and more."""


@cache
def this_cpu() -> Cpu:
    """The best kind that this CPU is."""
    machine = platform.machine().lower()
    if machine in ("arm64", "aarch64"):
        return "arm64"
    if machine not in ("x86_64", "amd64"):
        return "other"
    return kind_of(features())


def kind_of(features: frozenset[str]) -> Cpu:
    """The kind of an x86 CPU with these features, named as numpy names them."""
    if {"AVX512F", "AVX512BW", "AVX512VNNI"} <= features:
        return "avx512_vnni"
    if {"AVX2", "AVXVNNI"} <= features:
        return "avx_vnni"
    if {"AVX512F", "AVX512BW"} <= features:
        return "avx512"
    return "avx2" if "AVX2" in features else "other"


_NOT_ASKED_BY_NUMPY = frozenset({"AVXVNNI", *BFLOAT16})


def features() -> frozenset[str]:
    """What the CPU can do, by numpy's names: as numpy has found out for itself, and what Linux says besides.

    Numpy does not ask for VNNI without AVX-512, which CPUs of desktops have, nor for bfloat16.
    """
    said = features_of_linux(Path("/proc/cpuinfo"))
    try:
        found = import_module("numpy._core._multiarray_umath").__cpu_features__
    except (ImportError, AttributeError):  # it is no public part of numpy
        return said
    return frozenset(name for name, is_there in found.items() if is_there) | (said & _NOT_ASKED_BY_NUMPY)


def features_of_linux(cpuinfo: Path) -> frozenset[str]:
    """The flags of the first core in Linux' list of them, with numpy's names; none on other systems."""
    try:
        lines = cpuinfo.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return frozenset(flag.upper().replace("_", "") for flag in flags.split())
