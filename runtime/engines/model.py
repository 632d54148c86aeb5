"""A stage's transformer as an engine in the loop of runtime/device: the engine's weights are its own, buffers and lists are the loop's.

In: a stage's sizes, TensorRT's form, a driver that calls engines. Out: a `DeviceModel` whose lists call them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ...kernels.calls import build_begin, build_prompt, build_step
from ...kernels.decoder_step.sizes import Sizes
from ...kernels.launch import Step
from ...kernels.lists import Batch, build_prefix
from ...kernels.packing import narrow
from ..device.driver import Engines
from ..device.model import DeviceModel


class EngineModel(DeviceModel):
    """Its lanes have the caches' static length, and hold no weights."""

    def __init__(self, driver: Engines, stage: str, sizes: Sizes, weights: Mapping[str, np.ndarray]) -> None:
        """weights: of the stage, of which a conditioning prefix is multiplied with some."""
        super().__init__(driver, stage, sizes, weights, driver.form.precision)
        self._form = driver.form

    def _take(self, weights: Mapping[str, np.ndarray]) -> None:
        """The engine has them."""

    def positions(self, sequences: int) -> int:
        return self._form.positions

    def capacity(self, longest: int, positions: int) -> int:
        held = self._form.capacities[self.name]
        if longest + positions - 1 > held:
            raise ValueError(
                f"the {self.name} stage of this request has sequences of {longest} positions, its engine holds {held - positions + 1}, of "
                "the trained window. Ask for smaller windows, or export with larger ones in --config."
            )
        return held

    def prompt_lists(self, batch: Batch) -> dict[str, Step]:
        prompt = build_prompt(self.name, self.sizes, batch, self.kind, self._form.positions)
        return {"prompt": prompt, "begin": build_begin(self.sizes, batch, self.kind)}

    def step_lists(self, batch: Batch, copies: int) -> list[Step]:
        return [build_step(self.name, self.sizes, batch, self.kind, copies, head) for head in range(self.sizes.outputs)]

    def constants(self, batch: Batch, buffers: Mapping[str, tuple[str, tuple[int, ...]]]) -> Iterator[tuple[str, np.ndarray]]:
        """Zeros: an engine reads whole caches, and what is masked must be numbers. Before a list is recorded it runs once, so lengths must
        be some. And the numbers of the output projections."""
        for name, (kind, shape) in buffers.items():
            if name.startswith("head."):
                yield name, np.full(shape, int(name.removeprefix("head.")))
            elif name.endswith("lengths"):
                yield name, np.ones(shape, np.int64)
            elif kind in ("int64", "bool"):
                yield name, np.zeros(shape, np.int64 if kind == "int64" else bool)
            else:
                yield name, narrow(np.zeros(shape, np.float32), kind)

    def context_array(self, name: str, array: np.ndarray) -> np.ndarray:
        return narrow(array, self.kind)


def every_list(sizes: Sizes, guided: bool, prefix: bool, kind: str) -> Iterator[Step]:
    """Lists that name every kernel which a request of a stage can need besides its engine. kind: of the caches; guided, prefix: whether the
    stage can be guided, and whether its conditioning is a prefix."""
    for copies in (1, 2) if guided else (1,):
        yield build_step("", sizes, Batch(2, 1, 1), kind, copies)
    yield build_begin(sizes, Batch(1, 1, 1), kind)
    if prefix:
        yield build_prefix(sizes, Batch(1, 1, 1, 1), kind, 1)
