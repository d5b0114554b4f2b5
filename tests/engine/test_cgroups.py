"""What a container allows, read from files as the kernel writes them."""

from math import inf
from pathlib import Path

import pytest

from asyncembed.engine.cgroups import cpu_quota, memory_limit


def write(root: Path, *, mounts: list[str], groups: list[str], files: dict[str, str]) -> Path:
    """A /proc/self with these mounts and groups; `files` are what lies in the mounts, below `root`."""
    proc = root / "proc"
    proc.mkdir()
    (proc / "mountinfo").write_text("".join(f"{line.replace('@', str(root))}\n" for line in mounts), "utf-8")
    (proc / "cgroup").write_text("".join(f"{line}\n" for line in groups), "utf-8")
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return proc


V2 = "31 23 0:26 / @/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "32 23 0:29 / @/cpu rw,relatime shared:10 master:4 - cgroup cgroup rw,cpu,cpuacct"
OTHER = "33 23 0:30 / @/memory rw - cgroup cgroup rw,memory"
DISK = "29 1 259:1 / @/disk rw,relatime - ext4 /dev/root rw"


def test_the_quota_of_the_own_group_of_version_2_counts(tmp_path: Path) -> None:
    files = {"unified/a/b/cpu.max": "150000 100000\n", "unified/a/cpu.max": "max 100000\n"}
    assert cpu_quota(write(tmp_path, mounts=[DISK, V2], groups=["0::/a/b"], files=files)) == 1.5


@pytest.mark.parametrize("parent", ["unified/a/cpu.max", "unified/cpu.max"])
def test_the_quota_of_a_parent_counts(parent: str, tmp_path: Path) -> None:
    files = {"unified/a/b/cpu.max": "400000 100000\n", parent: "50000 100000\n"}
    assert cpu_quota(write(tmp_path, mounts=[V2], groups=["0::/a/b"], files=files)) == 0.5


def test_the_quota_of_version_1_counts_and_that_of_its_parents(tmp_path: Path) -> None:
    files = {
        "cpu/a/b/cpu.cfs_quota_us": "-1\n",
        "cpu/a/b/cpu.cfs_period_us": "100000\n",
        "cpu/a/cpu.cfs_quota_us": "300000\n",
        "cpu/a/cpu.cfs_period_us": "100000\n",
        "memory/x/cpu.cfs_quota_us": "100000\n",
        "memory/x/cpu.cfs_period_us": "100000\n",
    }
    groups = ["9:name=systemd:/s", "4:memory:/x", "2:cpu,cpuacct:/a/b", "0::/"]
    assert cpu_quota(write(tmp_path, mounts=[OTHER, V1, V2], groups=groups, files=files)) == 3


def test_a_container_that_sees_its_own_group_as_the_top_is_read_there(tmp_path: Path) -> None:
    """Without a namespace the group's path is the host's, and the mount shows only what is below that group."""
    mount = V2.replace("0:26 / ", "0:26 /docker/1f ")
    files = {"unified/cpu.max": "200000 100000\n", "unified/inner/cpu.max": "100000 100000\n"}
    proc = write(tmp_path, mounts=[mount], groups=["0::/docker/1f"], files=files)
    assert cpu_quota(proc) == 2
    (proc / "cgroup").write_text("0::/docker/1f/inner\n", "utf-8")
    assert cpu_quota(proc) == 1
    (proc / "cgroup").write_text("0::/elsewhere\n", "utf-8")
    assert cpu_quota(proc) == 2


def test_a_group_outside_the_namespace_is_not_looked_for(tmp_path: Path) -> None:
    files = {"unified/cpu.max": "200000 100000\n", "cpu.max": "100 100000\n"}
    assert cpu_quota(write(tmp_path, mounts=[V2], groups=["0::/../other"], files=files)) == 2


@pytest.mark.parametrize("text", ["", "max", "max 100000", "0 100000", "-1 100000", "1 0", "a b c", "nan 3"])
def test_a_quota_that_says_nothing_is_none(text: str, tmp_path: Path) -> None:
    assert cpu_quota(write(tmp_path, mounts=[V2], groups=["0::/"], files={"unified/cpu.max": text})) == inf


def test_without_such_files_there_is_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "none") == inf
    assert cpu_quota(write(tmp_path, mounts=["", "rubbish", "a - b", DISK], groups=["", "0::/"], files={})) == inf


def test_a_mount_point_with_a_space_is_found(tmp_path: Path) -> None:
    mounts = [V2.replace("@/unified", r"@/a\040b")]
    assert cpu_quota(write(tmp_path, mounts=mounts, groups=["0::/"], files={"a b/cpu.max": "100000 100000"})) == 1


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(("own", "parent", "limit"), [("max", "max", inf), ("2000", "1000", 1000), ("5", "max", 5)])
def test_the_least_memory_of_a_group_and_its_parents_counts(
    own: str, parent: str, limit: float, tmp_path: Path
) -> None:
    files = {"unified/a/memory.max": f"{own}\n", "unified/memory.max": f"{parent}\n"}
    assert memory_limit(write(tmp_path, mounts=[V2], groups=["0::/a"], files=files)) == limit


@pytest.mark.parametrize(("text", "limit"), [("512000\n", 512000), ("9223372036854771712\n", inf), ("-1", inf)])
def test_the_memory_of_version_1_counts_in_its_own_hierarchy(text: str, limit: float, tmp_path: Path) -> None:
    files = {"memory/x/memory.limit_in_bytes": text, "cpu/x/memory.limit_in_bytes": "1"}
    groups = ["4:memory:/x", "2:cpu,cpuacct:/x"]
    assert memory_limit(write(tmp_path, mounts=[V1, OTHER], groups=groups, files=files)) == limit
