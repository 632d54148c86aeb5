"""A device in the host's memory, for the batches of runtime/device: an operation has been done when its method returns.

Its launches are computed by the kernels' numpy references, at once for a whole grid; or by `interpreted.interpret`, in which a program
takes 20 ms. Engines are TensorRT's form of the graphs in ONNX Runtime.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any, cast
from weakref import WeakSet

import numpy as np
import onnxruntime
import torch

from musiclm_deploy.kernels.kernel_lists import PROGRAMS
from musiclm_deploy.kernels.launch import Call, Launch, LaunchList
from musiclm_deploy.runtime.backend import open_session
from musiclm_deploy.runtime.bundle import Bundle
from musiclm_deploy.runtime.device.driver import Download, Evictable
from musiclm_deploy.runtime.engines.form import Form
from musiclm_deploy.runtime.engines.profiles import PROMPT, STEP

from . import references
from .interpreted import resolved
from .stages import Stage

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int64": torch.int64, "int8": torch.int8, "bool": torch.bool}
Compute = Callable[[Launch, Mapping[str, Any]], None]


class HostDriver:
    """A driver of runtime/device on the host's memory, which is NaN, or for numbers an impossible one, until it is written."""

    def __init__(self, memory: int = 1 << 30, compute: Compute = references.compute) -> None:
        self.memory, self.compute = memory, compute
        self.recorded, self.replayed, self.coming = 0, 0, 0  # lists; copies that no one has waited for
        self.programs = PROGRAMS if compute is references.compute else 1  # the interpreter takes its time for every program
        self.evictable: WeakSet[Evictable] = WeakSet()

    def free_bytes(self) -> int:
        return self.memory

    def allocate(self, kind: str, shape: tuple[int, ...]) -> torch.Tensor:
        self.memory -= torch.Size(shape).numel() * TYPES[kind].itemsize
        return torch.full(shape, {"int64": -(1 << 50), "int8": 99, "bool": True}.get(kind, torch.nan), dtype=TYPES[kind])

    def upload(self, buffer: torch.Tensor, array: np.ndarray, first: int = 0) -> None:
        given, part = torch.from_numpy(array), buffer[first : first + len(array)]
        given = given.view(torch.bfloat16) if array.dtype == np.uint16 else given
        assert given.dtype == part.dtype and given.shape == part.shape, (given.dtype, given.shape, part.dtype, part.shape)
        part.copy_(given)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        assert target.shape[2:] == source.shape[2:]
        target[tuple(slice(0, size) for size in source.shape)] = source

    def record(self, step: LaunchList, buffers: Mapping[str, torch.Tensor]) -> list[Callable[[], None]]:
        held = dict(buffers)
        self.recorded += 1
        return [
            partial(self.compute, one, resolved(one, held)) if isinstance(one, Launch) else self.called(one, held) for one in step.launches
        ]

    def called(self, call: Call, buffers: Mapping[str, torch.Tensor]) -> Callable[[], None]:
        raise AssertionError("this driver has no engines")

    def replay(self, *recorded: list[Callable[[], None]]) -> None:
        self.replayed += len(recorded)
        for one in itertools.chain(*recorded):
            one()

    def current(self) -> AbstractContextManager[None]:
        return nullcontext()

    def hand_over(self, buffer: torch.Tensor) -> tuple[str, int, int]:
        return "cpu", 0, buffer.data_ptr()

    def download(self, buffers: Sequence[torch.Tensor]) -> Download:
        arrays = [buffer.numpy().copy() for buffer in buffers]
        self.coming += 1

        def wait() -> list[np.ndarray]:
            self.coming -= 1
            return arrays

        return wait

    def call(self, name: str, to: int, source: int, size: int) -> None:
        """Copy to the host: the one function of CUDA's driver that benchmarks call on this memory."""
        assert name == "cuMemcpyDtoH"
        ctypes.memmove(to, source, size)

    def close(self) -> None:
        """Its memory is Python's."""


class HostEngines(HostDriver):
    """The same with an engine of every graph, which is TensorRT's form of it in ONNX Runtime on the CPU.

    `asked` keeps what its engines were called with: graph, profile, shapes of the inputs.
    """

    def __init__(self, bundle: Bundle, form: Form, memory: int = 1 << 30, compute: Compute = references.compute, rows: int = 16) -> None:
        """rows: that engines take at most."""
        super().__init__(memory, compute)
        self._rows = rows
        self._bundle, self.form, self._sessions = bundle, form, {}
        self.asked: list[tuple[str, int, dict[str, tuple[int, ...]]]] = []

    def most_rows(self, stage: str) -> int:
        return self._rows

    def run(self, graph: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        session = self.session(graph)
        self.asked.append((graph, 0, {name: array.shape for name, array in inputs.items()}))
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    def called(self, call: Call, buffers: Mapping[str, torch.Tensor]) -> Callable[[], None]:
        graph = getattr(self._bundle.manifest, call.stage).graph
        session = self.session(graph)
        shapes = {value.name: call.tensors[value.name][1] for value in session.get_inputs()}
        self.asked.append((graph, PROMPT if call.prompt else STEP, shapes))
        binding = session.io_binding()
        for values, bind in ((session.get_inputs(), binding.bind_ortvalue_input), (session.get_outputs(), binding.bind_ortvalue_output)):
            for value in values:
                name, shape = call.tensors[value.name]
                array = buffers[name].numpy().reshape(-1)[: math.prod(shape)].reshape(shape)  # of slots the first ones
                bind(value.name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        session.run_with_iobinding(binding)  # once before it is recorded, as TensorRT has it
        return partial(session.run_with_iobinding, binding)

    def session(self, graph: str) -> Any:
        if graph not in self._sessions:
            self._sessions[graph] = open_session(self.form.graph(self._bundle, graph), 2)
        return self._sessions[graph]


class StageEngines(HostEngines):
    """The engines of one stage that is in no bundle."""

    def __init__(self, stage: Stage, form: Form, compute: Compute = references.compute, rows: int = 16) -> None:
        manifest = SimpleNamespace(**{stage.name: stage.decoder})
        super().__init__(cast(Bundle, SimpleNamespace(manifest=manifest)), form, compute=compute, rows=rows)
        self._sessions = {stage.decoder.graph: stage.session}
