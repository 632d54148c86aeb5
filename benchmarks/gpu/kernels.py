"""What a GPU makes of kernels alone: their tests there, compute-sanitizer, and the time from a wave to MuLaN's patches.

In: a driver, a spectrogram. Out: rows; RuntimeError with what was found, Missing where a tool is not there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from musiclm_deploy.kernels.spectrogram.reference import patches as patches_of
from musiclm_deploy.runtime.bench.record import Row, say
from musiclm_deploy.runtime.bundle import Spectrogram
from musiclm_deploy.runtime.device.cuda import CudaDriver
from musiclm_deploy.runtime.device.patches import Patches, filters_of

from .parts import Missing

ROOT = Path(__file__).resolve().parent.parent.parent
_SEED, TIMES = 0, 200
_MOST_LOST = 1e-4  # of the largest value of patches, which are float32


def need_torch() -> None:
    """Missing where torch has no GPU."""
    if not torch.cuda.is_available():
        raise Missing(f"this torch, {torch.__version__}, has no GPU here")


def check_kernels() -> None:
    """Every kernel against its reference, by the tests that interpret it on a CPU, on the GPU, where Triton compiles it anew. Missing where
    torch has none. What a bundle brings compiled is looked at by the logits of whole steps (`tokens`)."""
    need_torch()
    tests = sorted(str(path) for path in (ROOT / "tests").glob("test_kernels_*.py") if path.stem != "test_kernels_compile")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment | {"MUSICLM_KERNELS_ON": "cuda"})
    if done.returncode:
        raise RuntimeError(f"kernels on the GPU are not their references:\n{done.stdout[-4000:]}\n{done.stderr[-1000:]}")


def check_patches(driver: CudaDriver, spectrogram: Spectrogram, root: Path, sample_hz: int, seconds: float, timed: bool) -> list[Row]:
    """From a wave to patches: the kernel, whose patches must be those of the reference, and torch's stft where torch has the GPU.

    root: of the bundle, or of what has its filters. No rows where nothing is timed.
    """
    wave = np.random.default_rng(_SEED).standard_normal((1, round(seconds * sample_hz))).astype(np.float32)
    entrance, filters = Patches(driver, spectrogram, root), filters_of(spectrogram, root)
    patches, shape = entrance.make(wave)
    found = np.empty(shape, np.float32)
    driver.call("cuMemcpyDtoHAsync", found.ctypes.data, patches.address, found.nbytes, driver.stream)
    driver.call("cuStreamSynchronize", driver.stream)
    exact, name = patches_of(wave, *spectrogram.layout, filters), "power" if filters is None else "log-mel"
    error = float(np.abs(found - exact).max() / np.abs(exact).max())
    if not error < _MOST_LOST:
        raise RuntimeError(f"{name} patches differ from the reference by {error:.1e} of the largest, {_MOST_LOST:g} is allowed.")
    if not timed:
        return []
    times = {"kernel": _time(lambda: driver.replay(entrance.recorded), lambda: driver.call("cuStreamSynchronize", driver.stream))}
    if torch.cuda.is_available() and filters is None:
        graph = _captured(torch.from_numpy(wave).cuda(), spectrogram)
        times["torch.stft"] = _time(graph.replay, torch.cuda.synchronize)
    about = {"benchmark": "gpu patches", "spectrogram": name, "seconds": seconds}
    about |= {"megabytes": round((wave.nbytes + found.nbytes) / 1e6, 3)}
    return [
        about | {"form": form, "us": round(1e6 * each, 1), "error": error if form == "kernel" else None} for form, each in times.items()
    ]


def need_sanitizer() -> str:
    """compute-sanitizer's path. Missing where it is not installed."""
    if (tool := shutil.which("compute-sanitizer")) is None:
        raise Missing("compute-sanitizer is not installed; it comes with the CUDA toolkit")
    return tool


def sanitize(tool: str) -> None:
    """Launch every kind of kernel under compute-sanitizer, on the tiny bundles, which should be there: steps and prompts, guided and not,
    of all types of weights, `sample`, and patches of either spectrogram."""
    options = ["--size", "tiny", "--untimed", "--rows", "2", "--context", "20", "--tokens", "4", "--seconds", "0.5"]
    faults = []
    for check_of in ("memcheck", "racecheck", "synccheck"):
        say(f"gpu: compute-sanitizer, {check_of}")
        command = [tool, "--tool", check_of, "--error-exitcode", "3", sys.executable, "-m", "benchmarks.gpu", *options]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            faults.append(f"{check_of} ended with status {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-1000:]}")
    if faults:
        raise RuntimeError("\n".join(faults))


def _captured(wave: torch.Tensor, spectrogram: Spectrogram) -> torch.cuda.CUDAGraph:
    """torch's way to the same patches, as a CUDA graph: stft, its power, cut into patches that lie one after another."""
    window = torch.hann_window(spectrogram.win_length, device=wave.device)

    def run() -> torch.Tensor:
        n_fft, win_length, hop, center, (bins, frames) = spectrogram.layout
        found = torch.stft(wave, n_fft, hop, win_length, window, center, "reflect", return_complex=True)
        power = found.real.square() + found.imag.square()
        rows, columns = power.shape[1] // bins, power.shape[2] // frames
        power = power[:, : rows * bins, : columns * frames].unflatten(2, (columns, frames))
        return power.unflatten(1, (rows, bins)).transpose(2, 3).contiguous()

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def _time(run: Callable[[], object], wait: Callable[[], object]) -> float:
    """Seconds of a run, of many that are launched one after another; the least of three."""
    found = []
    for _ in range(4):  # the first warms up
        started = time.perf_counter()
        for _ in range(TIMES):
            run()
        wait()
        found.append((time.perf_counter() - started) / TIMES)
    return min(found[1:])
