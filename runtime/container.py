"""Memory and processors that the system allows this process, by its control groups (version 1, 2, or both) and by the machine.

In: /proc and the mounted hierarchies below a root folder, "/" but in tests. Out: bytes with the file that sets them, and a number of
processors. A group is limited by each group above it too. In a container the hierarchy often begins at the container's own group, and
/proc/self/mountinfo says where it is mounted and which group is on top there.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
_NO_LIMIT = 1 << 60  # what version 1 writes for none is a little less than 2**63


@dataclass(frozen=True)
class MemoryLimit:
    """Bytes that can still be taken."""

    bytes: int
    source: str  # the file of the limit as the process sees it


def memory_left(root: Path = ROOT) -> list[MemoryLimit]:
    """Return what the machine and each control group of this process leave it, file caches that the system can drop counted as free."""
    found = [
        MemoryLimit(int(line.split()[1]) * 1024, "/proc/meminfo")
        for line in _read(root / "proc/meminfo").splitlines()
        if line.startswith("MemAvailable:")
    ]
    for version, group in _groups(root, "memory"):
        used = "memory.current" if version == 2 else "memory.usage_in_bytes"
        taken, stat = _read(group / used).strip(), _read(group / "memory.stat")
        caches = re.search(rf"^{'' if version == 2 else 'total_'}inactive_file (\d+)$", stat, re.M)
        # Above memory.high the system slows a process down and swaps it out, in place of ending it as above memory.max.
        for name in ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",):
            most = _read(group / name).strip()  # "max" without a limit
            if most.isdigit() and taken.isdigit() and int(most) < _NO_LIMIT:
                left = int(most) - int(taken) + (int(caches[1]) if caches else 0)
                found.append(MemoryLimit(max(left, 0), f"/{(group / name).relative_to(root)}"))
    return found


def available_processors(root: Path = ROOT) -> int:
    """Return how many processors this process may keep busy: those that it may run on, or as many as its quotas of time are worth.

    A quota of one and a half processors is rounded up, as half a thread cannot be had.
    """
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for version, group in _groups(root, "cpu"):
        if version == 2:
            numbers = _read(group / "cpu.max").split()  # "max 100000" without a limit
        else:
            numbers = [_read(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]  # -1 without a limit
        if len(numbers) == 2 and all(number.isdigit() and int(number) for number in numbers):
            most = min(most, math.ceil(int(numbers[0]) / int(numbers[1])))
    return max(most, 1)


def _groups(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """Yield the version and the folder of each group that limits this process: its own and those above it, as far as they are mounted."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        version = 1 if controllers else 2
        if not group or (version == 1 and controller not in controllers.split(",")):
            continue
        for top, mounted in _mounts(root, version, controller):
            # A group outside of what this process may see is shown with dots; the one that is mounted is then the nearest known.
            below = os.path.relpath(group, top) if group == top or group.startswith(f"{top.rstrip('/')}/") else "."
            folder = mounted if ".." in Path(below).parts else mounted / below
            while folder != mounted and not folder.is_dir():
                folder = folder.parent
            yield version, folder
            while folder != mounted:
                folder = folder.parent
                yield version, folder


def _mounts(root: Path, version: int, controller: str) -> Iterator[tuple[str, Path]]:
    """Yield each mount of a hierarchy: the group on its top, and where it is mounted, below `root`."""
    for line in _read(root / "proc/self/mountinfo").splitlines():
        mount, _, system = line.partition(" - ")
        fields, kind = mount.split(), system.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] != ("cgroup2" if version == 2 else "cgroup"):
            continue
        if version == 2 or controller in kind[2].split(","):
            top, place = (re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), field) for field in fields[3:5])
            yield top, root / place.lstrip("/")


def _read(path: Path) -> str:
    """Return the text of a file of the system, "" if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
