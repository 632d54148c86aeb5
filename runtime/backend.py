"""Which device runs the graphs, and the sessions on it.

In: a device name from the caller. Out: ONNX Runtime sessions. A device that was named and cannot be had is an error; only "auto" chooses.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .bundle import BundleError
from .container import available_processors
from .install import install_command
from .ort import import_onnxruntime
from .shortage import naming_shortage

if TYPE_CHECKING:
    import onnxruntime as ort

_LOG = logging.getLogger(__name__)
DEVICES = ("auto", "cpu", "cuda", "tensorrt")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}  # device -> ONNX Runtime's provider


class BackendError(RuntimeError):
    """The device asked for cannot be used here; the message says what to install."""


def choose_device(device: str) -> str:
    """The device to use for what the caller asked. What TensorRT needs is looked for when its engines are opened."""
    if device not in DEVICES:
        raise BackendError(f"device must be one of {', '.join(DEVICES)}, got {device!r}.")
    if device == "tensorrt":
        return device
    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if _is_installed(name)]
    if len(installed) == 2:
        raise BackendError(
            "onnxruntime and onnxruntime-gpu are both installed, and each overwrites files of the other. "
            f"Uninstall both, then install one: {_either()}."
        )
    if importlib.util.find_spec("onnxruntime") is None:
        raise BackendError(f"ONNX Runtime is not installed. Install one: {_either()}.")
    if device == "cuda":
        ort = import_onnxruntime()
        if PROVIDERS["cuda"] not in ort.get_available_providers():
            raise BackendError(f"device='cuda': this ONNX Runtime is for CPUs alone. Uninstall onnxruntime, then {install_command('gpu')}.")
        ort.preload_dlls()  # CUDA's libraries as pip installs them, which the system's loader does not find
    return "cpu" if device == "auto" else device


def useful_threads(threads: int | None) -> int | None:
    """Return `threads`, or the number of processors, with a warning, if `threads` is larger.

    Threads beyond the processors wait for each other at every product of a step: 64 threads on two processors take forty times as long.
    """
    most = available_processors()
    if threads is None or threads <= most:
        return threads
    _LOG.warning("threads=%d is more than the %d processors that this process may use: %d are used.", threads, most, most)
    return most


def open_session(
    path: Path, threads: int | None, device: str = "cpu", data: Mapping[str, Path] | None = None, spins: bool = True
) -> ort.InferenceSession:
    """Open a session on "cpu" or "cuda". `threads` None takes one per physical core, or one per processor if this process may not use all.

    data: the files that the graph may take weights from, by the names that it has for them. By default ONNX Runtime opens what the graph
    names, in the graph's own folder only, so that most links to other folders are refused.
    spins: whether its threads wait for the next call without sleeping, for some milliseconds: of calls that follow one another. Between
    those of something else they would disturb it.
    Raises BundleError for a graph that does not load, MemoryError for one that does not fit, and BackendError if it would run on another
    device than was asked for.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # At the second call of every shape a block for all of its values is laid out anew, which for MuLaN and a clip of 10 s takes as long as
    # the call itself, and saves nothing later that the arena has not saved.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.force_spinning_stop", str(int(not spins)))
    if threads is None and available_processors() < (os.cpu_count() or 1):
        threads = available_processors()  # ONNX Runtime would count all of the machine's
    if threads is not None:
        options.intra_op_num_threads = threads
    providers = list(dict.fromkeys([PROVIDERS[device], PROVIDERS["cpu"]]))  # the CPU has what reads shapes, and what CUDA does not know
    try:
        with naming_shortage(f"while {path.name} was opened"):
            # On a CPU there is no other provider to fall back to; ONNX Runtime would print the failure and only try the same again.
            mapped = _map(data or {})  # must live until the session has copied what it needs
            graph: Path | bytes = path
            if mapped:  # a graph without a path has no folder: ONNX Runtime then refuses every file that is not among these
                options.add_external_initializers_from_files_in_memory(list(mapped), list(mapped.values()), [*map(len, mapped.values())])
                graph = path.read_bytes()
            session = ort.InferenceSession(graph, options, providers=providers, enable_fallback=int(device != "cpu"))
    except MemoryError:
        raise
    except Exception as error:  # ONNX Runtime's own errors have no common base
        raise BundleError(f"{path}: ONNX Runtime refuses this graph: {error}") from error
    if session.get_providers()[0] != providers[0]:  # it goes on without one that fails to start
        raise BackendError(f"device={device!r}: ONNX Runtime could not start {providers[0]}: check the GPU's driver and CUDA's libraries.")
    return session


def _map(files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    """Map files into memory: uint8 [bytes] by name."""
    mapped = {}
    for name, path in files.items():
        with path.open("rb") as file:
            mapped[name] = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    return mapped


def _either() -> str:
    return f"{install_command('cpu')}; for NVIDIA GPUs {install_command('gpu')}"


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
