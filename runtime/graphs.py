"""The graphs of a bundle other than the token transformers' steps: opened when they are first used, run by ONNX Runtime or as engines.

In: a checked bundle, a device. Out: the outputs of a graph by name. It does not know what a graph means.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import open_session
from .bundle import STAGES, Bundle, Spectrogram
from .device.driver import Driver, Engines
from .device.patches import Patches
from .shortage import naming_shortage

if TYPE_CHECKING:
    import onnxruntime as ort


class Graphs:
    """The sessions of one loaded bundle; several threads may use it at once."""

    def __init__(self, bundle: Bundle, device: str, threads: int | None, driver: Driver | None) -> None:
        """driver: of the device whose memory the graphs share with the token transformers; None on a CPU."""
        self.bundle, self._device, self.threads, self.driver = bundle, device, threads, driver
        self._sessions: dict[str, ort.InferenceSession] | None = {}
        self._patches: Patches | None = None
        self._engines = driver if isinstance(driver, Engines) else None  # once: comparing with a protocol takes 15 µs
        self._opening, self._device_turn = threading.Lock(), threading.RLock()  # a report may close the model

    def run(self, graph: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Run a graph once, by its file name. Raises RuntimeError after `close`."""
        if self._engines is not None:
            with self.turn():
                return self._engines.run(graph, inputs)
        session = self.session(graph)
        names: list[str] = [output.name for output in session.get_outputs()]
        with self._current(), naming_shortage(f"while {graph} ran") if self.driver is None else nullcontext():
            made: Any = session.run(names, inputs)
            return dict(zip(names, made, strict=True))

    def session(self, graph: str) -> ort.InferenceSession:
        """Return a graph's session, opening it on first use, so that a caller who only embeds never loads the transformers."""
        with self._opening:
            if self._sessions is None:
                raise RuntimeError("this MusicLM is closed.")
            if graph not in self._sessions:
                with self._current():
                    path, data = self.bundle.path(graph), self.bundle.data_to_map()
                    spins = any(graph == getattr(self.bundle.manifest, stage).graph for stage in STAGES)  # step after step
                    self._sessions[graph] = open_session(path, self.threads, self._device, data, spins)
            return self._sessions[graph]

    @property
    def opened(self) -> set[str]:
        """The names of the graphs that have been opened."""
        with self._opening:
            return set(self._sessions or ())

    def embed_patches(self, spectrogram: Spectrogram, wave: np.ndarray) -> np.ndarray:
        """Return MuLaN's latents of waves float32 [B, t] whose patches a kernel makes on the device, where the graph reads them."""
        assert self.driver is not None
        session = self.session(spectrogram.graph)
        with self.turn():
            if self._patches is None:
                self._patches = Patches(self.driver, spectrogram, self.bundle.root)
            patches, shape = self._patches.make(wave)
            binding = session.io_binding()
            device, index, address = self.driver.hand_over(patches)
            binding.bind_input("patches", device, index, np.float32, shape, address)
            binding.bind_output("latent")
            with self._current():
                session.run_with_iobinding(binding)
                return binding.copy_outputs_to_cpu()[0]

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the device: there is one stream, and one thread at a time uses it. Raises RuntimeError after `close`."""
        with self._device_turn:
            if self._sessions is None:
                raise RuntimeError("this MusicLM is closed.")
            yield

    def close(self) -> None:
        """Free the sessions and what the driver holds. Calls that run in other threads end first."""
        with self._opening, self._device_turn:
            self._sessions, self._patches = None, None
            if self.driver is not None:
                self.driver.close()

    def _current(self) -> AbstractContextManager[None]:
        """ONNX Runtime leaves a thread in the GPU's primary context; the caller may have been in another."""
        return nullcontext() if self.driver is None else self.driver.current()
