"""A GPU in the host's memory: what cuda-python is asked for, so that the lines that ask run where there is none.

Kernels are computed by their numpy references. What is emulated: addresses, parameters as they lie in memory, graphs, events.
What is not: that anything runs later, or beside something else. For TensorRT see emulated_tensorrt.py.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from musiclm_deploy.kernels.functions import functions_of
from musiclm_deploy.kernels.launch import FORMAT, RECORD, LaunchList, key_of, signature_of

from . import references
from .drivers import TYPES

real: Any = import_module("cuda.bindings.driver")  # for its constants
_NUMBERS = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}
_POINTERS = {"*fp32": "fp32", "*fp16": "fp16", "*bf16": "bf16", "*i8": "int8", "*i64": "int64"}
PRIMARY, OTHERS = "the primary context", "pycuda's"
ANYWHERE = {"cuInit", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain", "cuGetErrorString"}
ANYWHERE |= {"cuCtxPushCurrent", "cuCtxPopCurrent"}


class EmulatedCuda:
    """`cuda.bindings.driver`: functions return an error's number, 0, and what they give. Names of constants are its own."""

    def __init__(self, kernels: Iterable[LaunchList], free: int = 1 << 32) -> None:
        """kernels: lists that name every kernel which may be launched."""
        self.free, self.launched, self.replayed = free, 0, 0
        self.graphs = 0  # that are there, instantiated or not
        self.allocated = 0  # times that memory was taken or an event made
        self.contexts = [OTHERS]  # of the thread
        self.refused: dict[str, str] = {}  # functions that fail, and their errors
        self._memory: dict[int, np.ndarray] = {}
        self._captured: list[Callable[[], None]] | None = None
        self._after_kernel = False  # of the list that is being captured
        self._known = {}
        self.add(kernels)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put it in the place of cuda-python's driver until the test ends."""
        monkeypatch.setitem(sys.modules, real.__name__, self)

    def add(self, kernels: Iterable[LaunchList]) -> None:
        """Let the kernels that these lists name be launched, too."""
        for step in kernels:
            for launch in step.kernels:
                kinds = signature_of(launch, step)
                self._known[key_of(launch, step)] = launch, {name: kinds[name] for name in functions_of(launch)[0].arg_names}

    def pack(self, bundle: Path) -> None:
        """A folder of kernels whose machine code is their keys."""
        folder, kernels, files = bundle / "kernels", {}, {}
        folder.mkdir()
        for key, (launch, signature) in self._known.items():
            (folder / f"{key}.cubin").write_bytes(key.encode())
            files[f"{key}.cubin"] = hashlib.sha256(key.encode()).hexdigest()
            machine = {"file": f"{key}.cubin", "threads": 128, "shared_bytes": 1 << 16, "registers": 1, "stack_bytes": 0}
            machine["waits"] = True
            kernels[key] = {"function": launch.kernel, "signature": signature, "machines": {"90": machine}}
        (folder / RECORD).write_text(json.dumps({"format": FORMAT, "kernels": kernels, "files": files}))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.startswith("CU"):
            return getattr(real, name)
        gives = {"cuDeviceGet": 0, "cuDevicePrimaryCtxRetain": PRIMARY, "cuStreamCreate": 7}
        if name in gives:
            return lambda *_: (0, gives[name])
        assert name in {
            *("cuInit", "cuEventRecord", "cuEventSynchronize", "cuEventDestroy", "cuFuncSetAttribute", "cuStreamSynchronize"),
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
        assert self._captured is None and self._holds(to, count)
        ctypes.memmove(to, source, count)
        return (0,)

    def cuMemcpyDtoDAsync(self, to: int, source: int, count: int, _: int) -> tuple[int]:
        assert self._captured is None and self._holds(to, count) and self._holds(source, count)
        ctypes.memmove(to, source, count)
        return (0,)

    def cuMemcpyDtoHAsync(self, to: int, source: int, count: int, _: int) -> tuple[int]:
        assert self._captured is None and self._holds(source, count)
        ctypes.memmove(to, source, count)
        return (0,)

    def cuMemcpyDtoH(self, to: int, source: int, count: int) -> tuple[int]:
        return self.cuMemcpyDtoHAsync(to, source, count, 0)

    def cuModuleLoadData(self, image: bytes) -> tuple[int, bytes]:
        assert self._captured is None, "a module cannot be loaded while launches are recorded"
        return 0, image

    def cuModuleGetFunction(self, module: bytes, name: bytes) -> tuple[int, str]:
        assert self._known[module.decode()][0].kernel == name.decode()
        return 0, module.decode()

    def cuStreamBeginCapture(self, *_: Any) -> tuple[int]:
        self._captured, self._after_kernel = [], False
        return (0,)

    def cuStreamEndCapture(self, _: int) -> tuple[int, list]:
        captured, self._captured = self._captured, None
        assert captured is not None
        self.graphs += 1
        return 0, captured

    def cuGraphInstantiate(self, graph: list, _: int) -> tuple[int, list]:
        self.graphs += 1
        return 0, graph

    def cuGraphDestroy(self, _: list) -> tuple[int]:
        self.graphs -= 1
        return (0,)

    cuGraphExecDestroy = cuGraphDestroy

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
        launch, signature = self._known[key]
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
        self.run(partial(references.compute, replace(launch, grid=(gx, gy, gz)), arguments))
        self._after_kernel = True
        return (0,)

    def run(self, work: Callable[[], Any]) -> None:
        """Now, or whenever the graph is launched that is being captured."""
        self._after_kernel = False
        if self._captured is None:
            work()
        else:
            self._captured.append(work)

    def _holds(self, address: int, count: int) -> bool:
        """Whether these bytes are within one allocation."""
        return any(begin <= address and address + count <= begin + len(memory) for begin, memory in self._memory.items())

    def memory(self, address: int) -> np.ndarray:
        return self._memory[address]
