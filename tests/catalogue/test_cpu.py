"""What this machine's CPU can do."""

import platform
from pathlib import Path

import pytest

from asyncembed.catalogue.cpu import features_of_linux, kind_of, this_cpu

CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
flags\t\t: fpu sse2 avx2 avx512f avx512bw avx512_vnni
processor\t: 1
flags\t\t: fpu
"""


@pytest.mark.parametrize(
    ("features", "kind"),
    [
        ({"AVX2", "AVX512F", "AVX512BW", "AVX512VNNI"}, "avx512_vnni"),
        ({"AVX2", "AVX512F", "AVX512BW"}, "avx512"),
        ({"AVX2", "AVX512F"}, "avx2"),
        ({"AVX2", "AVXVNNI"}, "avx_vnni"),
        ({"AVX2", "AVX512F", "AVX512BW", "AVXVNNI"}, "avx_vnni"),
        ({"AVX2"}, "avx2"),
        ({"SSE42"}, "other"),
        (set(), "other"),
    ],
)
def test_a_cpu_is_the_best_kind_whose_instructions_it_has(features: set[str], kind: str) -> None:
    assert kind_of(frozenset(features)) == kind


def test_linux_says_the_same_as_numpy_where_both_do(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(CPUINFO, "utf-8")
    assert kind_of(features_of_linux(tmp_path / "cpuinfo")) == "avx512_vnni"
    assert features_of_linux(tmp_path / "absent") == frozenset()
    (tmp_path / "cpuinfo").write_text(CPUINFO.replace("avx512f avx512bw avx512_vnni", "avx_vnni"), "utf-8")
    assert kind_of(features_of_linux(tmp_path / "cpuinfo")) == "avx_vnni"
    listed = features_of_linux(Path("/proc/cpuinfo"))
    if listed and platform.machine().lower() in ("x86_64", "amd64"):
        assert kind_of(listed) == this_cpu()
