"""Files that results are written to: refusals before the work, links that are followed, and what a failed write leaves."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from musiclm_deploy.runtime.outputs import append_output, check_appendable, check_output, write_all, write_output

NOBODY = 65534
DATA = b"new" * 1000


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """An empty folder of a user without privileges, who this process is meanwhile: root may write everything."""
    folder, before = Path(tempfile.mkdtemp()), os.getresuid()
    if before[0] == 0:
        os.chown(folder, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield folder
    finally:
        os.setresuid(*before)
        shutil.rmtree(folder)


def entries(folder: Path) -> dict[str, bytes | None]:
    """Return the contents of a folder's files by name, None for everything but plain files."""
    return {path.name: path.read_bytes() if path.is_file() and not path.is_symlink() else None for path in folder.iterdir()}


def missing_folder(folder: Path) -> tuple[Path, str]:
    return folder / "nowhere" / "a.wav", f"cannot write {folder}/nowhere/a.wav: {folder}/nowhere is not a directory."


def file_as_folder(folder: Path) -> tuple[Path, str]:
    (folder / "b").write_bytes(b"old")
    return folder / "b" / "a.wav", f"cannot write {folder}/b/a.wav: "


def directory(folder: Path) -> tuple[Path, str]:
    (folder / "a.wav").mkdir()
    return folder / "a.wav", "it is a directory."


def protected_file(folder: Path) -> tuple[Path, str]:
    (folder / "a.wav").write_bytes(b"old")
    (folder / "a.wav").chmod(0o444)
    return folder / "a.wav", "the file is write-protected. Give another name, or change its permissions."


def protected_folder(folder: Path) -> tuple[Path, str]:
    (folder / "b").mkdir(mode=0o555)
    return folder / "b" / "a.wav", "permission denied. Write to another folder, or change the permissions."


def long_name(folder: Path) -> tuple[Path, str]:
    return folder / ("a" * 300 + ".wav"), "its name is too long. Give a shorter one."


def loop(folder: Path) -> tuple[Path, str]:
    (folder / "a.wav").symlink_to("a.wav")
    return folder / "a.wav", "it is a symbolic link that leads back to itself."


def link_to_nowhere(folder: Path) -> tuple[Path, str]:
    (folder / "a.wav").symlink_to(folder / "nowhere" / "b.wav")
    return folder / "a.wav", f"{folder}/nowhere is not a directory."


def bound_socket(folder: Path) -> tuple[Path, str]:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "a.wav"))
    return folder / "a.wav", "it is neither a file, nor a pipe, nor a character device."


@pytest.mark.parametrize(
    "obstacle",
    [missing_folder, file_as_folder, directory, protected_file, protected_folder, long_name, loop, link_to_nowhere, bound_socket],
)
def test_obstacles_are_found_before_the_work(unprivileged: Path, obstacle: Callable[[Path], tuple[Path, str]]) -> None:
    """Fault: minutes of music are computed for a file that cannot be written; or finding out leaves, truncates or replaces something."""
    path, message = obstacle(unprivileged)
    before = entries(unprivileged)
    with pytest.raises(OSError) as error:
        check_output(path)
    assert str(error.value).startswith(f"cannot write {path}: ") and message in str(error.value)
    assert entries(unprivileged) == before


