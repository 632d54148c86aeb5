"""libmusiclm in a host's hands: its audio thread, its threads, its memory, its end. What it plays is tested in test_embed.py."""

from __future__ import annotations

import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from support import embed
from support.groups import V1, V2, tree
from support.shared import shared

from musiclm_deploy.runtime.container import available_processors

pytestmark = pytest.mark.skipif(
    bool(embed.MISSING), reason=f"libmusiclm is built with {', '.join(embed.MISSING)}, which this machine lacks"
)

TESTS = embed.SOURCE / "tests"


def run(
    *command: object, status: int = 0, seconds: float = 120, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, which must be this one, and return what it printed."""
    arguments = [str(argument) for argument in command]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=seconds, env={**os.environ, **(variables or {})})
    assert done.returncode == status, f"{arguments[0]} ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-6000:]}"
    return done


def host(bundle: Path, *what: object, seconds: float = 120, variables: Mapping[str, str] | None = None) -> str:
    """Run embed/tests/lifetimes.c, a host that opens the library itself, and return what it printed. It must not print on stderr."""
    folder = embed.built()
    done = run(folder / "lifetimes", folder / "libmusiclm.so", bundle, embed.ONNXRUNTIME, *what, seconds=seconds, variables=variables)
    assert not done.stderr
    return done.stdout


# --- the audio thread


def test_an_audio_thread_neither_waits_nor_takes_memory_nor_enters_the_kernel(tiny_bundle: Path) -> None:
    """Fault: a call of an audio callback that takes or frees memory, locks, waits, wakes or calls the system: at any rate, in underruns,
    while prompts change, at the end or after a cancel."""
    assert "underruns" in run(embed.built() / "audio_thread", tiny_bundle, embed.ONNXRUNTIME).stdout


@pytest.mark.parametrize("what", ["malloc", "free", "pthread_mutex_lock", "pthread_cond_wait", "pthread_cond_signal", "a system call"])
def test_the_trap_of_the_audio_thread(what: str) -> None:
    """Fault: a trap that lets through what it is for."""
    assert f"in the audio thread: {what}" in run(embed.built() / "audio_thread", what, status=1).stderr


# --- threads and memory


def sanitized(sanitizers: str, *programs: str) -> Path:
    """Return a folder with programs that are built, as the library is, with sanitizers."""
    options = [f"-DMUSICLM_SANITIZE={sanitizers}", "-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1"]
    return shared(f"embed-{sanitizers}", lambda folder: embed.build(folder, options, *programs))


def test_thread_sanitizer_finds_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    """Fault: memory that two threads touch without order, locks that are taken in two orders, a thread that is left."""
    variables = {"TSAN_OPTIONS": f"suppressions={TESTS / 'thread.supp'}"}
    run(sanitized("thread", "stress") / "stress", tiny_bundle, embed.ONNXRUNTIME, tmp_path, variables=variables)


@pytest.mark.nightly
def test_address_sanitizer_finds_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    """Fault: memory that is used after its end, beside its array or never freed; arithmetic that C++ leaves undefined."""
    folder = sanitized("address,undefined", "stress", "inspect")
    variables = {"ASAN_OPTIONS": "detect_stack_use_after_return=1"}
    run(folder / "stress", tiny_bundle, embed.ONNXRUNTIME, tmp_path, variables=variables)
    variables = {"ASAN_OPTIONS": "allocator_may_return_null=1"}  # what no memory has room for is an error, as without the sanitizer
    command = [sys.executable, TESTS / "fuzz_bundle.py", "--program", folder / "inspect", "--count", 2000, "--seed", 1]
    run(*command, seconds=600, variables=variables)


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not here")
def test_valgrind_finds_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    """Fault: memory that is read before it is written, or lost, in the optimized code; no sanitizer of gcc sees the first."""
    options = [f"--suppressions={TESTS / 'valgrind.supp'}", "--leak-check=full", "--show-leak-kinds=definite", "--error-exitcode=9"]
    run("valgrind", "-q", *options, embed.built() / "stress", tiny_bundle, embed.ONNXRUNTIME, tmp_path, seconds=600)


def test_timeouts_of_any_size(tiny_bundle: Path) -> None:
    """Fault: a wait that overflows the clock, and so keeps a processor busy or ends at once."""
    model = embed.Model(embed.load(), tiny_bundle)
    stream = model.stream("x", seconds=0.2)
    with pytest.raises(embed.Refused, match="timeout must be a number of seconds, got NaN"):
        stream.read(1, math.nan)
    assert len(stream.read(100, math.inf)) == 100 and len(stream.read(100, 1e300)) == 100
    stream.close()
    model.close()


# --- beginnings and ends


@pytest.mark.parametrize(("what", "times"), [("open", 40), ("load", 100), pytest.param("open", 1000, marks=pytest.mark.nightly)])
def test_again_and_again(what: str, times: int, tiny_bundle: Path) -> None:
    """Fault: memory that grows or a thread that stays with every model, or with every time that the library is loaded."""
    # one arena: how the allocator shares its own among threads is no growth
    before, after, left = map(int, host(tiny_bundle, what, times, seconds=600, variables={"MALLOC_ARENA_MAX": "1"}).split())
    assert after <= 1.01 * before and left == 0, (before, after, left)


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("how", ["return", "exit", "thread", "late"])
def test_a_process_ends_while_a_stream_runs(how: str, linked: bool, tiny_bundle: Path) -> None:
    """Fault: a crash or a wait at the end of a host that leaves its streams to it, or frees them last."""
    settings = {"LD_PRELOAD": str(embed.built() / "libmusiclm.so")} if linked else {}  # loaded before the host's own code runs
    begin = time.monotonic()
    host(tiny_bundle, "exit", how, 5000, variables=settings)
    assert time.monotonic() - begin < 5


def test_a_cancelled_stream_ends_within_a_frame(tiny_bundle: Path) -> None:
    """Fault: a cancel that waits for a turn of many frames, for all windows, or for the reader."""
    took = [int(line) / 1000 for line in host(tiny_bundle, "cancel", 40).split()]
    assert statistics.quantiles(took, n=4)[0] < 2, took  # of some 20 ms that a turn has; the others' tests may take the processor meanwhile


def test_another_prompt_does_not_wait_for_a_step(tiny_bundle: Path) -> None:
    """Fault: a window of a host that stands still while music is made."""
    took = [int(line) / 1000 for line in host(tiny_bundle, "change", 40).split()]
    assert statistics.median(took) < 15, took  # of which the text takes 0.5; a call of the step takes 20


def test_two_libraries_of_onnx_runtime(tiny_bundle: Path, tmp_path: Path) -> None:
    """Fault: a host with an ONNX Runtime of its own, whose symbols or environment are taken for the library's."""
    other = shutil.copy(embed.ONNXRUNTIME, tmp_path / "libonnxruntime.so.1")
    host(tiny_bundle, "two", other)


def test_a_host_in_python(tiny_bundle: Path) -> None:
    """Fault: a crash or other samples in a process with its own interpreter and ONNX Runtime, or at its end while a stream runs."""
    script = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support import embed
import musiclm_deploy as md
bundle = Path(sys.argv[2])
reference = md.load(bundle, device="cpu", step="native", threads=1)
model = embed.Model(embed.load(), bundle)
for seed in range(3):
    assert model.generate("x", seconds=0.5, seed=seed).tobytes() == reference.generate("x", seconds=0.5, seed=seed).audio.tobytes()
stream = model.stream("x", seconds="endless")
stream.read(5000)
"""
    assert not run(sys.executable, "-c", script, Path(__file__).parent, tiny_bundle, variables={embed.BUILT: str(embed.built())}).stderr


def test_the_state_of_the_hosts_threads(tiny_bundle: Path) -> None:
    """Fault: other samples where the host's thread rounds otherwise or flushes small numbers to zero; the host's signals handled in the
    library's threads."""
    host(tiny_bundle, "thread")


# --- what it is built of


@pytest.mark.parametrize("standard", ["c99", "c++98", "c++20"])
def test_the_header_in_any_language(standard: str, tmp_path: Path) -> None:
    """Fault: a header that one of the languages it is for does not take, or not twice."""
    use = tmp_path / "use"
    use.write_text(
        '#include "musiclm.h"\n#include "musiclm.h"\nml_status (*open_)(const char *, const ml_options *, ml_model **) = ml_model_open;\n'
    )
    strict = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-I", embed.SOURCE / "include", "-fsyntax-only"]
    run("g++" if "+" in standard else "gcc", f"-std={standard}", *strict, "-x", "c++" if "+" in standard else "c", use)


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/", {}),
        ("0::/", {"cg/cpu.max": "150000 100000"}),
        ("0::/", {"cg/cpu.max": "20000 100000"}),
        ("0::/", {"cg/cpu.max": "max 100000"}),
        ("0::/a/b", {"cg/a/b/cpu.max": "max 100000", "cg/a/cpu.max": "100000 100000"}),
        ("0::/a/gone/b", {"cg/a/cpu.max": "100000 100000"}),
        ("0::/../../a", {"cg/cpu.max": "100000 100000"}),
        ("3:cpu,cpuacct:/", {"cg 1/cpu.cfs_quota_us": "50000", "cg 1/cpu.cfs_period_us": "100000"}),
        ("3:cpu,cpuacct:/", {"cg 1/cpu.cfs_quota_us": "-1", "cg 1/cpu.cfs_period_us": "100000"}),
        ("3:cpuset:/", {"cg 1/cpu.cfs_quota_us": "50000", "cg 1/cpu.cfs_period_us": "100000"}),
    ],
)
def test_processors_are_those_that_python_counts(groups: str, files: dict[str, str], tmp_path: Path) -> None:
    """Fault: a thread for each processor of the machine, in a container that may keep one busy: they wait for each other."""
    mounts = [V2.format(top="/", place="/cg"), V1.format(top="/", place="/cg\\0401", controllers="cpu,cpuacct")]
    tree(tmp_path, groups, mounts, files)
    assert int(run(embed.built() / "processors", tmp_path).stdout) == available_processors(tmp_path)
