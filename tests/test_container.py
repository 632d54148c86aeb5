"""Limits of containers, read from trees of files as the kernel lays them out: version 1, version 2, nested, both at once, or none."""

import os
from pathlib import Path

import pytest
from support.groups import V1, V2, tree

from musiclm_deploy.runtime.container import available_processors, memory_left

ALL = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
NONE = str(2**63 - 4096)  # as version 1 writes it


def v2(folder: str, most: str, taken: int, caches: int = 0, high: str = "max") -> dict[str, str]:
    files = {"max": most, "high": high, "current": str(taken), "stat": f"anon 5\ninactive_file {caches}\nactive_file 7"}
    return {f"{folder}/memory.{name}": text for name, text in files.items()}


def v1(folder: str, most: str, taken: int, caches: int = 0) -> dict[str, str]:
    stat = f"cache 9\ninactive_file 1\ntotal_inactive_file {caches}"
    return {f"{folder}/memory.{name}": text for name, text in (("limit_in_bytes", most), ("usage_in_bytes", str(taken)), ("stat", stat))}


G = "sys/fs/cgroup"
MEMORY = {
    "v2, in a namespace": ("0::/", [V2.format(top="/", place=f"/{G}")], v2(G, "1000", 600, 100), {f"/{G}/memory.max": 500}),
    "v2, no limit": ("0::/", [V2.format(top="/", place=f"/{G}")], v2(G, "max", 600), {}),
    "v2, nested": (
        "0::/user.slice/app",
        [V2.format(top="/", place=f"/{G}")],
        v2(f"{G}/user.slice/app", "900", 100) | v2(f"{G}/user.slice", "1000", 950, 50),
        {f"/{G}/user.slice/app/memory.max": 800, f"/{G}/user.slice/memory.max": 100},
    ),
    "v2, high": (
        "0::/app",
        [V2.format(top="/", place=f"/{G}")],
        v2(f"{G}/app", "1000", 600, high="700"),
        {f"/{G}/app/memory.max": 400, f"/{G}/app/memory.high": 100},
    ),
    "v2, more than it may": ("0::/", [V2.format(top="/", place=f"/{G}")], v2(G, "1000", 1200), {f"/{G}/memory.max": 0}),
    "v2, outside of the namespace": ("0::/../../a", [V2.format(top="/", place=f"/{G}")], v2(G, "1000", 600), {f"/{G}/memory.max": 400}),
    "v2, mounted elsewhere": ("0::/", [V2.format(top="/", place="/mnt/c\\040g")], v2("mnt/c g", "1000", 1), {"/mnt/c g/memory.max": 999}),
    "v1, the mount begins at the group": (
        "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1",
        [V1.format(top="/docker/1", place=f"/{G}/memory", controllers="memory")],
        v1(f"{G}/memory", "1000", 700, 200),
        {f"/{G}/memory/memory.limit_in_bytes": 500},
    ),
    "v1, the whole hierarchy": (
        "4:memory:/slurm/job",
        [V1.format(top="/", place=f"/{G}/memory", controllers="memory")],
        v1(f"{G}/memory/slurm/job", NONE, 10) | v1(f"{G}/memory/slurm", "100", 10) | v1(f"{G}/memory", NONE, 10),
        {f"/{G}/memory/slurm/memory.limit_in_bytes": 90},
    ),
    "v1, a group that is not mounted here": (
        "4:memory:/docker/1/below",
        [V1.format(top="/", place=f"/{G}/memory", controllers="memory")],
        v1(f"{G}/memory", "100", 10),
        {f"/{G}/memory/memory.limit_in_bytes": 90},
    ),
    "both, memory by v1": (
        "4:memory:/\n1:name=systemd:/\n0::/",
        [V1.format(top="/", place=f"/{G}/memory", controllers="memory"), V2.format(top="/", place=f"/{G}/unified")],
        v1(f"{G}/memory", "100", 10) | {f"{G}/unified/cgroup.procs": ""},
        {f"/{G}/memory/memory.limit_in_bytes": 90},
    ),
    "none": ("", [], {}, {}),
}


@pytest.mark.parametrize("case", MEMORY)
def test_memory(case: str, tmp_path: Path) -> None:
    """Fault: all of the machine's memory counts as free, and the container is ended in the middle of a clip."""
    groups, mounts, files, expected = MEMORY[case]
    tree(tmp_path, groups, mounts, files | {"proc/meminfo": "MemTotal: 8 kB\nMemAvailable:       4 kB"})
    assert {limit.source: limit.bytes for limit in memory_left(tmp_path)} == {"/proc/meminfo": 4096, **expected}


@pytest.mark.parametrize(
    ("groups", "mount", "files", "expected"),
    [
        ("0::/", V2.format(top="/", place="/cg"), {"cg/cpu.max": "100000 100000"}, 1),
        ("0::/", V2.format(top="/", place="/cg"), {"cg/cpu.max": "20000 100000"}, 1),
        ("0::/", V2.format(top="/", place="/cg"), {"cg/cpu.max": "150000 100000"}, min(2, ALL)),
        ("0::/", V2.format(top="/", place="/cg"), {"cg/cpu.max": "max 100000"}, ALL),
        ("0::/", V2.format(top="/", place="/cg"), {"cg/cpu.max": "6400000 100000"}, ALL),
        ("0::/a/b", V2.format(top="/", place="/cg"), {"cg/a/b/cpu.max": "max 100000", "cg/a/cpu.max": "100000 100000"}, 1),
        ("3:cpu,cpuacct:/", V1, {"cg/cpu.cfs_quota_us": "50000", "cg/cpu.cfs_period_us": "100000"}, 1),
        ("3:cpu,cpuacct:/", V1, {"cg/cpu.cfs_quota_us": "-1", "cg/cpu.cfs_period_us": "100000"}, ALL),
        ("3:cpuset:/", V1, {"cg/cpu.cfs_quota_us": "50000", "cg/cpu.cfs_period_us": "100000"}, ALL),
        ("", "", {}, ALL),
    ],
)
def test_processors(groups: str, mount: str, files: dict[str, str], expected: int, tmp_path: Path) -> None:
    """Fault: a thread for each processor of the machine, in a container that may keep one busy: they wait for each other."""
    tree(tmp_path, groups, [mount.format(top="/", place="/cg", controllers="cpu,cpuacct")], files)
    assert available_processors(tmp_path) == expected


def test_here() -> None:
    """Fault: what this system itself says is not read."""
    if not Path("/proc/meminfo").exists():
        pytest.skip("this system has no /proc/meminfo")
    assert memory_left()[0].source == "/proc/meminfo" and all(limit.bytes >= 0 for limit in memory_left())
    assert 1 <= available_processors() <= ALL
