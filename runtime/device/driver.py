"""What the loop asks of a device: memory, lists of launches that are recorded once and run many times, copies that come back later.

All that is asked of a driver happens in order, and nothing waits for the host but `Download`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable
from weakref import WeakSet

import numpy as np

from ...kernels.launch import Step
from ..engines.form import Form

Buffer = Any  # memory of a driver, of one type and shape
Recorded = Any  # launches of a driver
Download = Callable[[], list[np.ndarray]]  # waits until the arrays have come; they stay what they are


class DeviceError(RuntimeError):
    """The device refused something, or is lost; the message says what to do next. The process goes on."""


class Spare(Protocol):
    """Who keeps memory that the next request may need again, and may do without."""

    def give_back(self) -> None:
        """Let go of it; no request is using it then."""
        ...


class Driver(Protocol):
    spare: WeakSet[Spare]  # what is given back where memory is short, see `state_bytes`
    programs: int  # of a product, about, as `kernels.launches` takes it: what its kernels were compiled for

    def free_bytes(self) -> int:
        """Memory that can still be taken."""
        ...

    def allocate(self, kind: str, shape: tuple[int, ...]) -> Buffer:
        """Memory for `shape` elements of a type of `kernels.launch`, what is in it unknown. It is freed when nothing refers to it any more.

        MemoryError where the device has no more.
        """
        ...

    def upload(self, buffer: Buffer, array: np.ndarray) -> None:
        """Fill the buffer; the array may be changed afterwards. Its elements are the buffer's, bf16 as uint16."""
        ...

    def record(self, step: Step, buffers: Mapping[str, Buffer]) -> Recorded:
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

    def run(self, graph: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One call of a graph, by its file name in the bundle; waits for it. ValueError for what its engine was not built for."""
        ...
