"""The entrance of MuLaN's audio tower on a device: from a wave to the patches of its spectrogram, in one launch.

In: the manifest's `Spectrogram`, a driver, waves. Out: memory of the device, which the graph from the patches on reads there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...kernels.launch import LaunchList, bytes_of
from ...kernels.patches import build_patches, constants_of
from ..bundle import BundleError, Spectrogram
from .driver import Buffer, Driver, reserve


class Patches:
    """Buffers and launch are kept for the next wave of the same length."""

    def __init__(self, driver: Driver, spectrogram: Spectrogram, root: Path) -> None:
        """root: of the bundle."""
        self._driver, self._spectrogram = driver, spectrogram
        self._filters = filters_of(spectrogram, root)
        self._constants = constants_of(spectrogram.n_fft, spectrogram.win_length, spectrogram.bins, self._filters)
        self._buffers: dict[str, Buffer] = {}
        self._shape: tuple[int, ...] = ()
        self.recorded: Any = None  # the launch
        self._step = LaunchList()
        driver.evictable.add(self)

    def evict(self) -> None:
        self._shape, self.recorded, self._buffers = (), None, {}

    def make(self, wave: np.ndarray) -> tuple[Buffer, tuple[int, ...]]:
        """wave: float32 [B, t] -> patches float32 [B, rows, columns, bins * frames], there when all that was asked of the driver is done;
        and their shape. They are overwritten by the next call."""
        B, samples = wave.shape
        if wave.shape != self._shape:
            self._step = list_patches(self._spectrogram, B, samples, self._filters)
            self.evict()  # before as much is taken again
            needed = sum(bytes_of(*buffer) for buffer in self._step.buffers.values())
            reserve(self._driver, f"the spectrogram of {B} waves of {samples} samples", needed)
            self._buffers = {name: self._driver.allocate(*buffer) for name, buffer in self._step.buffers.items()}
            for name, array in self._constants.items():
                self._driver.upload(self._buffers[name], array)
            self.recorded = self._driver.record(self._step, self._buffers)
            self._shape = wave.shape
        self._driver.upload(self._buffers["wave"], np.ascontiguousarray(wave))
        self._driver.replay(self.recorded)
        return self._buffers["patches"], self._step.buffers["patches"][1]


def list_patches(spectrogram: Spectrogram, B: int, samples: int, filters: np.ndarray | None) -> LaunchList:
    """The launch for waves [B, samples]."""
    return build_patches(B, samples, *spectrogram.layout, None if filters is None else len(filters))


def filters_of(spectrogram: Spectrogram, root: Path) -> np.ndarray | None:
    """float32 [bands, n_fft // 2 + 1] of a log-mel spectrogram. root: of the bundle. BundleError for a file that holds something else."""
    if spectrogram.filters is None:
        return None
    path = root / spectrogram.filters
    try:
        filters = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"{path} is not an array as numpy saves it: {error}") from error
    least, width = spectrogram.bins, spectrogram.n_fft // 2 + 1
    if filters.dtype != np.float32 or filters.ndim != 2 or len(filters) < least or filters.shape[1] != width:
        raise BundleError(f"{path} holds {filters.dtype} {list(filters.shape)}, expected float32 [bands of at least {least}, {width}].")
    return filters
