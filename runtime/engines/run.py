"""The driver of an NVIDIA GPU with an engine for every graph of a bundle: TensorRT's calls beside the launches of runtime/device/cuda.py.

In: a bundle with TensorRT's form, engines built for this GPU (`musiclm build`), kernels that draw tokens. Out: a driver with engines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...kernels.launch import Call, Launch, Step
from ..backend import BackendError
from ..bundle import Bundle, BundleError
from ..device.cuda import CudaDriver, Memory
from ..device.driver import DeviceError
from .build import FOLDER, RECORD, BuiltEngines, Target, folders_of
from .compiled import Compiled
from .form import Form
from .profiles import PROMPT, STEP


class EngineDriver(CudaDriver):
    """As `CudaDriver`. Engines are read and given memory when they are first called."""

    def __init__(self, bundle: Bundle, form: Form, index: int = 0) -> None:
        """BackendError where there is no GPU, no TensorRT, or no engines for both; BundleError for engines that are not the bundle's."""
        target = Target.here()
        super().__init__(bundle.root, index)
        self.form, self._bundle, self._library = form, bundle, target.library
        self._folder, self._engines = find_engines(bundle, form, target)
        self._runtime = self._library.trt.Runtime(self._library.log)
        self._contexts: dict[tuple[str, int], Any] = {}  # by graph and profile
        self._opened: dict[str, Any] = {}
        self._compiled = Compiled(bundle.sha256, target.folder)

    def save(self) -> None:
        self._compiled.save()

    def run(self, graph: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Rows that an engine does not take at once are run one after another."""
        with self.current():
            engine, rows = self._engine(graph), len(next(iter(inputs.values())))
            at_once = min(next(iter(self._ranges(engine, name, 0)[1])) for name in inputs)
            parts = []
            for first in range(0, rows, at_once):
                parts.append(self._run(graph, {name: array[first : first + at_once] for name, array in inputs.items()}))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run(self, graph: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        engine, context, trt = self._engine(graph), self._context_of(graph, 0), self._library.trt
        buffers: list[Memory] = []
        for name, array in inputs.items():
            buffers.append(Memory(self, array.nbytes, array.shape))
            self.upload(buffers[-1], np.ascontiguousarray(array))
            self._give(graph, 0, name, array.shape, buffers[-1])
        found = {}
        for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors)):
            if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT:
                found[name] = np.empty(tuple(context.get_tensor_shape(name)), trt.nptype(engine.get_tensor_dtype(name)))
                buffers.append(Memory(self, found[name].nbytes, found[name].shape))
                self._accept(context.set_tensor_address(name, buffers[-1].address), f"the memory of {name} of {graph}")
        self._enqueue(context, graph)
        for array, buffer in zip(found.values(), buffers[len(inputs) :], strict=True):
            self.call("cuMemcpyDtoHAsync", array.ctypes.data, buffer.address, array.nbytes, self.stream)
        self.call("cuStreamSynchronize", self.stream)
        return found

    def ready(self, one: Launch | Call, step: Step, buffers: Mapping[str, Memory], early: bool) -> Callable[[], Any]:
        if isinstance(one, Launch):
            return super().ready(one, step, buffers, early)
        graph = getattr(self._bundle.manifest, one.stage).graph
        profile = PROMPT if one.prompt else STEP
        engine, context = self._engine(graph), self._context_of(graph, profile)
        for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors)):
            buffer, shape = one.tensors[name]
            if engine.get_tensor_mode(name) == self._library.trt.TensorIOMode.INPUT:
                self._give(graph, profile, name, shape, buffers[buffer])
            else:
                self._accept(context.set_tensor_address(name, buffers[buffer].address), f"the memory of {name} of {graph}")
        self._enqueue(context, graph)  # once before it is recorded: what depends on shapes is done by then
        self.call("cuStreamSynchronize", self.stream)
        return partial(self._enqueue, context, graph)

    def _give(self, graph: str, profile: int, name: str, shape: tuple[int, ...], buffer: Memory) -> None:
        """An input and its memory. ValueError for a shape that the engine was not built for."""
        least, most = self._ranges(self._engine(graph), name, profile)
        if len(shape) != len(least) or not all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)):
            raise ValueError(
                f"the engine of {graph} takes {name} from {list(least)} to {list(most)}, got {list(shape)}. "
                "Ask for less, or build it for more: musiclm build --seconds, --sequences."
            )
        context = self._context_of(graph, profile)
        self._accept(context.set_input_shape(name, shape), f"the shape {list(shape)} of {name} of {graph}")
        self._accept(context.set_tensor_address(name, buffer.address), f"the memory of {name} of {graph}")

    def _ranges(self, engine: Any, name: str, profile: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The least and the largest shape of an input."""
        shape = tuple(engine.get_tensor_shape(name))
        if -1 not in shape:
            return shape, shape
        least, _, most = engine.get_tensor_profile_shape(name, profile)
        return tuple(least), tuple(most)

    def _enqueue(self, context: Any, graph: str) -> None:
        self._accept(context.execute_async_v3(int(self.stream)), f"a call of {graph}")

    def _accept(self, accepted: bool, what: str) -> None:
        if not accepted:
            said = "; ".join(self._library.log.faults[-3:]) or "it does not say why"
            raise DeviceError(f"{self._library.name} refused {what}: {said}.")

    def _context_of(self, graph: str, profile: int) -> Any:
        key = graph, profile
        if key not in self._contexts:
            engine, trt = self._engine(graph), self._library.trt
            needed = engine.get_device_memory_size_for_profile_v2(profile)
            if needed > (free := self.free_bytes()):
                raise MemoryError(
                    f"the engine of {graph} needs {needed / 1e6:.1f} MB of the GPU's memory, {free / 1e6:.1f} MB are free. "
                    "Build it for fewer sequences or seconds (musiclm build), or free what else runs there."
                )
            memory = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
            if self._library.portable:
                how = engine.create_runtime_config()
                how.set_execution_context_allocation_strategy(memory)
                # what a list records stays: it must not be the kernels that stand in until better ones are compiled
                how.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
                self._compiled.set_in(how)
                context = engine.create_execution_context(how)
            else:
                context = engine.create_execution_context(memory)
            self._accept(context is not None, f"a context for {graph}")
            self._accept(context.set_optimization_profile_async(profile, int(self.stream)), f"profile {profile} of {graph}")
            self.call("cuStreamSynchronize", self.stream)
            self._contexts[key] = context
        return self._contexts[key]

    def _engine(self, graph: str) -> Any:
        if graph not in self._opened:
            self._library.log.faults.clear()
            engine = self._runtime.deserialize_cuda_engine(self._engines.read(self._folder, graph))
            self._accept(engine is not None, f"the engine of {graph}")
            self._opened[graph] = engine
        return self._opened[graph]


def find_engines(bundle: Bundle, form: Form, target: Target) -> tuple[Path, BuiltEngines]:
    """The folder of engines for this target. BackendError names what there is and what is wanted; BundleError: they are of other graphs."""
    folder = bundle.root / FOLDER / target.folder
    if not (folder / RECORD).is_file():
        there = [path.name for path in folders_of(bundle.root)]
        what = f"it has engines for {', '.join(there)}" if there else "it has none"
        raise BackendError(f"{bundle.root} has no engines for {target}: {what}. Build them here: musiclm build {bundle.root}")
    made = BuiltEngines.open(folder)
    here = (target.library.name, target.library.version, target.capability, target.gpu)
    built = (made.library, made.version, made.capability, made.gpu)
    if built != here:
        raise BackendError(f"{folder} was built by and for {built}, this is {here}. Build them again: musiclm build {bundle.root}")
    if made.precision != form.precision:
        raise BundleError(f"{folder} is in {made.precision}, the bundle's form in {form.precision}. Build them again: musiclm build.")
    for graph, record in made.engines.items():
        if record.sources != form.sources(bundle, graph):
            raise BundleError(f"{folder / record.file} was built of another {graph}. Build it again: musiclm build {bundle.root}")
    return folder, made