@pytest.mark.parametrize("check", [check_output, check_appendable])
def test_what_can_be_written_is_left_alone(tmp_path: Path, check: Callable[[Path], None]) -> None:
    """Fault: the check truncates an old file, leaves an empty one, or refuses what could be written."""
    (tmp_path / "old.wav").write_bytes(b"old")
    (tmp_path / "link.wav").symlink_to("target.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    before = entries(tmp_path)
    for name in ("old.wav", "new.wav", "link.wav", "pipe.wav", "a" * 251 + ".wav"):
        check(tmp_path / name)
    check(Path("/dev/null"))
    assert entries(tmp_path) == before


def test_a_link_is_followed(tmp_path: Path) -> None:
    """Fault: a link to another disk is replaced by a file, and its target stays as it was."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("folder/target")
    (tmp_path / "dangling").symlink_to("folder/new")
    for name, target in (("link", "target"), ("dangling", "new")):
        write_output(tmp_path / name, DATA)
        assert (tmp_path / name).is_symlink() and (tmp_path / "folder" / target).read_bytes() == DATA
    assert sorted(os.listdir(tmp_path / "folder")) == ["new", "target"]


def test_a_pipe_takes_the_bytes(tmp_path: Path) -> None:
    """Fault: the last rename puts a file in place of the pipe, and its reader waits for ever."""
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_output(pipe, DATA)
    reader.join()
    assert read == [DATA] and pipe.is_fifo() and os.listdir(tmp_path) == ["pipe"]


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    """Fault: it becomes an error of the output, told at length, where the command line ends quietly."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: pipe.open("rb").close())
    reader.start()
    with pytest.raises(BrokenPipeError):
        write_output(pipe, bytes(1 << 20))
    reader.join()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_device_is_written_and_never_replaced() -> None:
    """Fault: /dev/null becomes a file for all of the system; a full disk is told as [Errno 28]."""
    write_output(Path("/dev/null"), DATA)
    for write in (lambda: write_output(Path("/dev/full"), DATA), lambda: append_output(Path("/dev/full"), "row")):
        with pytest.raises(OSError) as error:
            write()
        assert str(error.value) == "cannot write /dev/full: no space is left on its disk. Free some, or write to another disk."
    assert Path("/dev/null").is_char_device() and Path("/dev/full").is_char_device()


def test_a_limit_on_files_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """Fault: half a file in place of the old one, half a row at its end, a temporary file, or an error without the file's name."""
    path, rows = tmp_path / "a.wav", tmp_path / "rows.jsonl"
    path.write_bytes(b"old")
    rows.write_text("kept\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        for name, write in ((path, lambda: write_output(path, DATA)), (rows, lambda: append_output(rows, "x" * 3000))):
            with pytest.raises(OSError, match="ulimit -f") as error:
                write()
            assert str(error.value).startswith(f"cannot write {name}: the file would be larger than ")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert entries(tmp_path) == {"a.wav": b"old", "rows.jsonl": b"kept\n"}


def test_an_old_file_is_replaced_whole(tmp_path: Path) -> None:
    """Fault: who is reading the old file meets the new bytes; or the new one keeps a temporary file's private mode."""
    path = tmp_path / ("長い名前" * 20 + "abc.wav")  # 247 bytes, of the 255 that a name may have
    path.write_bytes(b"old")
    umask = os.umask(0o027)
    try:
        with path.open("rb") as reader:
            write_output(path, DATA)
            assert reader.read() == b"old"
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o640 and entries(tmp_path) == {path.name: DATA}


def test_rows_are_added_below_new_folders(tmp_path: Path) -> None:
    """Fault: the check refuses a folder that appending makes, accepts one that it cannot make, or makes it already."""
    path = tmp_path / "a" / "b" / "rows.jsonl"
    check_appendable(path)
    assert not os.listdir(tmp_path)
    for row in ("one\n", "two\n"):
        append_output(path, row)
    assert path.read_text() == "one\ntwo\n"
    with pytest.raises(OSError, match="cannot write"):
        check_appendable(path / "below a file")
    with pytest.raises(IsADirectoryError, match="it is a directory"):
        check_appendable(path.parent)


def test_a_stream_without_a_buffer_gets_all_of_it() -> None:
    """Fault: a reader goes away in the middle, the system takes a part of the bytes, and the rest is lost without an error."""
    reading, writing = os.pipe()
    reader = threading.Thread(target=lambda: (os.read(reading, 100), os.close(reading)))
    with os.fdopen(writing, "wb", buffering=0) as stream:
        reader.start()
        with pytest.raises(BrokenPipeError):
            write_all(stream, bytes(1 << 20))
    reader.join()
