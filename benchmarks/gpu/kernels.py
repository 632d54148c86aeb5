"""What a GPU makes of kernels alone: their tests there, compute-sanitizer, and the time from a wave to MuLaN's patches.

In: a bundle with kernels, a driver. Out: rows; RuntimeError with what was found.
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
from musiclm_deploy.runtime.bundle import Bundle, Spectrogram
from musiclm_deploy.runtime.device.cuda import CudaDriver
from musiclm_deploy.runtime.device.patches import Patches, filters_of

ROOT = Path(__file__).resolve().parent.parent.parent
_SEED, _TIMES = 0, 200


def check_kernels() -> None:
    """Every kernel against its reference, by the tests that interpret it on a CPU, on the GPU. It takes a torch that has it."""
    say("gpu: kernels against their references")
    tests = sorted(str(path) for path in (ROOT / "tests").glob("test_kernels_*.py") if path.stem != "test_kernels_compile")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment | {"MUSICLM_KERNELS_ON": "cuda"})
    if done.returncode:
        raise RuntimeError(f"kernels on the GPU are not their references:\n{done.stdout[-4000:]}\n{done.stderr[-1000:]}")


def time_patches(opened: Bundle, driver: CudaDriver, seconds: float) -> list[Row]:
    """From a wave to patches: the kernel, whose patches must be those of the reference, and torch's stft where torch has the GPU."""
    mulan = opened.manifest.mulan
    if (spectrogram := mulan.spectrogram) is None:
        return []
    say("gpu: from a wave to patches")
    wave = np.random.default_rng(_SEED).standard_normal((1, round(seconds * mulan.sample_hz))).astype(np.float32)
    entrance = Patches(driver, spectrogram, opened.root)
    patches, shape = entrance.make(wave)
    found = np.empty(shape, np.float32)
    driver.call("cuMemcpyDtoHAsync", found.ctypes.data, patches.address, found.nbytes, driver.stream)
    driver.call("cuStreamSynchronize", driver.stream)
    exact = patches_of(wave, *spectrogram.layout, filters_of(spectrogram, opened.root))
    error = float(np.abs(found - exact).max() / np.abs(exact).max())
    if not error < 1e-4:
        raise RuntimeError(f"patches differ from the reference by {error:.1e} of the largest.")
    times = {"kernel": _time(lambda: driver.replay(entrance.recorded), lambda: driver.call("cuStreamSynchronize", driver.stream))}
    if torch.cuda.is_available() and spectrogram.filters is None:
        graph = _captured(torch.from_numpy(wave).cuda(), spectrogram)
        times["torch.stft"] = _time(graph.replay, torch.cuda.synchronize)
    about = {"benchmark": "gpu patches", "seconds": seconds, "megabytes": round((wave.nbytes + found.nbytes) / 1e6, 3)}
    return [
        about | {"form": form, "us": round(1e6 * each, 1), "error": error if form == "kernel" else None} for form, each in times.items()
    ]


def sanitize() -> None:
    """Launch every kind of kernel under compute-sanitizer, on a tiny bundle, where the tool is installed."""
    if (tool := shutil.which("compute-sanitizer")) is None:
        say("gpu: without compute-sanitizer, which is not installed")
        return
    for check_of in ("memcheck", "racecheck", "synccheck"):
        say(f"gpu: compute-sanitizer, {check_of}")
        command = [
            tool,
            "--tool",
            check_of,
            "--error-exitcode",
            "3",
            sys.executable,
            "-m",
            "benchmarks.gpu",
            "--size",
            "tiny",
            "--only-tokens",
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise RuntimeError(f"compute-sanitizer, {check_of}:\n{done.stdout[-4000:]}\n{done.stderr[-1000:]}")


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
        for _ in range(_TIMES):
            run()
        wait()
        found.append((time.perf_counter() - started) / _TIMES)
    return min(found[1:])
