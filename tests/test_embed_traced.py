"""libmusiclm under strace: it reads a bundle, ONNX Runtime's library and what that asks of the machine, and changes nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support import embed

MISSING = embed.MISSING + [name for name in ("strace",) if shutil.which(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"it is built and traced with {', '.join(MISSING)}, which this machine lacks")

CALLS = "%file,%network,%process,mmap,mprotect,write"
CHANGES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|^(creat|mkdir|rename|link|symlink|unlink|rmdir|chmod|chown|truncate|mknod|utime)")
CHILDREN = re.compile(r"^(fork|vfork|execve|execveat|kill|clone3?\((?!.*CLONE_THREAD))")
SYSTEM = re.compile(
    r"/(usr/)?lib(64)?/|/etc/ld\.so\.|/proc/(cpuinfo$|self/(exe$|fd/|cgroup$|mountinfo$))"
    r"|/sys/(devices/system/cpu|bus/pci/devices|class|fs/cgroup)(/|$)"
)


@pytest.fixture(scope="module")
def calls(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The system calls of a program that opens the bundle, reads a stream's first samples and says so, then writes a clip to `clip`."""
    folder = tmp_path_factory.mktemp("traced")
    command = [embed.built() / "timed", tiny_bundle, "calm piano", "seconds=0.3", "threads=2", f"onnxruntime={embed.ONNXRUNTIME}"]
    tracer = ["strace", "-f", "--seccomp-bpf", "-qq", "-s", "4096", "-o", folder / "log", "-e", f"trace={CALLS}"]
    done = subprocess.run([*tracer, *command], input=f"{folder / 'clip'}\n", capture_output=True, text=True, cwd=folder)
    if done.returncode and "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
    assert not done.returncode and done.stderr == "", done.stderr
    found = [line.split(maxsplit=1)[1] for line in (folder / "log").read_text(errors="replace").splitlines()]
    assert found[0].startswith("execve(") and (folder / "clip").stat().st_size == 4 * 4800
    return found[1:]


def paths_of(calls: list[str]) -> set[Path]:
    """Return the paths in calls that succeeded, or that are not finished on their line."""
    done = [call for call in calls if " = -1 " not in call and not call.startswith("write")]
    return {Path(path) for call in done for path in re.findall(r'"(/[^"]*)"', call)}


def test_what_it_does_to_the_system(calls: list[str]) -> None:
    """Fault: a file that is written or removed, a socket, a process, memory that is written to and then executed."""
    assert [call for call in calls if CHANGES.search(call) and not re.search(r'/clip", O_WRONLY', call)] == []
    assert [call for call in calls if re.match(r"(socket|connect|bind|send|recv)", call) or CHILDREN.match(call)] == []
    assert [call for call in calls if "PROT_WRITE|PROT_EXEC" in call] == []


def test_what_it_reads(calls: list[str], tiny_bundle: Path) -> None:
    """Fault: a file of the user's or of the system's that the page on sandboxes does not list."""
    named = [embed.built(), tiny_bundle, embed.ONNXRUNTIME.parent]
    own = named + [folder.resolve() for folder in named]
    allowed = {parent for folder in own for parent in (folder, *folder.parents)}
    read = {path for path in paths_of(calls) if not any(path.is_relative_to(folder) for folder in own) and path not in allowed}
    assert {str(path) for path in read if not SYSTEM.match(str(path)) and path.name != "clip"} == set()
    assert embed.ONNXRUNTIME in paths_of(calls) and tiny_bundle / "codec_stream.onnx.data" in paths_of(calls), "too little was traced"


def test_what_a_running_stream_opens(calls: list[str]) -> None:
    """Fault: a file that is opened late, where a host has closed the door behind the first samples."""
    begun = next(index for index, call in enumerate(calls) if call.startswith("write(1,"))
    assert {path.name for path in paths_of([call for call in calls[begun:] if call.startswith("open")])} == {"clip"}
