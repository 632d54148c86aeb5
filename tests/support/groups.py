"""Control groups as the kernel shows them to a process: files below a folder that stands for the root."""

from pathlib import Path

V2 = "30 23 0:26 {top} {place} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "35 31 0:32 {top} {place} rw,nosuid - cgroup cgroup rw,{controllers}"


def tree(root: Path, groups: str, mounts: list[str], files: dict[str, str]) -> Path:
    """Write /proc of a process and the files of its groups below `root`."""
    files = {"proc/self/cgroup": groups, "proc/self/mountinfo": "\n".join(mounts) + "\n", **files}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root
