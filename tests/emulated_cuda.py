"""A GPU in the host's memory: what cuda-python and TensorRT's runtime are asked for, so that the lines that ask run where there is none.

Kernels run in Triton's interpreter, engines in ONNX Runtime. What is emulated: addresses, parameters as they lie in memory, graphs, events.
What is not: that anything runs later, or beside something else.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import torch
from interpreted import TYPES

from musiclm_deploy.kernels.functions import functions_of
from musiclm_deploy.kernels.launch import FORMAT, RECORD, Step, key_of, signature_of
from musiclm_deploy.runtime.backend import open_session
from musiclm_deploy.runtime.bundle import Bundle
from musiclm_deploy.runtime.engines.build import BuiltEngines
from musiclm_deploy.runtime.engines.form import Form

_NUMBERS = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}
_POINTERS = {"*fp32": "fp32", "*fp16": "fp16", "*bf16": "bf16", "*i8": "int8", "*i64": "int64"}
PRIMARY, OTHERS = "the primary context", "pycuda's"
ANYWHERE = {"cuInit", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain", "cuGetErrorString"}
ANYWHERE |= {"cuCtxPushCurrent", "cuCtxPopCurrent"}


class EmulatedCuda:
    """`cuda.bindings.driver`: functions return an error's number, 0, and what they give. Names of constants are its own."""

    def __init__(self, kernels: Iterable[Step], free: int = 1 << 32) -> None:
        """kernels: lists that name every kernel which may be launched."""
        self.free, self.launched, self.replayed = free, 0, 0
        self.allocated = 0  # times that memory was taken or an event made
        self.contexts = [OTHERS]  # of the thread
        self.refused: dict[str, str] = {}  # functions that fail, and their errors
        self._memory: dict[int, np.ndarray] = {}
        self._captured: list[Callable[[], None]] | None = None
        self._after_kernel = False  # of the list that is being captured
        self._known = {}
        for step in kernels:
            for launch in step.kernels:
                kernel, constants = functions_of(launch)
                kinds = signature_of(launch, step)
                self._known[key_of(launch, step)] = kernel, constants, {name: kinds[name] for name in kernel.arg_names}

    def pack(self, bundle: Path) -> None:
        """A folder of kernels whose machine code is their keys."""
        folder, kernels, files = bundle / "kernels", {}, {}
        folder.mkdir()
        for key, (kernel, _, signature) in self._known.items():
            (folder / f"{key}.cubin").write_bytes(key.encode())
            files[f"{key}.cubin"] = hashlib.sha256(key.encode()).hexdigest()
            machine = {"file": f"{key}.cubin", "threads": 128, "shared_bytes": 1 << 16, "registers": 1, "stack_bytes": 0}
            machine["waits"] = True
            kernels[key] = {"function": kernel.fn.__name__, "signature": signature, "machines": {"90": machine}}
        (folder / RECORD).write_text(json.dumps({"format": FORMAT, "kernels": kernels, "files": files}))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("CU"):
            return getattr(import_module("cuda.bindings.driver"), name)
        gives = {"cuDeviceGet": 0, "cuDevicePrimaryCtxRetain": PRIMARY, "cuStreamCreate": 7}
        if name in gives:
            return lambda *_: (0, gives[name])
        assert name in {
            *("cuInit", "cuEventRecord", "cuEventSynchronize", "cuEventDestroy", "cuGraphDestroy", "cuFuncSetAttribute"),
            *("cuGraphExecDestroy", "cuStreamSynchronize"),
        }, name
        return lambda *_: (0,)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cu"):
            if name in self.refused:
                code = getattr(self.CUresult, self.refused[name])
                return lambda *_: (code,)
            assert name in ANYWHERE or self.contexts[-1] == PRIMARY, f"{name} in another's context"
        return super().__getattribute__(name)

    def cuCtxPushCurrent(self, context: str) -> tuple[int]:
        self.contexts.append(context)
        return (0,)

    def cuCtxPopCurrent(self) -> tuple[int, str]:
        return 0, self.contexts.pop()

    def cuEventCreate(self, _: Any) -> tuple[int, int]:
        self.allocated += 1
        return 0, 5

    def cuGetErrorString(self, error: Any) -> tuple[int, bytes]:
        return 0, error.name.encode()

    def cuDeviceGetAttribute(self, kind: Any, _: int) -> tuple[int, int]:
        return 0, 9 if "MAJOR" in kind.name else 0

    def cuDeviceGetName(self, length: int, _: int) -> tuple[int, bytes]:
        return 0, b"Emulated GPU".ljust(length, b"\0")

    def cuMemGetInfo(self) -> tuple[int, int, int]:
        return 0, self.free, 1 << 40

    def cuMemAlloc(self, count: int) -> tuple[int, int]:
        memory = np.full(count, 0xFF, np.uint8)  # not a number, in any type
        self._memory[memory.ctypes.data] = memory
        self.free -= count
        self.allocated += 1
        return 0, memory.ctypes.data

    def cuMemFree(self, address: int) -> tuple[int]:
        self.free += len(self._memory.pop(address))
        return (0,)

    def cuMemHostAlloc(self, count: int, _: int) -> tuple[int, int]:
        return self.cuMemAlloc(count)

    def cuMemFreeHost(self, address: int) -> tuple[int]:
        return self.cuMemFree(address)

    def cuMemcpyHtoDAsync(self, to: int, source: int, count: int, _: int) -> tuple[int]:
        assert self._captured is None and count <= len(self._memory[to])
        ctypes.memmove(to, source, count)
        return (0,)

    def cuMemcpyDtoHAsync(self, to: int, source: int, count: int, _: int) -> tuple[int]:
        assert self._captured is None and count <= len(self._memory[source])
        ctypes.memmove(to, source, count)
        return (0,)

    def cuMemcpyDtoH(self, to: int, source: int, count: int) -> tuple[int]:
        return self.cuMemcpyDtoHAsync(to, source, count, 0)

    def cuModuleLoadData(self, image: bytes) -> tuple[int, bytes]:
        assert self._captured is None, "a module cannot be loaded while launches are recorded"
        return 0, image

    def cuModuleGetFunction(self, module: bytes, name: bytes) -> tuple[int, str]:
        assert self._known[module.decode()][0].fn.__name__ == name.decode()
        return 0, module.decode()

    def cuStreamBeginCapture(self, *_: Any) -> tuple[int]:
        self._captured, self._after_kernel = [], False
        return (0,)

    def cuStreamEndCapture(self, _: int) -> tuple[int, list]:
        captured, self._captured = self._captured, None
        assert captured is not None
        return 0, captured

    def cuGraphInstantiate(self, graph: list, _: int) -> tuple[int, list]:
        return 0, graph

    def cuGraphLaunch(self, graph: list, _: int) -> tuple[int]:
        self.replayed += 1
        for launch in graph:
            launch()
        return (0,)

    def cuLaunchKernelEx(self, config: Any, key: str, at: int, extra: int) -> Any:
        threads = config.blockDimX, config.blockDimY, config.blockDimZ
        assert (*threads, config.sharedMemBytes, extra) == (128, 1, 1, 1 << 16, 0)
        named = [(one.id.name, one.value.programmaticStreamSerializationAllowed) for one in config.attrs[: config.numAttrs]]
        assert named in ([], [("CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION", 1)])
        assert bool(named) == self._after_kernel, "a kernel after a kernel, and no other, begins before that one has ended"
        gx, gy, gz = config.gridDimX, config.gridDimY, config.gridDimZ
        kernel, constants, signature = self._known[key]
        taken = 0

        def parameter(kind: Any) -> Any:
            nonlocal taken
            if isinstance(kind, tuple):
                return tuple(map(parameter, kind))
            place = ctypes.c_uint64.from_address(at + 8 * taken).value
            taken += 1
            if kind in _NUMBERS:
                return _NUMBERS[kind].from_address(place).value
            memory = self._memory[ctypes.c_uint64.from_address(place).value]
            return torch.from_numpy(memory).view(TYPES[_POINTERS[kind]])

        arguments = {name: parameter(kind) for name, kind in signature.items() if kind != "constexpr"}
        scratch = [ctypes.c_uint64.from_address(ctypes.c_uint64.from_address(at + 8 * (taken + one)).value).value for one in (0, 1)]
        assert scratch == [0, 0]
        self.launched += 1
        self.run(lambda: kernel[gx, gy, gz](**arguments, **constants))
        self._after_kernel = True
        return (0,)

    def run(self, work: Callable[[], Any]) -> None:
        """Now, or whenever the graph is launched that is being captured."""
        self._after_kernel = False
        if self._captured is None:
            work()
        else:
            self._captured.append(work)

    def memory(self, address: int) -> np.ndarray:
        return self._memory[address]


