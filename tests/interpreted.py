"""What the tests of the GPU's kernels share: launches in Triton's interpreter, on the CPU. conftest.py turns it on."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any
from weakref import WeakSet

import numpy as np
import onnxruntime
import torch
import triton.language as tl
from triton.runtime import interpreter

from musiclm_deploy.kernels.functions import functions_of
from musiclm_deploy.kernels.launch import Call, Launch, Step
from musiclm_deploy.runtime.backend import open_session
from musiclm_deploy.runtime.bundle import Bundle
from musiclm_deploy.runtime.device.driver import Download, Spare
from musiclm_deploy.runtime.engines.form import Form
from musiclm_deploy.runtime.engines.profiles import PROMPT, STEP

ON = os.environ.get("MUSICLM_KERNELS_ON")  # torch's name of a GPU
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int64": torch.int64, "int8": torch.int8, "bool": torch.bool}


_ready: set[str] = set()  # modules in whose functions Triton's language is the interpreter's, while a kernel runs


def _call(self: Any, *arguments: Any, **constants: Any) -> Any:
    """A function within a kernel. Triton's interpreter puts its operators in place anew for every call, a fifth of all its time, though
    they stay until the kernel has ended; here once for each module."""
    if self.fn.__module__ not in _ready:
        interpreter._patch_lang(self.fn)
        _ready.add(self.fn.__module__)
    return self.rewrite()(*arguments, **constants)


def _run(self: Any, *arguments: Any, _run: Any = interpreter.GridExecutor.__call__, **constants: Any) -> None:
    _ready.clear()
    _run(self, *arguments, **constants)


_element_type = cache(interpreter._get_np_dtype)


def _get_np_dtype(kind: Any) -> np.dtype:
    """For which Triton makes a table of all types anew, several times in every operation: another fifth."""
    return np.dtype(np.uint64) if isinstance(kind.scalar, tl.pointer_type) else _element_type(kind.scalar)


interpreter._get_np_dtype = _get_np_dtype
interpreter.InterpretedFunction.__call__ = _call
interpreter.GridExecutor.__call__ = _run
# A quarter is that every sum and product of integers is checked for overflow, which compiled kernels do not do either.
interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run every program of the grid: on the CPU one after another, in the interpreter; on the GPU of `MUSICLM_KERNELS_ON`, if it is set."""
    if ON is None:
        kernel[grid](*arguments, **constants)
        return
    there: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def move(value: Any) -> Any:
        if isinstance(value, tuple):
            moved = tuple(map(move, value))
            return type(value)(*moved) if hasattr(value, "_fields") else moved
        if isinstance(value, torch.Tensor):
            return there.setdefault(id(value), (value, value.to(ON, copy=True)))[1]
        return value

    kernel[grid](*map(move, arguments), **{name: move(value) for name, value in constants.items()})
    for here, moved in there.values():
        here.copy_(moved)


def floats(array: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The array as the kernels take it: rounded to float32 first, contiguous."""
    return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(dtype)


def empty(*shape: int) -> torch.Tensor:
    """float32, NaN all over: what is read before it is written shows."""
    return torch.full(shape, torch.nan)


def run_step(launches: list[Any], buffers: dict[str, torch.Tensor]) -> None:
    """Run the launches of `kernels/launch.py`, in order, on these buffers."""

    def resolve(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(resolve(one) for one in value)
        return buffers[value] if isinstance(value, str) else value

    for one in launches:
        kernel, constants = functions_of(one)
        launch(kernel, one.grid, **{name: resolve(value) for name, value in one.arguments.items()}, **constants)


class InterpreterDriver:
    """The driver of runtime/device whose device is Triton's interpreter: what is asked for has been done when a method returns.

    Memory is NaN, or for numbers an impossible one, until it is written.
    """

    programs = 1  # of a product: the interpreter takes its time for every program

    def __init__(self, memory: int = 1 << 30) -> None:
        self.memory, self.replayed, self.coming = memory, 0, 0
        self.spare: WeakSet[Spare] = WeakSet()

    def free_bytes(self) -> int:
        return self.memory

    def allocate(self, kind: str, shape: tuple[int, ...]) -> torch.Tensor:
        self.memory -= torch.Size(shape).numel() * TYPES[kind].itemsize
        return torch.full(shape, {"int64": -(1 << 50), "int8": 99, "bool": True}.get(kind, torch.nan), dtype=TYPES[kind])

    def upload(self, buffer: torch.Tensor, array: np.ndarray) -> None:
        given = torch.from_numpy(array)
        given = given.view(torch.bfloat16) if array.dtype == np.uint16 else given
        assert given.dtype == buffer.dtype and given.shape == buffer.shape, (given.dtype, given.shape, buffer.dtype, buffer.shape)
        buffer.copy_(given)

    def record(self, step: Step, buffers: Mapping[str, torch.Tensor]) -> list[Callable[[], None]]:
        held = dict(buffers)
        return [partial(run_step, [one], held) if isinstance(one, Launch) else self.called(one, held) for one in step.launches]

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

    def close(self) -> None:
        """Its memory is Python's."""


class InterpretedEngines(InterpreterDriver):
    """The same with an engine of every graph, which is TensorRT's form of it in ONNX Runtime on the CPU.

    `asked` keeps what its engines were called with: graph, profile, shapes of the inputs.
    """

    def __init__(self, bundle: Bundle, form: Form, memory: int = 1 << 30) -> None:
        super().__init__(memory)
        self._bundle, self.form, self._sessions = bundle, form, {}
        self.asked: list[tuple[str, int, dict[str, tuple[int, ...]]]] = []

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
                bind(value.name, onnxruntime.OrtValue.ortvalue_from_numpy(buffers[name].numpy().reshape(shape)))
        return partial(session.run_with_iobinding, binding)

    def session(self, graph: str) -> Any:
        if graph not in self._sessions:
            self._sessions[graph] = open_session(self.form.graph(self._bundle, graph), 2)
        return self._sessions[graph]
