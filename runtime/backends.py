"""The backend of a bundle's token transformers: chosen once, here, and known to nobody else.

In: a checked bundle, what the caller asked for. Out: a `Backend`, which makes batches. A device or a form of a step that was named and
cannot be had is an error; only "auto" chooses.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from .backend import BackendError, choose_device
from .batch import Batch
from .bundle import STAGES, Bundle, Decoder
from .device.batch import DeviceBatch
from .device.cuda import CudaDriver
from .device.driver import Driver, Engines
from .device.model import DeviceModel
from .engines.form import Form
from .engines.model import EngineModel
from .engines.run import EngineDriver
from .graphs import Graphs
from .host.graph import GraphBatch
from .host.native import NativeBatch
from .step import choose_step, open_native, open_pool, open_weights

_LOG = logging.getLogger(__name__)


class Backend:
    """One loaded bundle's transformers on one device; their weights are read when a stage's first batch is made."""

    def __init__(
        self,
        graphs: Graphs,
        device: str,
        steps: str,
        read: Callable[[str], Any],
        make: Callable[[Any], Batch],
        native: bool = False,
        precision: str | None = None,
    ) -> None:
        """steps: how a step is computed, in words. read: a stage's weights, make: a batch that computes with them.

        native: whether a step is native code on the host; precision: of the weights on a device, by default the bundle's own.
        """
        self.bundle, self.graphs, self.device, self.steps = graphs.bundle, graphs, device, steps
        self.native, self.precision = native, precision
        self._read, self._make, self._lock = read, make, threading.Lock()
        self._weights: dict[str, Any] = {}
        _LOG.info("%s on %s: steps %s", self.bundle.root, device, steps)

    @property
    def on_host(self) -> bool:
        """Whether the host's memory and processors are used."""
        return self.graphs.driver is None

    def batch(self, stage: str) -> Batch:
        """Return a new batch of a stage. Raises BundleError and MemoryError for weights that cannot be taken."""
        with self._lock:
            if stage not in self._weights:
                self.bundle.check_unchanged(getattr(self.bundle.manifest, stage).graph)
                self._weights[stage] = self._read(stage)
            return self._make(self._weights[stage])

    def turn(self) -> AbstractContextManager[None]:
        """Hold the device, if it is one that one thread at a time may use."""
        return nullcontext() if self.on_host else self.graphs.turn()

    def weights_to_load(self) -> int:
        """Return the bytes of the weights that a request uses and that are not loaded yet; 0 on a GPU, whose memory is not the host's."""
        if not self.on_host:
            return 0
        manifest = self.bundle.manifest
        stages = {stage: getattr(manifest, stage).graph for stage in STAGES}
        done = {*self.graphs.opened, *(stages[stage] for stage in self._weights)}
        graphs = {manifest.mulan.text, manifest.conditioner.graph, manifest.codec.stream, *stages.values()}
        return sum(manifest.files[name].bytes for graph in graphs - done for name in (graph, f"{graph}.data") if name in manifest.files)

    def close(self) -> None:
        """Free the weights, once no batch uses them."""
        with self._lock:
            self._weights.clear()
        self.graphs.close()


def open_backend(bundle: Bundle, device: str, threads: int | None, step: str, weights: str) -> Backend:
    """Return the backend that `musiclm_deploy.load` asked for. Raises BackendError for one that cannot be had here."""
    if device in ("cuda", "tensorrt") and bundle.manifest.reads_segments:
        raise BackendError(
            f"device={device!r}: the transformers of this bundle are open-musiclm's, whose normalised attention and convolution no kernel "
            "and no engine here computes. Use device='cpu'."
        )
    chosen = choose_device(device)
    if chosen == "cuda":
        return on_device(bundle, chosen, threads, CudaDriver(bundle.root), weights)
    if chosen == "tensorrt":
        engines = EngineDriver(bundle, Form.open(bundle))
        return on_device(bundle, chosen, threads, engines, engines.form.precision)
    choice, graphs = choose_step(step, [_decoder(bundle, stage) for stage in STAGES]), Graphs(bundle, chosen, threads, None)
    if not choice.native:
        return Backend(
            graphs,
            chosen,
            f"graph ({choice.reason})",
            read=lambda stage: (graphs.session(_decoder(bundle, stage).graph), _decoder(bundle, stage)),
            make=lambda opened: GraphBatch(*opened),
        )
    pool = open_pool(threads)
    return Backend(
        graphs,
        chosen,
        f"native, {choice.reason}",
        read=lambda stage: open_native(bundle.root, _decoder(bundle, stage), pool),
        make=NativeBatch,
        native=True,
    )


def on_device(bundle: Bundle, device: str, threads: int | None, driver: Driver, precision: str) -> Backend:
    """Return a backend whose batches a driver computes. device: of the other graphs; precision: of the weights there."""

    def read(stage: str) -> DeviceModel:
        _, sizes, numbers = open_weights(bundle.root, _decoder(bundle, stage))
        if isinstance(driver, Engines):
            return EngineModel(driver, stage, sizes, numbers)
        return DeviceModel(driver, stage, sizes, numbers, precision)

    how = "by engines" if isinstance(driver, Engines) else "by kernels"
    return Backend(Graphs(bundle, device, threads, driver), device, how, read, DeviceBatch, precision=precision)


def _decoder(bundle: Bundle, stage: str) -> Decoder:
    return getattr(bundle.manifest, stage)
