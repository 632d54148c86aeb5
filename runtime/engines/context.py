"""An engine in the GPU's memory, and its calls: execution contexts, the memory that they compute in, calls outside batches.

In: an engine's bytes, a driver. Out: `Context`, whose call can be captured, and `Session`, which takes and gives arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..device.cuda import Memory
from ..device.driver import reserve

if TYPE_CHECKING:
    from .run import EngineDriver

Shape = tuple[int, ...]


class LoadedEngine:
    """An engine's weights, and what its tensors are."""

    def __init__(self, driver: EngineDriver, graph: str, data: bytes) -> None:
        """graph: its file name in the bundle. MemoryError before the GPU is full, DeviceError where TensorRT refuses it."""
        self.driver, self.graph, library = driver, graph, driver.library
        reserve(driver, f"the weights of {graph}'s engine (about the size of its file)", len(data))
        library.log.faults.clear()
        self._engine = driver.runtime.deserialize_cuda_engine(data)
        library.accept(self._engine is not None, f"the engine of {graph}")
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self.inputs = [name for name in names if self._engine.get_tensor_mode(name) == library.trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if name not in self.inputs]
        self._how = self._settings()

    def range_of(self, name: str, profile: int) -> tuple[Shape, Shape]:
        """The least and the largest shape of an input."""
        shape = tuple(self._engine.get_tensor_shape(name))
        if -1 not in shape:
            return shape, shape
        least, _, most = self._engine.get_tensor_profile_shape(name, profile)
        return tuple(least), tuple(most)

    def type_of(self, name: str) -> np.dtype:
        return np.dtype(self.driver.library.trt.nptype(self._engine.get_tensor_dtype(name)))

    def create_context(self) -> Any:
        """TensorRT's own, without memory to compute in."""
        context = self._engine.create_execution_context(self._how)
        self.driver.library.accept(context is not None, f"a context for {self.graph}")
        return context

    def _settings(self) -> Any:
        """What contexts are created with: a strategy, or RTX's configuration with one."""
        trt = self.driver.library.trt
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self.driver.library.portable:
            return strategy
        how = self._engine.create_runtime_config()
        how.set_execution_context_allocation_strategy(strategy)
        # what a list records stays: it must not be the kernels that stand in until better ones are compiled
        how.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self.driver.compiled.set_in(how)
        return how


class Scratch:
    """Memory that engines compute in, one block for all: on the driver's one stream a call has ended when the next begins.

    Captured calls hold its address, so that a block is never moved. Who needs more takes a larger one, which all contexts after it share;
    the smaller one is freed with the last context that was given it.
    """

    def __init__(self, driver: EngineDriver) -> None:
        self._driver = driver
        self._block: Memory | None = None

    def block(self, graph: str, count: int) -> Memory:
        """Of `count` bytes at least. MemoryError, before it is taken, says what a call of `graph` needs."""
        if self._block is None or self._block.count < count:
            reserve(self._driver, f"what the engine of {graph} computes in", count)
            self._block = Memory(self._driver, count, (count,))
        return self._block


class Context:
    """An execution context of an engine, in one of its profiles.

    What a CUDA graph has captured depends on the state that the context was in. So each captured call has a context of its own, which lives
    as long and is told no other shapes or addresses (NVIDIA/TensorRT#3798). Weights and `Scratch` are common to all.
    """

    def __init__(self, engine: LoadedEngine, profile: int) -> None:
        self.engine, self._profile, self._driver = engine, profile, engine.driver
        self._accept = engine.driver.library.accept
        self._context = engine.create_context()
        self._held: list[Memory] = []  # what it has the addresses of
        self._accept(
            self._context.set_optimization_profile_async(profile, int(self._driver.stream)), f"profile {profile} of {engine.graph}"
        )
        self._driver.call("cuStreamSynchronize", self._driver.stream)

    def set_shapes(self, shapes: Mapping[str, Shape]) -> None:
        """Of every input. ValueError for one that the engine was not built for."""
        graph = self.engine.graph
        for name in self.engine.inputs:
            shape, (least, most) = shapes[name], self.engine.range_of(name, self._profile)
            if len(shape) != len(least) or not all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)):
                raise ValueError(
                    f"the engine of {graph} takes {name} from {list(least)} to {list(most)}, got {list(shape)}. "
                    "Ask for less, or build it for more: musiclm build --seconds, --sequences."
                )
            self._accept(self._context.set_input_shape(name, shape), f"the shape {list(shape)} of {name} of {graph}")

    def shape_of(self, output: str) -> Shape:
        """After `set_shapes`."""
        return tuple(self._context.get_tensor_shape(output))

    def set_memory(self, memory: Mapping[str, Memory]) -> None:
        """Of every input and output, after `set_shapes`. MemoryError where there is none left to compute in."""
        graph = self.engine.graph
        block = self._driver.scratch.block(graph, self._context.update_device_memory_size_for_shapes())
        self._context.set_device_memory(block.address, block.count)
        self._held = [block, *memory.values()]
        for name in (*self.engine.inputs, *self.engine.outputs):
            self._accept(self._context.set_tensor_address(name, memory[name].address), f"the memory of {name} of {graph}")

    def enqueue(self) -> None:
        """Call the engine on the driver's stream, or let the graph that is being captured there do so."""
        self._accept(self._context.execute_async_v3(int(self._driver.stream)), f"a call of {self.engine.graph}")


class Session:
    """A graph outside batches. Its memory is kept, as large as the largest call so far needed, and its shapes are until they change."""

    def __init__(self, engine: LoadedEngine) -> None:
        self.engine, self._driver, self._bound = engine, engine.driver, Context(engine, 0)
        self._shapes: dict[str, Shape] = {}  # of inputs and outputs
        self._memory: dict[str, Memory] = {}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One call, waited for. ValueError for shapes that the engine was not built for, MemoryError where the GPU is full."""
        driver, arrays = self._driver, {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        if any(self._shapes.get(name) != array.shape for name, array in arrays.items()):
            self._fit({name: array.shape for name, array in arrays.items()})
        for name, array in arrays.items():
            driver.call("cuMemcpyHtoDAsync", self._memory[name].address, array.ctypes.data, array.nbytes, driver.stream)
        self._bound.enqueue()
        found = {name: np.empty(self._shapes[name], self.engine.type_of(name)) for name in self.engine.outputs}
        for name, array in found.items():
            driver.call("cuMemcpyDtoHAsync", array.ctypes.data, self._memory[name].address, array.nbytes, driver.stream)
        driver.call("cuStreamSynchronize", driver.stream)
        return found

    def _fit(self, shapes: dict[str, Shape]) -> None:
        engine, context = self.engine, self._bound
        self._shapes = {}  # none, until all is well
        context.set_shapes(shapes)
        shapes |= {name: context.shape_of(name) for name in engine.outputs}
        needed = {name: engine.type_of(name).itemsize * math.prod(shape) for name, shape in shapes.items()}
        larger = {name: count for name, count in needed.items() if name not in self._memory or self._memory[name].count < count}
        reserve(self._driver, f"inputs and outputs of {engine.graph}", sum(larger.values()))
        self._memory |= {name: Memory(self._driver, count, (count,)) for name, count in larger.items()}
        context.set_memory(self._memory)
        self._shapes = shapes