class EmulatedTensorRT:
    """The module: its runtime takes the engines of a folder for the graphs that they were built of."""

    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    ExecutionContextAllocationStrategy = SimpleNamespace(ON_PROFILE_CHANGE="on change")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")

    def __init__(self, cuda: EmulatedCuda, bundle: Bundle, form: Form, made: BuiltEngines) -> None:
        self._cuda, self._bundle, self._form = cuda, bundle, form
        self._graphs = {engine.sha256: (graph, engine.profiles) for graph, engine in made.engines.items()}

    @staticmethod
    def nptype(kind: str) -> Any:
        return {"tensor(float)": np.float32, "tensor(int64)": np.int64}[kind]

    def Runtime(self, _: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=self._engine)

    def _engine(self, data: bytes) -> Any:
        graph, profiles = self._graphs[hashlib.sha256(data).hexdigest()]
        return EmulatedEngine(self._cuda, open_session(self._form.graph(self._bundle, graph), 2), profiles)


class EmulatedEngine:
    def __init__(self, cuda: EmulatedCuda, session: Any, profiles: list[Any]) -> None:
        self.cuda, self.session, self._profiles = cuda, session, profiles
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
        free = iter(self._profiles[profile].get(name, ()))  # none of what is as large for all
        ranges = [next(free) if size == -1 else (size,) * 3 for size in self.get_tensor_shape(name)]
        return [list(sizes) for sizes in zip(*ranges, strict=True)]

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return 1000 * (profile + 1)

    def create_runtime_config(self) -> Any:
        made = SimpleNamespace(runtime_cache=None, create_runtime_cache=EmulatedCache)
        made.set_execution_context_allocation_strategy = lambda strategy: None
        made.set_runtime_cache = lambda cache: setattr(made, "runtime_cache", cache)
        return made

    def create_execution_context(self, how: Any) -> EmulatedContext:
        assert how.dynamic_shapes_kernel_specialization_strategy == "eager"
        how.runtime_cache.compiled.add(hashlib.sha256("".join(self._names).encode()).hexdigest())
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

    def set_optimization_profile_async(self, profile: int, _: int) -> bool:
        self._profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
        self._shapes[name] = tuple(shape)
        return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._places[name] = address
        return address in self._engine.cuda._memory

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """As an engine says it before it has run; here it runs for it."""
        session = self._engine.session
        found = session.run([name], {given: self._array(given, self._shapes[given]) for given in self._engine.inputs})[0]
        return found.shape

    def execute_async_v3(self, _: int) -> bool:
        assert self._places.keys() == {*self._engine.inputs, *self._engine.outputs}
        shapes = dict(self._shapes)
        binding = self._engine.session.io_binding()
        for name, value in (self._engine.inputs | self._engine.outputs).items():
            inner = name.replace("present.", "past_key_values.")
            shape = shapes.get(name) or shapes.get(inner)
            if shape is None:  # logits, and what a call is asked for at once
                shape = (next(iter(shapes.values()))[0], value.shape[-1]) if name == "logits" else self.get_tensor_shape(name)
            array = onnxruntime.OrtValue.ortvalue_from_numpy(self._array(name, shape))
            (binding.bind_ortvalue_input if name in self._engine.inputs else binding.bind_ortvalue_output)(name, array)
        self._engine.cuda.run(lambda: self._engine.session.run_with_iobinding(binding))
        return True

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_, "tensor(float16)": np.float16}
        kind = np.dtype(kinds[self._engine.get_tensor_dtype(name)])
        memory = self._engine.cuda.memory(self._places[name])
        return memory[: kind.itemsize * int(np.prod(shape))].view(kind).reshape(shape)
