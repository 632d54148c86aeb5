"""The memory of a batch's sequences on a device, and the launch lists that were captured on it.

In: a `DeviceModel`, the number and size of slots. Out: `CapturedSlots`. Buffers and lists are made when they are first needed and kept;
slots can become more, and longer, while sequences are in them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...kernels.launch import bytes_of
from ...kernels.list_builder import Slots
from .driver import Buffer, Recorded, reserve
from .model import DeviceModel

Kinds = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> type and shape of a buffer


class CapturedSlots:
    """Buffers by name: those of weights, of slots, and for each number of rows those of rows."""

    def __init__(self, model: DeviceModel, slots: Slots) -> None:
        """Raises MemoryError, before memory is taken, if it is not there."""
        self.slots, self._model, self._driver = slots, model, model.driver
        self.buffers: dict[str, Buffer] = dict(model.weights)
        self._kinds: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._prepared: set[tuple[str, int]] = set()
        self._recorded: dict[tuple[str, int, int], Recorded] = {}
        self._make(model.build(slots, "step", 1).buffers)

    def upload(self, name: str, array: np.ndarray, first: int = 0) -> None:
        self._driver.upload(self.buffers[name], array, first)

    def replay(self, name: str, rows: int, head: int = 0) -> None:
        """Run a list of `DeviceModel.build`."""
        self._driver.replay(self._captured(name, rows, head))

    def prepare(self, name: str, rows: int) -> None:
        """Make the buffers of a list, which can then be uploaded before it is captured."""
        if (name, rows) not in self._prepared:
            self._make(self._model.build(self.slots, name, rows).buffers)
            self._prepared.add((name, rows))

    def grow(self, slots: Slots) -> None:
        """Go on with more or longer slots; those that are there keep what they hold. Raises MemoryError, with nothing changed."""
        wanted = self._model.build(slots, "step", 1).buffers
        changed: Kinds = {name: kind for name, kind in wanted.items() if name in self._kinds and self._kinds[name] != kind}
        made = self._allocated(slots, changed)
        for name, buffer in made.items():
            self._driver.copy(buffer, self.buffers[name])
        self.buffers |= made
        self._kinds |= changed
        self.slots = slots
        self._recorded.clear()

    def _captured(self, name: str, rows: int, head: int) -> Recorded:
        key = name, rows, head
        if key not in self._recorded:
            launches = self._model.build(self.slots, name, rows, head)
            self._make(launches.buffers)
            self._recorded[key] = self._driver.record(launches, self.buffers)
        return self._recorded[key]

    def _make(self, kinds: Kinds) -> None:
        missing = {name: kind for name, kind in kinds.items() if name not in self.buffers}
        self.buffers |= self._allocated(self.slots, missing)
        self._kinds |= missing

    def _allocated(self, slots: Slots, kinds: Kinds) -> dict[str, Buffer]:
        if not kinds:
            return {}
        owner = f"{slots.count} sequences of {slots.capacity} positions in the {self._model.name} stage"
        reserve(self._driver, owner, sum(bytes_of(*kind) for kind in kinds.values()))
        made = {name: self._driver.allocate(*kind) for name, kind in kinds.items()}
        for name, array in self._model.constants(slots, kinds):
            self._driver.upload(made[name], array)
        return made
