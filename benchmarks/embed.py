"""libmusiclm beside Python on one bundle: `python -m benchmarks.embed BUNDLE`.

In: a bundle's folder. Out: JSON lines. Timed in fresh processes: from `ml_model_open` to the first samples of a stream, in both plans. Then
whole clips by `ml_generate` and by Python's `generate`, turn about, whose samples must be equal to the bit. The memory of the library's
process is read meanwhile, and the libraries that an application ships are weighed.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.bundle import ROOT
from musiclm_deploy.runtime.backend import available_processors
from musiclm_deploy.runtime.bench.clips import TEXT, clip_of, facts
from musiclm_deploy.runtime.bench.record import Row, append, circumstances, ratio, say, spread
from musiclm_deploy.runtime.bundle import Bundle
from musiclm_deploy.runtime.musiclm import MusicLM, load
from musiclm_deploy.runtime.ort import import_onnxruntime
from musiclm_deploy.runtime.outputs import check_appendable

ONNXRUNTIME = next((Path(import_onnxruntime().__file__).parent / "capi").glob("libonnxruntime.so.*"))
PLANS = ("trained", "low_latency")


def build(folder: Path) -> None:
    """Build the library and its programs, where a source is newer than what is there."""
    for command in (["cmake", "-S", ROOT / "embed", "-B", folder, "-DMUSICLM_TESTS=ON"], ["cmake", "--build", folder, "-j2"]):
        subprocess.run(command, check=True, stdout=sys.stderr)


def shipped_mb(built: Path) -> float:
    """Return the size of the stripped library and of ONNX Runtime's, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "libmusiclm.so"
        subprocess.run(["strip", "--strip-unneeded", "-o", library, built / "libmusiclm.so"], check=True)
        return (library.stat().st_size + ONNXRUNTIME.stat().st_size) / 1e6


def weights_mb(process: subprocess.Popen[str], built: Path, bundle: Bundle) -> float:
    """Return how much of the process's memory is weights, in MB: the resident pages of mapped files, what ONNX Runtime has copied of
    them, and what the native step has packed."""
    resident, mapped, name = 0, dict.fromkeys(bundle.manifest.files, 0), ""
    for line in Path(f"/proc/{process.pid}/smaps").read_text().splitlines():
        if found := re.match(r"[0-9a-f]+-[0-9a-f]+ .{4} \S+ \S+ \d+ *(.*)", line):
            name = found[1].removeprefix(f"{bundle.root}/")
        elif name in mapped and (found := re.match(r"(Size|Rss): +(\d+) kB", line)):
            mapped[name] += 1024 * int(found[2]) if found[1] == "Size" else 0
            resident += 1024 * int(found[2]) if found[1] == "Rss" else 0
    manifest = bundle.manifest
    stages = (manifest.semantic, manifest.coarse, manifest.fine)
    graphs = [manifest.mulan.text, manifest.conditioner.graph, manifest.codec.stream, *(stage.context for stage in stages if stage.context)]
    data = {f"{graph}.data": manifest.files.get(f"{graph}.data") for graph in graphs}
    copied = sum(max(record.bytes - mapped[name], 0) for name, record in data.items() if record)
    said = subprocess.run([built / "inspect", bundle.root], check=True, capture_output=True, text=True).stdout
    packed = sum(map(int, re.findall(r"(\d+) bytes a step", said)))  # with one of its heads
    for stage in stages:
        heads = [place for name, place in stage.step.weights.items() if re.fullmatch(r"head\.\d+\.weight", name)]
        packed += sum(4 * place[2] * place[3] for place in heads[1:])
    return (resident + copied + packed) / 1e6


@contextmanager
def opened(built: Path, root: Path, options: dict[str, object]) -> Iterator[tuple[subprocess.Popen[str], list[float]]]:
    """A fresh process that has opened the bundle and read the first samples, and the seconds that both took."""
    given = [f"{name}={value}" for name, value in (options | {"onnxruntime": ONNXRUNTIME}).items()]
    with subprocess.Popen([built / "timed", root, TEXT, *given], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process, [float(number) for number in answer(process).split()]
        assert process.stdin is not None
        process.stdin.close()
        if process.wait():
            raise RuntimeError(f"{built / 'timed'} ended with status {process.returncode}; what it said is above.")


def answer(process: subprocess.Popen[str]) -> str:
    """Return the process's next line."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args} ended with status {process.wait()}; what it said is above.")
    return line


def clip_by(process: subprocess.Popen[str], path: Path) -> tuple[float, bytes]:
    """Return the seconds that the process took for its clip, and the samples."""
    assert process.stdin is not None
    print(path, file=process.stdin, flush=True)
    return float(answer(process)), path.read_bytes()


def peak_mb(process: subprocess.Popen[str]) -> float:
    """Return the most memory that was resident at once, in MB."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:"))


