"""The parts of one size: tokens and steps by kernels and by engines, patches, graphs, clips, peers.

In: the name of a size, types of weights. Out: rows, given to `keep` as soon as a part is done.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from benchmarks.bundle import bundle
from benchmarks.peers.on_device import PEERS
from musiclm_deploy.runtime.backend import BackendError
from musiclm_deploy.runtime.bench.clips import time_clips
from musiclm_deploy.runtime.bench.record import Row
from musiclm_deploy.runtime.bundle import Bundle
from musiclm_deploy.runtime.device.cuda import CudaDriver
from musiclm_deploy.runtime.engines.build import Target, build
from musiclm_deploy.runtime.engines.form import Form
from musiclm_deploy.runtime.engines.profiles import Limits
from musiclm_deploy.runtime.engines.run import EngineDriver

from .graphs import compare_graphs, need_graphs
from .kernels import check_patches, need_torch
from .parts import Missing, Parts
from .peers import peer
from .steps import Extent, check

Keep = Callable[[list[Row]], None]
GUIDANCE, FINE_WINDOW, REPEATS = 3.0, 150, 3  # of clips; the window in frames, 3 s as AudioLM's fine stage has them


class Size:
    """bundles: type of weights -> the bundle that has kernels for it; none before `prepare`."""

    def __init__(self, name: str, kinds: Sequence[str], stages: Sequence[str], extent: Extent, seconds: float) -> None:
        self.name, self.kinds, self.bundles = name, kinds, dict[str, Bundle]()
        self._stages, self._extent, self._seconds = stages, extent, seconds

    def prepare(self) -> None:
        """Export what is not there: one bundle for all types but int8, whose weights are others. It takes minutes, and no GPU."""
        wide = [kind for kind in self.kinds if kind != "int8"]
        if wide:
            self.bundles |= dict.fromkeys(wide, Bundle.open(bundle(self.name, kernels=wide)))
        if "int8" in self.kinds:
            self.bundles["int8"] = Bundle.open(bundle(self.name, "int8", kernels=["int8"]))

    def compare(self, parts: Parts, keep: Keep, bandwidth: float | None) -> None:
        """Patches, tokens, and the steps that the extent has, by our own kernels."""
        for opened in [*self.bundles.values()][:1]:  # all have the same MuLaN
            with parts.part(f"{self.name}: patches"):
                mulan = opened.manifest.mulan
                if mulan.spectrogram is None:
                    raise Missing("no kernel makes the patches of this MuLaN")
                timed = self._extent.steps > 0
                keep(check_patches(CudaDriver(opened.root), mulan.spectrogram, opened.root, mulan.sample_hz, self._seconds, timed))
        for kind, opened in self.bundles.items():
            for stage in self._stages:
                with parts.part(f"{self.name}: {stage} by kernels, {kind}"):
                    late = CudaDriver(opened.root, early=False)
                    keep(check(opened, stage, CudaDriver(opened.root), late, kind, self._extent, bandwidth))

    def clips(self, parts: Parts, keep: Keep) -> None:
        """MuLaN and the codec in ONNX Runtime against the CPU, and whole clips."""
        for opened in [*self.bundles.values()][:1]:
            with parts.part(f"{self.name}: MuLaN and the codec"):
                need_graphs(opened)
                keep([row | {"size": self.name} for row in compare_graphs(opened)])
        for kind, opened in self.bundles.items():
            with parts.part(f"{self.name}: clips by kernels, {kind}"):
                need_graphs(opened)
                keep(self._clips(opened, "cuda", kind))

    def engines(self, parts: Parts, keep: Keep, bandwidth: float | None) -> None:
        """The same by TensorRT's engines, of every type that they are built in, where a TensorRT is installed."""
        limits = Limits(sequences=2 * max(32, *self._extent.rows), seconds=max(30.0, self._seconds))  # with guidance clips of 32 have 64
        for kind in (kind for kind in self.bundles if kind != "int8"):
            opened = None
            with parts.part(f"{self.name}: engines, {kind}"):
                target = _need_target()
                opened = Bundle.open(bundle(self.name, kind, target="tensorrt"))
                build(opened, target, limits)
            if opened is None:
                continue
            for stage in self._stages:
                with parts.part(f"{self.name}: {stage} by engines, {kind}"):
                    driver = EngineDriver(opened, Form.open(opened))
                    keep(check(opened, stage, driver, None, kind, self._extent, bandwidth))
            with parts.part(f"{self.name}: clips by engines, {kind}"):
                keep(self._clips(opened, "tensorrt", kind))

    def peers(self, parts: Parts, keep: Keep) -> None:
        """What others take for a token, on the same rows."""
        for opened in [*self.bundles.values()][:1]:
            for rows, (form, kind) in itertools.product(self._extent.rows, PEERS):
                with parts.part(f"{self.name}: {form}, {kind}, {rows} rows"):
                    need_torch()
                    keep([peer(form, kind, opened, self.name, rows, self._extent.context, self._extent.steps)])

    def _clips(self, opened: Bundle, device: str, kind: str) -> list[Row]:
        made = time_clips(opened, self._seconds, GUIDANCE, FINE_WINDOW, REPEATS, None, device=device, weights=kind)
        return [row | {"benchmark": "gpu clip"} for row in made]


def _need_target() -> Target:
    """What engines are built for here. Missing where no TensorRT is installed."""
    try:
        return Target.here()
    except BackendError as error:
        raise Missing(str(error)) from error
