"""A stage's transformer as an engine in the batches of runtime/device: the engine's weights are its own, buffers and lists are the batch's.

In: a stage's sizes, TensorRT's form, a driver that calls engines. Out: a `DeviceModel` whose lists call them.

An engine finds the caches of its rows at one address, one after another: row r of a call is slot r. So a step computes all slots up to the
last live one, and a prompt's call the next positions of all slots up to the last one that is fed. In other slots a call writes where
nothing is that is needed: at the position that the slot's next step feeds, and beyond it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ...kernels.decoder_step.sizes import Sizes
from ...kernels.engine_lists import begin_list, feed_list, prompt_list, step_list
from ...kernels.launch import LaunchList, next_power_of_two
from ...kernels.list_builder import Slots, build_prefix
from ...kernels.packing import cast
from ..device.driver import Engines
from ..device.model import DeviceModel, Tables, at_rest


class EngineModel(DeviceModel):
    """Its slots have the caches' static length, and it holds no weights."""

    def __init__(self, driver: Engines, stage: str, sizes: Sizes, weights: Mapping[str, np.ndarray]) -> None:
        """weights: of the stage, of which a conditioning prefix is multiplied with some."""
        super().__init__(driver, stage, sizes, weights, driver.form.precision)
        self._form, self.positions, self.most_rows = driver.form, driver.form.positions, driver.most_rows(stage)
        self.at_once = self.positions * self.most_rows

    def _upload(self, weights: Mapping[str, np.ndarray]) -> None:
        """The engine has them."""

    def capacity(self, longest: int) -> int:
        held = self._form.capacities[self.name]
        if longest + self.positions - 1 > held:
            raise ValueError(
                f"the {self.name} stage of this request has sequences of {longest} positions, its engine holds "
                f"{held - self.positions + 1}, of the trained window. Ask for smaller windows, or export with larger ones in --config."
            )
        return held

    def count_slots(self, used: int) -> int:
        if used > self.most_rows:
            raise ValueError(
                f"the engine of the {self.name} stage takes {self.most_rows} rows, got {used}. "
                "Ask for less, or build it for more: musiclm build --sequences."
            )
        return min(next_power_of_two(used), self.most_rows)

    def rows(self, used: Sequence[int], slots: Slots) -> list[int]:
        return list(range(self.count_slots(max(used) + 1)))

    def prompt_table(self, fed: Tables, ends: Mapping[int, int], slots: Slots) -> np.ndarray:
        """Return int64 [rows * positions, Position]: of each slot what it is fed, and after it positions that are not needed."""
        count, nothing = self.positions, np.zeros((0, 4), np.int64)
        table = np.zeros((self.count_slots(max(fed) + 1), count, 4), np.int64)
        for slot, part in enumerate(table):
            own = fed.get(slot, nothing)
            part[:, 0], part[:, 1] = slot, ends.get(slot, 0) + np.arange(count) + 1
            part[: len(own)] = own
        return table.reshape(-1, 4)

    def _build(self, slots: Slots, name: str, rows: int, head: int) -> LaunchList:
        if name == "step":
            return step_list(self.name, self.sizes, slots, self.kind, rows, head)
        if name == "begin":
            return begin_list(self.sizes, slots, self.kind, rows)
        calls = rows // self.positions
        if name == "feed":
            return feed_list(self.sizes, slots, self.kind, calls, self.positions)
        return prompt_list(self.name, self.sizes, slots, self.kind, calls, self.positions)

    def constants(self, slots: Slots, buffers: Mapping[str, tuple[str, tuple[int, ...]]]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield all of them, as numbers: an engine reads whole caches, and what is masked must be finite. And the numbers of the output
        projections, where slots stand that nothing has joined, and which uploaded position a row has."""
        for name, (kind, shape) in buffers.items():
            owner, _, own = name.partition(".")
            if owner == "head":
                yield name, np.full(shape, int(own))
            elif name == "next":
                yield name, at_rest(slots)
            elif own == "at" and owner.startswith("prompt"):
                yield name, np.arange(shape[0])
            elif kind in ("int64", "bool"):
                yield name, np.zeros(shape, np.int64 if kind == "int64" else bool)
            else:
                yield name, cast(np.zeros(shape, np.float32), kind)

    def context_array(self, name: str, array: np.ndarray) -> np.ndarray:
        return cast(array, self.kind)


def every_list(sizes: Sizes, prefix: bool, kind: str) -> Iterator[LaunchList]:
    """Yield lists that name every kernel which a stage can need besides its engine. kind: of the caches; prefix: whether its conditioning
    is one."""
    slots = Slots(1, 1, 1)
    yield step_list("", sizes, slots, kind, 1)
    yield begin_list(sizes, slots, kind, 1)
    yield feed_list(sizes, slots, kind, 1, 1)
    if prefix:
        yield build_prefix(sizes, slots, kind, 1)