def options_of(plan: str, seconds: float, fine_window: int | None, threads: int) -> dict[str, object]:
    """Return the library's options for a clip; a plan of low latency has windows of its own."""
    windows = {"plan": plan} if plan != "trained" else {} if fine_window is None else {"fine.window": fine_window}
    return {"seconds": seconds, "threads": threads, **windows}


def time_start(built: Path, bundle: Bundle, options: dict[str, object], repeats: int) -> Row:
    """Fresh processes, one after another, until their first samples; the last one goes on to a whole clip, for its memory."""
    times, peak, weights = [], 0.0, 0.0
    for repeat in range(repeats):
        say(f"embed: {options.get('plan', 'trained')}, fresh process {repeat + 1} of {repeats}")
        with opened(built, bundle.root, options) as (process, until), tempfile.TemporaryDirectory() as folder:
            times.append(until)
            if repeat == repeats - 1:
                clip_by(process, Path(folder) / "clip")
                peak, weights = peak_mb(process), weights_mb(process, built, bundle)
    opened_s, first_s = zip(*times, strict=True)
    memory = {"peak_mb": round(peak, 1), "weights_mb": round(weights, 1), "beyond_mb": round(peak - weights, 1)}
    return {**spread(first_s), "opened_ms": spread(opened_s)["median_ms"], **memory}


def time_clips(built: Path, model: MusicLM, options: dict[str, object], seconds: float, fine_window: int | None, repeats: int) -> Row:
    """Whole clips of both, turn about. Raises RuntimeError where the library's samples are not Python's."""
    request = clip_of(model, None, fine_window)
    ours, theirs = [], []
    with opened(built, model.bundle.root, options) as (process, _), tempfile.TemporaryDirectory() as folder:
        request(1, 1, seconds)  # warm-up, as the other's first samples are
        for repeat in range(repeats):
            say(f"embed: clips of {seconds:g} s, turn about, {repeat + 1} of {repeats}")
            took, wave = clip_by(process, Path(folder) / "clip")
            began = time.perf_counter()
            (music,) = request(1, 1, seconds)
            theirs.append(time.perf_counter() - began)
            ours.append(took)
            if music.audio.tobytes() != wave:
                raise RuntimeError("the library's samples differ from Python's. A fast wrong answer is no result.")
    return ratio(f"a clip of {seconds:g} s: libmusiclm over Python", ours, theirs) | {"median_ms": spread(ours)["median_ms"]}


def measure(root: Path, built: Path, seconds: float, fine_window: int | None, repeats: int, threads: int) -> list[Row]:
    """Return the rows of a bundle."""
    with load(root, "cpu", threads=threads) as model:
        around = facts(model, None, fine_window)
        shipped = round(shipped_mb(built), 2)
        rows: list[Row] = []
        for plan in PLANS:
            row = time_start(built, model.bundle, options_of(plan, seconds, fine_window, threads), repeats)
            rows.append({"benchmark": "embed", "form": plan, "seconds": seconds, "shipped_mb": shipped, **row, **around})
        clips = time_clips(built, model, options_of("trained", seconds, fine_window, threads), seconds, fine_window, repeats)
        return [*rows, clips | around]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--built", type=Path, default=ROOT / "build" / "embed", help="folder that CMake builds in (default: build/embed)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the clips (default: 10)")
    parser.add_argument("--fine-window", type=int, help="frames of a window of the fine stage (default: the trained window)")
    parser.add_argument("--repeats", type=int, default=5, help="of the starts, and of the clips (default: 5)")
    parser.add_argument("--threads", type=int, default=available_processors(), help="of the CPU (default: one per core)")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "embed.jsonl", help="where rows are appended")
    options = parser.parse_args(arguments)
    check_appendable(options.json)
    build(options.built)
    given = sys.argv[1:] if arguments is None else arguments
    around = circumstances(shlex.join(["python", "-m", "benchmarks.embed", *map(str, given)]), options.threads)
    rows = measure(options.bundle, options.built, options.seconds, options.fine_window, options.repeats, options.threads)
    append(options.json, [row | {"bundle": os.path.relpath(options.bundle)} | around for row in rows])


if __name__ == "__main__":
    main()
