"""Files that results are written to: checked before the work begins, then written whole or not at all.

In: a path, and later the bytes. Out: the file, or an OSError whose text names the path, the reason and what to do. A symbolic link is
followed. A named pipe and a character device take the bytes themselves; they are never replaced by a file.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO

from .aside import file_aside, probe, remove_abandoned

_REASONS = {
    errno.ENOSPC: "no space is left on its disk. Free some, or write to another disk.",
    errno.EDQUOT: "your disk quota is used up. Free some space, or write to another disk.",
    errno.EFBIG: "the file would be larger than this process or this file system allows (ulimit -f says what the process may write).",
    errno.ENOENT: "no file can be made in its folder. Write to another one.",
    errno.EROFS: "its file system is read-only. Write to another folder.",
    errno.EACCES: "permission denied. Write to another folder, or change the permissions.",
    errno.EPERM: "the system does not permit it. Write to another folder.",
    errno.ENAMETOOLONG: "its name is too long. Give a shorter one.",
    errno.ELOOP: "it is a symbolic link that leads back to itself.",
}


def check_output(path: Path) -> None:
    """Raise OSError for a path that cannot be written. The file, if there is one, is neither opened nor changed.

    Partial files of killed processes in its folder are removed.
    """
    with named_errors(path):
        if is_stream(path):
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, "")
            return
        target = _target(path)
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(f"cannot write {path}: the file is write-protected. Give another name, or change its permissions.")
        remove_abandoned(target.parent)
        probe(target.parent)


def check_appendable(path: Path) -> None:
    """Raise OSError for a path to which `append_output` could add nothing. Changes nothing."""
    with named_errors(path):
        if path.exists():
            if not is_stream(path) and not os.access(_target(path), os.W_OK):
                raise PermissionError(errno.EACCES, "")
            return
        folder = next(above for above in _target(path, missing_folders=True).parents if above.exists())
        probe(folder)


def write_output(path: Path, data: bytes | memoryview) -> None:
    """Write a file whole: aside first, then renamed. An error leaves the old file as it was, and nothing else behind.

    Raises BrokenPipeError if the reader of a named pipe goes away, another OSError for everything else that keeps it from being written.
    """
    with named_errors(path):
        if is_stream(path):
            with path.open("wb") as stream:
                stream.write(data)
            return
        with file_aside(_target(path)) as file:
            file.write(data)


def append_output(path: Path, text: str) -> None:
    """Add text to the end of a file, all of it or, with an OSError, nothing; make the file and its folders where they are missing."""
    with named_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            before = os.fstat(file.fileno()).st_size
            try:
                write_all(file, text.encode())
            except OSError:
                if not is_stream(path):
                    file.truncate(before)
                raise


def write_all(stream: BinaryIO | RawIOBase, data: bytes | memoryview) -> None:
    """Write all of the bytes, or raise OSError.

    A stream without a buffer, such as standard output under PYTHONUNBUFFERED, may take only a part in one call, and fail in the next.
    """
    rest = memoryview(data)
    while rest:
        rest = rest[stream.write(rest) or 0 :]
    stream.flush()


def is_stream(path: Path) -> bool:
    """Return whether the path, its links followed, is a named pipe or a character device."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _target(path: Path, missing_folders: bool = False) -> Path:
    """Return the file that the path leads to, through any symbolic links: an existing one, or a new one in an existing folder."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a directory.")
    if target.exists() and not target.is_file():
        raise OSError(f"cannot write {path}: it is neither a file, nor a pipe, nor a character device.")
    if not target.parent.is_dir() and not missing_folders:
        shown = path.parent if not path.is_symlink() else target.parent
        raise FileNotFoundError(f"cannot write {path}: {shown} is not a directory.")
    return target


@contextmanager
def named_errors(path: Path | str) -> Iterator[None]:
    """Turn the system's errors into sentences that name the path."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno is None:  # a sentence already
            raise
        reason = _REASONS.get(error.errno, f"{error.strerror or error}.")
        raise type(error)(f"cannot write {path}: {reason}") from error
