"""TensorRT on an emulated GPU: the module as the runtime and `musiclm build` use it, the full library or RTX.

A built engine is JSON that names its graph and has its profiles; it runs in ONNX Runtime. What is emulated: what a build is asked for,
timing caches, ranges of shapes, memory to compute in, which holds nothing from one call to the next. A captured call is of its context as
it was: one that was told other shapes or addresses since, or is there no more, makes the replay fail.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from musiclm_deploy.runtime.backend import open_session

from .emulated_cuda import EmulatedCuda

_KINDS = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_, "tensor(float16)": np.float16}


@dataclass(frozen=True)
class Asked:
    """Of one build."""

    graph: str
    network_flags: int
    flags: set[str]
    timings: bytes | None  # those it began with; None for no cache
    capability: str | None
    profiles: list[dict[str, Any]]  # input -> its least, usual and largest shape


class EmulatedTensorRT:
    """The module. Names of constants are its own."""

    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    BuilderFlag = SimpleNamespace(TF32="TF32")

    class ILogger:
        Severity = IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)

    def __init__(self, cuda: EmulatedCuda, version: str = "10.15.1.29", portable: bool = False) -> None:
        """portable: TensorRT-RTX."""
        self.cuda, self.__version__, self.portable = cuda, version, portable
        self.asked: list[Asked] = []
        self.refuses: str | None = None  # a graph that it does not build
        typed = {"STRONGLY_TYPED": 1} if version.startswith("10.") and not portable else {}
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**typed)
        self.ComputeCapability = SimpleNamespace(SM86="8.6", SM90="9.0")

    @staticmethod
    def nptype(kind: str) -> Any:
        return _KINDS[kind]

    def Builder(self, log: Any) -> Any:
        return EmulatedBuilder(self, log)

    def OnnxParser(self, network: Any, _: Any) -> Any:
        def parse(path: str) -> bool:
            network.path, graph = path, onnx.load(path, load_external_data=False).graph
            for value in graph.input:
                sizes = [size.dim_value if size.HasField("dim_value") else -1 for size in value.type.tensor_type.shape.dim]
                network.inputs.append(SimpleNamespace(name=value.name, shape=tuple(sizes)))
            network.num_inputs, network.get_input = len(network.inputs), network.inputs.__getitem__
            return True

        return SimpleNamespace(parse_from_file=parse)

    def Runtime(self, log: Any) -> Any:
        def deserialize(data: bytes) -> EmulatedEngine | None:
            if not data.startswith(b"{"):
                log.log(log.Severity.ERROR, "The engine plan file is not compatible with this version.")
                return None
            told = json.loads(data)
            return EmulatedEngine(self.cuda, open_session(Path(told["graph"]), 2), told["profiles"], self.portable)

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


@contextmanager
def installed(trt: EmulatedTensorRT) -> Iterator[None]:
    """It is the only TensorRT meanwhile."""
    names = ("tensorrt_rtx_libs", "tensorrt_rtx_bindings") if trt.portable else ("tensorrt",)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("tensorrt", "tensorrt_rtx_libs", "tensorrt_rtx_bindings"):
            patch.setitem(sys.modules, name, trt if name in names else None)
        yield


class EmulatedBuilder:
    def __init__(self, trt: EmulatedTensorRT, log: Any) -> None:
        self._trt, self._log = trt, log

    def create_network(self, flags: int) -> Any:
        return SimpleNamespace(flags=flags, inputs=[])

    def create_builder_config(self) -> Any:
        return EmulatedConfig()

    def create_optimization_profile(self) -> Any:
        made = SimpleNamespace(shapes={})
        made.set_shape = lambda name, least, usual, most: made.shapes.__setitem__(name, (least, usual, most))
        return made

    def build_serialized_network(self, network: Any, config: EmulatedConfig) -> bytes | None:
        name = network.path.rpartition("/")[2]
        if name == self._trt.refuses:
            self._log.log(self._log.Severity.ERROR, "Could not find any implementation for node.")
            return None
        free = {one.name: one.shape for one in network.inputs if -1 in one.shape}
        for profile in config.profiles:
            assert profile.keys() == free.keys(), "a profile has every input that is free, and no other"
            for sizes in (zip(free[one], *profile[one], strict=True) for one in free):
                assert all(least <= usual <= most and own in (-1, least) for own, least, usual, most in sizes)
        timings = config.timings.serialize() if config.timings else None
        self._trt.asked.append(Asked(name, network.flags, config.flags, timings, config.capability, config.profiles))
        if config.timings:
            config.timings.graphs.append(name)
        return json.dumps({"graph": network.path, "profiles": config.profiles}).encode()


class EmulatedConfig:
    def __init__(self) -> None:
        self.flags, self.profiles = {"TF32"}, []
        self.timings: EmulatedTimings | None = None
        self.num_compute_capabilities, self.capability = 0, None

    def clear_flag(self, flag: str) -> None:
        self.flags.remove(flag)

    def set_compute_capability(self, capability: str, index: int) -> None:
        assert index < self.num_compute_capabilities
        self.capability = capability

    def create_timing_cache(self, data: bytes) -> EmulatedTimings:
        return EmulatedTimings(json.loads(data or "[]"))

    def set_timing_cache(self, cache: EmulatedTimings, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.timings = cache
        return True

    def get_timing_cache(self) -> EmulatedTimings | None:
        return self.timings

    def add_optimization_profile(self, profile: Any) -> None:
        self.profiles.append(profile.shapes)


@dataclass
class EmulatedTimings:
    graphs: list[str]  # that were built with it

    def serialize(self) -> bytes:
        return json.dumps(self.graphs).encode()


class EmulatedEngine:
    def __init__(self, cuda: EmulatedCuda, session: Any, profiles: list[dict[str, Any]], portable: bool) -> None:
        self.cuda, self.session, self._profiles, self._portable = cuda, session, profiles, portable
        self.inputs, self.outputs = ({one.name: one for one in values} for values in (session.get_inputs(), session.get_outputs()))
        self._names = [*self.inputs, *self.outputs]
        self.num_io_tensors = len(self._names)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_tensor_dtype(self, name: str) -> str:
        return (self.inputs | self.outputs)[name].type

    def get_tensor_shape(self, name: str) -> list[int]:
        return [-1 if isinstance(size, str) else size for size in (self.inputs | self.outputs)[name].shape]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        return self._profiles[profile][name]

    def create_runtime_config(self) -> Any:
        made = SimpleNamespace(runtime_cache=None, strategy=None, create_runtime_cache=EmulatedCache)
        made.set_execution_context_allocation_strategy = lambda strategy: setattr(made, "strategy", strategy)
        made.set_runtime_cache = lambda cache: setattr(made, "runtime_cache", cache)
        return made

    def create_execution_context(self, how: Any) -> EmulatedContext:
        if self._portable:
            assert how.dynamic_shapes_kernel_specialization_strategy == "eager"
            how.runtime_cache.compiled.add(hashlib.sha256("".join(self._names).encode()).hexdigest())
            how = how.strategy
        assert how == "user"
        return EmulatedContext(self)


class EmulatedCache:
    """What was compiled, as the names of engines."""

    def __init__(self) -> None:
        self.compiled: set[str] = set()

    def serialize(self) -> bytes:
        return json.dumps(sorted(self.compiled)).encode()

    def deserialize(self, data: bytes) -> bool:
        """Returns whether it is of this card."""
        if not data.startswith(b"["):
            return False
        self.compiled |= set(json.loads(data))
        return True


class EmulatedContext:
    def __init__(self, engine: EmulatedEngine) -> None:
        self._engine, self._profile = engine, -1
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, int] = {}
        self._block = 0, 0  # address and bytes of what it computes in
        self._told = 0  # how often something

    def set_optimization_profile_async(self, profile: int, _: int) -> bool:
        self._profile, self._told = profile, self._told + 1
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._told += 1
        own = self._engine.get_tensor_shape(name)
        least, _, most = self._engine.get_tensor_profile_shape(name, self._profile) if -1 in own else (own,) * 3
        self._shapes[name] = tuple(shape)
        return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._told += 1
        self._places[name] = address
        return address in self._engine.cuda._memory

    def update_device_memory_size_for_shapes(self) -> int:
        """Some, that differs with the shapes."""
        assert self._shapes.keys() == self._engine.inputs.keys()
        return 8 * sum(map(math.prod, self._shapes.values()))

    def set_device_memory(self, address: int, size: int) -> None:
        self._told += 1
        self._block = address, size

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """As an engine says it before it has run; here it runs on ones for it."""
        given = {one: np.ones(self._shapes[one], self._kind(one)) for one in self._engine.inputs}
        return self._engine.session.run([name], given)[0].shape

    def execute_async_v3(self, _: int) -> bool:
        assert self._places.keys() == {*self._engine.inputs, *self._engine.outputs}
        shapes, (address, size) = dict(self._shapes), self._block
        needed = self.update_device_memory_size_for_shapes()
        assert size >= needed
        binding, engine = self._engine.session.io_binding(), self._engine
        for name, value in (engine.inputs | engine.outputs).items():
            shape = shapes.get(name) or shapes.get(name.replace("present.", "past_key_values."))
            if shape is None:  # logits, and what a call is asked for at once
                shape = (next(iter(shapes.values()))[0], value.shape[-1]) if name == "logits" else self.get_tensor_shape(name)
            array = onnxruntime.OrtValue.ortvalue_from_numpy(self._array(name, shape))
            (binding.bind_ortvalue_input if name in engine.inputs else binding.bind_ortvalue_output)(name, array)
        own, told = weakref.ref(self), self._told

        def call() -> None:
            context = own()
            assert context is not None, "the context of this call is there no more"
            assert context._told == told, "the context of this call was told something else since"
            engine.cuda.memory(address)[:needed] = 0xFF
            engine.session.run_with_iobinding(binding)

        engine.cuda.run(call)
        return True

    def _kind(self, name: str) -> np.dtype:
        return np.dtype(_KINDS[self._engine.get_tensor_dtype(name)])

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        kind = self._kind(name)
        memory = self._engine.cuda.memory(self._places[name])
        return memory[: kind.itemsize * math.prod(shape)].view(kind).reshape(shape)
