"""The commands under strace: they write nothing outside the folders that they are given, and look for no host.

Allowed besides are /dev/null, semaphores of Python's multiprocessing, which are unlinked at once, and files in the temporary folder that
are gone at the end. Python's own cache of compiled modules, __pycache__, lies beside the modules and is the user's to turn off, as here.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CALLS = "?open,openat,?openat2,?creat,?mkdir,mkdirat,?rename,renameat,renameat2,?link,linkat,?symlink,symlinkat,%network"
WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|^(creat|mkdir|rename|link|symlink)")
LOOK_UPS = re.compile(r'AF_INET|"/etc/(resolv\.conf|hosts)"')
HARMLESS = re.compile(r"/dev/null|/dev/shm/sem\.\S+")


def why_not() -> str:
    """Return the reason why nothing can be traced here, "" if it can."""
    if sys.platform != "linux" or shutil.which("strace") is None:
        return "strace is not installed: apt-get install strace"
    tried = subprocess.run(["strace", "-f", "--seccomp-bpf", "-o", os.devnull, sys.executable, "-c", ""], capture_output=True, text=True)
    return f"strace may not trace here: {tried.stderr.strip()}" if tried.returncode else ""


@dataclass
class Trace:
    """The actions of a process and its children, in absolute paths."""

    written: set[Path] = field(default_factory=set)  # files, folders and links that were opened for writing, made or renamed
    look_ups: list[str] = field(default_factory=list)  # the calls that look for a host or open a socket to one


@dataclass
class Place:
    """Folders of a user who has nothing yet."""

    work: Path
    home: Path
    temporary: Path

    def trace(self, *command: str) -> Trace:
        """Run Python with these arguments in `work` under strace; AssertionError if it fails."""
        logs = Path(os.path.realpath(self.work.parent)) / "logs"
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir()
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "TMPDIR": str(self.temporary), "PYTHONDONTWRITEBYTECODE": "1"}
        environment |= {f"XDG_{name}_HOME": str(self.home / name.lower()) for name in ("CACHE", "CONFIG", "DATA", "STATE")}
        tracer = ["strace", "-ff", "--seccomp-bpf", "-qq", "-s", "4096", "-o", str(logs / "log"), "-e", f"trace={CALLS}"]
        done = subprocess.run([*tracer, sys.executable, *command], cwd=self.work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        trace = Trace()
        for log in sorted(logs.iterdir()):
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
                if LOOK_UPS.search(line):
                    trace.look_ups.append(line)
                if WRITES.search(line) and " = -1 " not in line:
                    trace.written |= {self.work / path for path in re.findall(r'"((?:[^"\\]|\\.)*)"', line)}
        return trace

    def outside(self, trace: Trace) -> list[Path]:
        """Return what was written outside `work`, except what is harmless."""
        gone = {path for path in trace.written if path.is_relative_to(self.temporary) and not path.is_file()}
        kept = [path for path in trace.written - gone if not path.is_relative_to(self.work)]
        return [path for path in sorted(kept) if not HARMLESS.fullmatch(str(path))]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Place]:
    if reason := why_not():
        pytest.skip(reason)
    root = tmp_path_factory.mktemp("traced").resolve()
    place = Place(*(root / name for name in ("work", "home", "temporary")))
    for folder in (place.work, place.home, place.temporary):
        folder.mkdir()
    yield place


@pytest.fixture(scope="module")
def exported(place, good) -> Trace:
    """The export of the tiny checkpoints to work/bundle."""
    files = [part for name, path in good.items() for part in (f"--{name}", str(path))]
    return place.trace("-m", "musiclm_deploy.cli", "export", "--quiet", *files, "--out", "bundle")


def check(place: Place, trace: Trace) -> None:
    assert trace.look_ups == []
    assert place.outside(trace) == []
    assert [path for folder in (place.home, place.temporary) for path in folder.rglob("*") if path.is_file()] == []


def test_what_is_seen(place) -> None:
    """Fault: the tests below pass because the trace misses a file, a thread, a child process or a socket."""
    code = """
import os, socket, subprocess, sys, threading
def other():
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    open(os.environ["TMPDIR"] + "/left", "w")
thread = threading.Thread(target=other)
thread.start()
thread.join()
open(os.environ["TMPDIR"] + "/gone", "w")
os.unlink(os.environ["TMPDIR"] + "/gone")
subprocess.run([sys.executable, "-c", "import os; os.mkdir(os.environ['HOME'] + '/child'); open('here', 'w'); open('/etc/hosts')"])
"""
    trace = place.trace("-c", code)
    left, child = place.temporary / "left", place.home / "child"
    try:
        assert place.outside(trace) == sorted([left, child]) and place.work / "here" in trace.written
        assert {call.partition("(")[0] for call in trace.look_ups} >= {"socket", "openat"}
    finally:
        left.unlink()
        child.rmdir()


def test_export(place, exported) -> None:
    """Fault: a package that the export imports keeps files of its own, or reports. Its validation is a process of its own, traced as well.

    torch leaves one empty folder in the temporary folder, torchinductor_<user>, as soon as it is imported.
    """
    assert place.work / "bundle" in exported.written
    check(place, exported)
    assert len(list(place.temporary.iterdir())) <= 1


@pytest.mark.parametrize(
    "command",
    [
        "inspect bundle",
        "generate bundle piano --seconds 0.2 --num-samples 2 -o out.wav --save-tokens tokens.npz",
        "doctor bundle semantic.pt",
    ],
)
def test_other_commands(place, exported, good, command) -> None:
    """Fault: the same in what runs a bundle, without torch, and in what examines files."""
    shutil.copy(good["semantic"], place.work / "semantic.pt")
    trace = place.trace("-m", "musiclm_deploy.cli", *command.split())
    check(place, trace)
    written = {path.name for path in trace.written if path.is_relative_to(place.work)}
    assert {"out.wav", "tokens.npz"} <= written if command.startswith("generate") else written == set()
