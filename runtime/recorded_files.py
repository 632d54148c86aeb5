"""The files of a folder, checked against a record of them: size, SHA-256, and no path that leaves the folder.

In: a folder, names, records. Out: what is wrong, in words. `runtime.bundle` and `runtime.engines` use it.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

from .user_files import LFS_POINTER, is_lfs_pointer


class Recorded(Protocol):
    """What is known of a file."""

    @property
    def bytes(self) -> int: ...
    @property
    def sha256(self) -> str: ...


def fault_of_file(root: Path, name: str, record: Recorded) -> str | None:
    """Return what is wrong with a file of the folder `root`; None if it is as recorded."""
    try:
        return _fault_of_path(root, name, record)
    except (OSError, ValueError, RuntimeError) as error:  # a name that no file can have, a loop of links, no permission
        return str(error)


def _fault_of_path(root: Path, name: str, record: Recorded) -> str | None:
    if Path(name).anchor or ".." in Path(name).parts:
        return "this path leaves the bundle"
    path = root / name
    if not path.is_file():
        return f"it is a link to {os.readlink(path)}, where there is no file" if path.is_symlink() else "the file is missing"
    size, linked = path.stat().st_size, not path.resolve().is_relative_to(root.resolve())
    with path.open("rb") if size == record.bytes else nullcontext() as file:
        if file is not None and hashlib.file_digest(file, "sha256").hexdigest() == record.sha256:
            return None
    if linked:  # a manifest from elsewhere must not tell the size or the hash of any other file of this machine
        return "it is a link that leaves the bundle, to another file than the manifest describes"
    if size != record.bytes and is_lfs_pointer(path):
        return LFS_POINTER
    if size != record.bytes:
        return f"{size} bytes, the manifest says {record.bytes}: it was cut short or changed"
    return "its content was changed after the export (SHA-256 differs)"


def identity(path: Path) -> tuple[int, ...] | None:
    """Return what distinguishes a file from another one of its name: device, inode, size and time of change; None if there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
