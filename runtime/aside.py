"""Files and folders that are written aside, then renamed: whoever looks finds the old one, the new one, or none.

In: where a result will stand. Out: a file or a folder beside it (a partial), which takes its place or is gone. A process that is killed
cannot clean up, so the next one does: `remove_abandoned`. A partial is locked (flock) as long as its process lives, and its name says on
which machine, and after which start of it, it was made. On some shared folders locks do not reach other machines, so what another machine
made is left alone.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import logging
import os
import platform
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, so nothing can be known to be abandoned
    fcntl = None

_LOG = logging.getLogger(__name__)
_LOCK = "lock"  # of a folder: a file in it
_OLDER = "older"  # what a new folder replaces, until it has


@contextlib.contextmanager
def file_aside(target: Path) -> Iterator[BinaryIO]:
    """Give a new file beside `target`, which it replaces when the block ends; after an error it is gone. Its mode is a new file's."""
    handle, path = _make_file(target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            path.chmod(0o666 & ~_umask())
            if fcntl is None:
                file.close()  # Windows renames no open file
            path.replace(target)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def probe(folder: Path) -> None:
    """Make and remove a file in a folder: the only test that also finds full disks, immutable folders and access lists."""
    handle, path = _make_file(folder)
    os.close(handle)
    path.unlink()


@contextlib.contextmanager
def folder_aside(target: Path) -> Iterator[Path]:
    """Give a new folder beside `target`, on the same disk, for `replace_folder`; it is gone when the block ends, if it was not taken."""
    parent = Path(tempfile.mkdtemp(prefix=".making-", dir=target.parent))  # no partial before it is locked
    try:
        with (parent / _LOCK).open("wb") as lock:
            _lock(lock.fileno())
            parent = parent.rename(target.with_name(f"{_prefix(target.name)}{_tag()}"))
            (parent / "new").mkdir()  # unlike its parent, readable by whom the umask says
            yield parent / "new"
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def replace_folder(folder: Path, target: Path) -> None:
    """Rename a folder of `folder_aside` to `target`; an older one there is moved away first, and put back if the rename fails."""
    older = folder.with_name(_OLDER)
    try:
        if target.exists():
            target.rename(older)
        folder.rename(target)
    except BaseException:
        if older.exists() and not target.exists():
            older.rename(target)
        raise


def remove_abandoned(folder: Path, name: str = "") -> None:
    """Remove the partials in `folder` whose process was killed, with a warning: folders for `name`, or files, which are for any name.

    A folder `name` that was being replaced at that moment is put back.
    """
    for path in sorted(folder.glob(f"{glob.escape(_prefix(name))}*")):
        if path.is_symlink() or path.is_dir() != bool(name) or not _is_abandoned(path):
            continue
        with contextlib.suppress(OSError):  # another user's; it is no obstacle to what comes now
            if name and (path / _OLDER).exists() and not os.path.lexists(folder / name):
                (path / _OLDER).rename(folder / name)
                _LOG.warning("%s is put back: it was being replaced when a process was killed.", folder / name)
            shutil.rmtree(path) if name else path.unlink()
            _LOG.warning("%s is removed: a process that was killed had left it.", path)


def _is_abandoned(path: Path) -> bool:
    """Return whether no living process owns a partial, as far as this machine can know."""
    made = re.search(r"-([0-9a-f]{8})-([0-9a-f]{8})-[0-9a-f]{8}$", path.name)
    lock = path / _LOCK if path.is_dir() else path
    if made is None:
        # as versions before locks named them; anything else may be somebody's own
        return re.search(r"partial-[a-z0-9_]{8}$", path.name) is not None and path.is_dir() and not lock.exists()
    machine, start = _machine()
    if made[1] != machine and made[2] != start:  # containers of one machine have a start in common, and names of their own
        return False
    if fcntl is None or (path.is_dir() and not lock.exists()):  # without its lock it was being removed when that ended
        return fcntl is not None
    with contextlib.suppress(OSError), lock.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _make_file(folder: Path) -> tuple[int, Path]:
    """Make and lock an empty file; return its descriptor and path."""
    while True:
        path = folder / f"{_prefix('')}{_tag()}"
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o600)
        _lock(handle)
        if path.exists():  # otherwise another process took it for abandoned before it was locked
            return handle, path
        os.close(handle)


def _lock(handle: int) -> None:
    """Lock an open file until it is closed or the process ends. A file system without locks is one on which nothing is ever abandoned."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)


def _prefix(name: str) -> str:
    return f".{name}.partial-" if name else ".partial-"


def _tag() -> str:
    return f"{'-'.join(_machine())}-{secrets.token_hex(4)}"


@cache
def _machine() -> tuple[str, str]:
    """Return hashes of what identifies this machine, and of what identifies its last start."""
    known = []
    for path in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        try:
            known.append(Path(path).read_text())
        except OSError:
            known.append("")
    name = f"{platform.node()} {known[0]}"
    machine, start = (hashlib.sha256(text.encode()).hexdigest()[:8] for text in (name, known[1] or name))
    return machine, start


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
