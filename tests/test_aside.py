"""Files and folders written aside by processes that the system kills: the next one removes them, and never those of a living one."""

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import ROOT

from musiclm_deploy.runtime.aside import file_aside, folder_aside, remove_abandoned, replace_folder

CODE = """
import sys
from pathlib import Path
from musiclm_deploy.runtime.aside import file_aside, folder_aside
target = Path(sys.argv[1])
with folder_aside(target) as folder, file_aside(target.with_name("a.wav")) as file:
    (folder / "half").write_bytes(b"half")
    file.write(b"half"), file.flush()
    print("begun", flush=True)
    sys.stdin.read()
"""


@contextmanager
def writing(target: Path) -> Iterator[subprocess.Popen]:
    """A process in the middle of writing the folder `target`, and a.wav beside it."""
    command = [sys.executable, "-c", CODE, str(target)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    try:
        yield process
    finally:
        process.communicate("")


def killed(target: Path) -> list[Path]:
    """The folder and the file that a killed process leaves."""
    with writing(target) as process:
        process.kill()
    partials = sorted(target.parent.iterdir())
    assert [re.sub("partial-.*", "", path.name) for path in partials] == [f".{target.name}.", "."]
    return partials


def renamed(path: Path, machine: bool, start: bool) -> Path:
    """Give a partial the name that another machine, or another start of one, would have given it."""
    *name, of_machine, of_start, tag = path.name.split("-")
    return path.rename(path.with_name("-".join([*name, "0" * 8 if machine else of_machine, "0" * 8 if start else of_start, tag])))


def test_what_a_killed_process_left_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Fault: gigabytes of half a bundle stay beside it for ever; or they go without a word."""
    folder, file = killed(tmp_path / "bundle")
    remove_abandoned(tmp_path, "other")
    remove_abandoned(tmp_path, "bundl")
    assert folder.is_dir() and file.is_file() and not caplog.records
    with caplog.at_level(logging.WARNING):
        remove_abandoned(tmp_path, "bundle")
        remove_abandoned(tmp_path)
    assert not any(tmp_path.iterdir())
    said = [f"{path} is removed: a process that was killed had left it." for path in (folder, file)]
    assert [record.getMessage() for record in caplog.records] == said


def test_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    """Fault: one export removes what another is writing: a process that waits, that is stopped, or this one."""
    with writing(tmp_path / "bundle") as process, folder_aside(tmp_path / "bundle"), file_aside(tmp_path / "b.wav"):
        process.send_signal(signal.SIGSTOP)
        before = sorted(tmp_path.iterdir())
        remove_abandoned(tmp_path, "bundle")
        remove_abandoned(tmp_path)
        assert sorted(tmp_path.iterdir()) == before and len(before) == 4
        process.send_signal(signal.SIGCONT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "b.wav"]


@pytest.mark.parametrize(
    ("machine", "start", "stays"),
    [(True, True, True), (False, True, False), (True, False, False)],
    ids=["another machine", "before a restart", "another container"],
)
def test_whose_it_was(machine: bool, start: bool, stays: bool, tmp_path: Path) -> None:
    """Fault: on a shared folder, whose locks may not reach this machine, another one's export is removed; a restart keeps all for ever."""
    partials = [renamed(path, machine, start) for path in killed(tmp_path / "bundle")]
    remove_abandoned(tmp_path, "bundle")
    remove_abandoned(tmp_path)
    assert [path.exists() for path in partials] == [stays, stays]


def test_a_folder_of_before_there_were_locks(tmp_path: Path) -> None:
    """Fault: what an earlier version left stays for ever."""
    (tmp_path / ".bundle.partial-k2j4_x9a" / "new").mkdir(parents=True)
    (tmp_path / ".bundle.partial-of-mine").mkdir()  # no version made such a name
    remove_abandoned(tmp_path, "bundle")
    assert [path.name for path in tmp_path.iterdir()] == [".bundle.partial-of-mine"]


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_was_being_replaced_is_put_back(there: bool, tmp_path: Path) -> None:
    """Fault: a kill between two renames leaves the only bundle in the partial, and the next export removes it."""
    (folder, _), target = killed(tmp_path / "bundle"), tmp_path / "bundle"
    (folder / "older").mkdir()
    (folder / "older" / "content").write_text("older")
    if there:
        target.mkdir()
        (target / "content").write_text("newer")
    remove_abandoned(tmp_path, "bundle")
    assert (target / "content").read_text() == ("newer" if there else "older") and not folder.exists()


def test_replacing(tmp_path: Path) -> None:
    """Fault: half of each, a partial that is left, or the mode of a temporary folder."""
    target = tmp_path / "bundle"
    for content in ("old", "new"):
        with folder_aside(target) as folder:
            (folder / content).write_text(content)
            replace_folder(folder, target)
    assert os.listdir(tmp_path) == ["bundle"] and os.listdir(target) == ["new"]
    (tmp_path / "plain").mkdir()
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("aside", [file_aside, folder_aside])
def test_an_error_leaves_nothing(aside, tmp_path: Path) -> None:
    """Fault: a partial of each attempt, or an old file that is gone."""
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), aside(tmp_path / "a"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"old"
