"""The operations of a device: memory, lists of launches that are recorded once and run many times, copies that come back later.

Operations run in the order of their submission. Only waiting for a `Download` blocks the host.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable
from weakref import WeakSet

import numpy as np

from ...kernels.launch import LaunchList
from ..engines.form import Form

_LOG = logging.getLogger(__name__)
Buffer = Any  # memory of a driver, of one type and shape
Recorded = Any  # launches of a driver
Download = Callable[[], list[np.ndarray]]  # waits until the arrays have come; they stay what they are


class DeviceError(RuntimeError):
    """The device refused something, or is lost; the message says what to do next. The process goes on."""


class Evictable(Protocol):
    """An owner of memory that is kept for later requests."""

    def evict(self) -> None:
        """Free what no request is using."""
        ...


class Driver(Protocol):
    evictable: WeakSet[Evictable]  # owners that `reserve` asks for memory if there is too little
    programs: int  # of a product, about, as `kernels.kernel_lists` takes it: what the driver's kernels were compiled for

    def free_bytes(self) -> int:
        """Memory that can still be taken."""
        ...

    def allocate(self, kind: str, shape: tuple[int, ...]) -> Buffer:
        """Memory for `shape` elements of a type of `kernels.launch`, what is in it unknown. It is freed when nothing refers to it any more.

        MemoryError where the device has no more.
        """
        ...

    def upload(self, buffer: Buffer, array: np.ndarray, first: int = 0) -> None:
        """Fill the entries of the buffer's first axis from number `first` on. The array's elements are of the buffer's type, bf16 as
        uint16; the array may be changed afterwards."""
        ...

    def copy(self, target: Buffer, source: Buffer) -> None:
        """Copy a buffer into the first entries of a larger one, along the first axis and along the second."""
        ...

    def record(self, step: LaunchList, buffers: Mapping[str, Buffer]) -> Recorded:
        """The step's launches on these buffers. DeviceError for a kernel that is not there."""
        ...

    def replay(self, *recorded: Recorded) -> None:
        """Run these lists of launches, in order; returns before they have run."""
        ...

    def current(self) -> AbstractContextManager[None]:
        """In it this thread's calls of other libraries go to the device; afterwards they go where they went before."""
        ...

    def hand_over(self, buffer: Buffer) -> tuple[str, int, int]:
        """(ONNX Runtime's name of the device, its index, the buffer's address), once all that was asked for so far has been done."""
        ...

    def download(self, buffers: Sequence[Buffer]) -> Download:
        """Begin to copy int64 buffers to the host, as they are after all that was asked for so far."""
        ...

    def close(self) -> None:
        """Give back what the driver itself holds, once nothing is asked of it any more; buffers and recordings are their owners'."""
        ...


@runtime_checkable
class Engines(Driver, Protocol):
    """A driver that has an engine of every graph of the bundle: `record` takes calls of the transformers', and the others run at once."""

    form: Form  # what the engines were built of

    def most_rows(self, stage: str) -> int:
        """Return how many rows the engine of a stage's transformer takes at most."""
        ...

    def run(self, graph: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One call of a graph, by its file name in the bundle; waits for it. ValueError for what its engine was not built for."""
        ...


def reserve(driver: Driver, owner: str, needed: int) -> None:
    """Log how many bytes `owner` is about to take. If they are not free, free what is only kept for later; MemoryError if that is too
    little."""
    if driver.free_bytes() < needed:
        for one in [*driver.evictable]:
            one.evict()
    free = driver.free_bytes()
    _LOG.info("%s: %.1f MB of the GPU's memory, of %.1f MB that are free.", owner, needed / 1e6, free / 1e6)
    if free < needed:
        raise MemoryError(
            f"{owner}: {needed / 1e6:.1f} MB of the GPU's memory are needed, {free / 1e6:.1f} MB are free. "
            "Ask for fewer seconds, samples or prompts at once, or free what else runs there."
        )
