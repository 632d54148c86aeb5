"""The driver of an NVIDIA GPU: the kernels of a bundle, launched as CUDA graphs by cuda-python, with neither torch nor Triton.

In: a folder of kernels as `kernels/compile.py` writes it. Out: a `Driver`. Importing it needs no GPU and no cuda-python; opening it does.
"""

from __future__ import annotations

import ctypes
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np

from ...kernels.kernel_lists import PROGRAMS
from ...kernels.launch import Call, Launch, LaunchList, bytes_of, key_of
from ..backend import BackendError
from ..install import install_command
from .driver import DeviceError, Download, Evictable
from .kernels import Code, Kernels

_NUMBERS = {"i32": np.int32, "i64": np.int64, "fp32": np.float32}
_SHARED = 48 << 10  # bytes of shared memory that a kernel may have without asking
# What to do after an error that leaves the GPU as it was; after most others it is lost to the process.
_PACK = "Pack its kernels again: export with --kernels, of this version."
_DRIVER = "Update the GPU's driver, or export with --kernels for this card."
_LOOK = "See what nvidia-smi says; in a container the GPU must be given to it."
_NEXT = {
    "CUDA_ERROR_INVALID_VALUE": _PACK,
    "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES": _PACK,
    "CUDA_ERROR_INVALID_IMAGE": _PACK,
    "CUDA_ERROR_NO_BINARY_FOR_GPU": _DRIVER,
    "CUDA_ERROR_INVALID_PTX": _DRIVER,
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": _DRIVER,
    "CUDA_ERROR_NO_DEVICE": _LOOK,
    "CUDA_ERROR_INVALID_DEVICE": _LOOK,
    "CUDA_ERROR_OUT_OF_MEMORY": "Ask for fewer seconds, samples or prompts at once, or free what else runs on the GPU.",
}
_LOST = "Ask again. If that fails too, the GPU answers this process no more: load the bundle in a new one."


def find_gpu(who: str, index: int = 0) -> tuple[str, int]:
    """Name and compute capability (90 for 9.0) of a GPU. BackendError, on behalf of `who`, where there is none."""
    cuda = _api(who)
    try:
        _do(cuda, "cuInit", 0)
        device, kinds = _do(cuda, "cuDeviceGet", index), cuda.CUdevice_attribute
        major = _do(cuda, "cuDeviceGetAttribute", kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)
        minor = _do(cuda, "cuDeviceGetAttribute", kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)
        return _do(cuda, "cuDeviceGetName", 256, device).split(b"\0")[0].decode(), 10 * major + minor
    except (DeviceError, RuntimeError) as error:  # cuda-python raises RuntimeError where there is no driver's library
        raise BackendError(f"{who}: no NVIDIA GPU can be used here: {str(error).removesuffix(_LOOK).strip()} {_LOOK}") from error


def _api(who: str) -> Any:
    try:
        return import_module("cuda.bindings.driver")
    except ImportError as error:
        raise BackendError(f"{who} needs cuda-python: {install_command('gpu')}.") from error


def _do(cuda: Any, name: str, *arguments: Any) -> Any:
    """A function of the driver's API; what it gives."""
    error, *found = getattr(cuda, name)(*arguments)
    if error:
        text = cuda.cuGetErrorString(error)[1]
        kind = MemoryError if error == cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY else DeviceError
        raise kind(f"{name}: {text.decode() if text else error!r} ({error!r}). {_NEXT.get(error.name, _LOST)}")
    return found[0] if len(found) == 1 else tuple(found)


def _parameters(value: Any, kind: Any, buffers: Mapping[str, Memory]) -> Iterator[np.ndarray]:
    """A launch's parameter as the GPU takes it: a buffer's address, a number, or a tuple's parts one after another."""
    if isinstance(value, tuple):
        for part in zip(value, kind, strict=True):
            yield from _parameters(*part, buffers)
    elif isinstance(value, str):
        yield np.array(buffers[value].address, np.uint64)
    else:
        yield np.array(value, _NUMBERS[kind])


class CudaDriver:
    """One GPU, one stream. Calls may come from any thread; what is asked for at once happens in any order.

    A call runs in the GPU's primary context and leaves the thread's own as it was: pycuda's users may have one.
    """

    programs = PROGRAMS
    place = "cuda"  # ONNX Runtime's name of it

    def __init__(self, bundle: Path, index: int = 0, early: bool = True) -> None:
        """index: of the GPU among those that are visible; early: whether kernels may begin before those in front of them have ended.

        BackendError where there is no GPU; BundleError for a bundle without kernels.
        """
        self.index, self._early = index, early
        self.name, self.capability = find_gpu("device='cuda'", index)
        self._cuda = _api("device='cuda'")
        self._functions: dict[str, tuple[Any, Code]] = {}
        self.evictable: WeakSet[Evictable] = WeakSet()
        self._staging: defaultdict[tuple, list[StagingBuffer]] = defaultdict(list)  # by shapes, those that no copy is under way to
        self._context = self._do("cuDevicePrimaryCtxRetain", self._do("cuDeviceGet", index))
        self.kernels = Kernels(bundle)
        self.stream = self.call("cuStreamCreate", self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)

    def free_bytes(self) -> int:
        return self.call("cuMemGetInfo")[0]

    def allocate(self, kind: str, shape: tuple[int, ...]) -> Memory:
        return Memory(self, bytes_of(kind, shape), shape)

    def upload(self, buffer: Memory, array: np.ndarray, first: int = 0) -> None:
        begin = first * buffer.entry
        assert begin + array.nbytes <= buffer.count and len(array) * buffer.entry == array.nbytes, (array.shape, first, buffer.shape)
        array = np.ascontiguousarray(array)
        self.call("cuMemcpyHtoDAsync", buffer.address + begin, array.ctypes.data, array.nbytes, self.stream)  # returns when it was read

    def copy(self, target: Memory, source: Memory) -> None:
        parts = 1 if target.entry == source.entry else source.shape[0]
        assert parts * target.entry <= target.count and source.entry <= target.entry, (target.shape, source.shape)
        for part in range(parts):
            to, at, count = target.address + part * target.entry, source.address + part * source.entry, source.count // parts
            self.call("cuMemcpyDtoDAsync", to, at, count, self.stream)

    def record(self, step: LaunchList, buffers: Mapping[str, Memory]) -> Recorded:
        with self.current():
            ready = [  # a module cannot be loaded while launches are recorded; only a kernel lets another begin before it has ended
                self.ready(one, step, buffers, isinstance(before, Launch))
                for before, one in zip((None, *step.launches), step.launches, strict=False)
            ]
            self.call("cuStreamBeginCapture", self.stream, self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)
            try:
                for launch in ready:
                    launch()
            except BaseException:
                with suppress(DeviceError):  # a refused launch can have ended it
                    self.call("cuGraphDestroy", self.call("cuStreamEndCapture", self.stream))
                raise
            graph = self.call("cuStreamEndCapture", self.stream)
        return Recorded(self, graph, [*buffers.values(), *ready])

    def replay(self, *recorded: Recorded) -> None:
        with self.current():
            for one in recorded:
                self._do("cuGraphLaunch", one.graph, self.stream)

    def hand_over(self, buffer: Memory) -> tuple[str, int, int]:
        self.call("cuStreamSynchronize", self.stream)
        return self.place, self.index, buffer.address

    def download(self, buffers: Sequence[Memory]) -> Download:
        shapes = tuple(buffer.shape for buffer in buffers)
        staging = self._staging[shapes].pop() if self._staging[shapes] else StagingBuffer(self, shapes)
        for to, buffer in zip(staging.pinned, buffers, strict=True):
            self.call("cuMemcpyDtoHAsync", to.address, buffer.address, buffer.count, self.stream)
        self.call("cuEventRecord", staging.event, self.stream)

        def wait() -> list[np.ndarray]:
            self.call("cuEventSynchronize", staging.event)
            arrays = [one.array.copy() for one in staging.pinned]
            self._staging[shapes].append(staging)
            return arrays

        return wait

    def close(self) -> None:
        self._staging.clear()

    def call(self, name: str, *arguments: Any) -> Any:
        """A function of the driver's API, on this GPU. DeviceError, or MemoryError where it has no more, says what to do."""
        with self.current():
            return self._do(name, *arguments)

    @contextmanager
    def current(self) -> Iterator[None]:
        """For what other libraries do there: the thread's context is the GPU's primary one, and after it what it was before."""
        self._do("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._do("cuCtxPopCurrent")

    def _do(self, name: str, *arguments: Any) -> Any:
        return _do(self._cuda, name, *arguments)

    def ready(self, one: Launch | Call, step: LaunchList, buffers: Mapping[str, Memory], early: bool) -> Callable[[], Any]:
        """What launches it, with nothing left to be loaded. early: before what is in front of it has ended, if it waits for that by itself.

        DeviceError for what this driver has not.
        """
        if isinstance(one, Call):
            raise DeviceError(f"this driver has no engine of the {one.stage} stage.")
        function, code = self._function(key_of(one, step))
        kinds = [(name, kind) for name, kind in code.signature.items() if kind != "constexpr"]
        values = [value for name, kind in kinds for value in _parameters(one.arguments[name], kind, buffers)]
        values += [np.array(0, np.uint64)] * 2  # scratch memory, which no kernel uses
        addresses = np.array([value.ctypes.data for value in values], np.uint64)
        return partial(self._launch, self._config(one.grid, code, early), function, values, addresses)

    def _config(self, grid: tuple[int, ...], code: Code, early: bool) -> Any:
        config = self._cuda.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = *grid, *(1,) * (3 - len(grid))
        config.blockDimX, config.blockDimY, config.blockDimZ = code.threads, 1, 1
        config.sharedMemBytes, config.hStream = code.shared_bytes, self.stream
        if early and self._early and code.waits:  # programmatic dependent launch, see kernels/early
            attribute = self._cuda.CUlaunchAttribute()
            attribute.id = self._cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
            config.attrs, config.numAttrs = [attribute], 1
        return config

    def _launch(self, config: Any, function: Any, values: list[np.ndarray], addresses: np.ndarray) -> None:
        """addresses: of the values, which must be there until the launch has taken them."""
        self.call("cuLaunchKernelEx", config, function, addresses.ctypes.data, 0)

    def _function(self, key: str) -> tuple[Any, Code]:
        if key not in self._functions:
            code = self.kernels.find(key, self.capability)
            module = self.call("cuModuleLoadData", code.image)
            function = self.call("cuModuleGetFunction", module, code.function.encode())
            if code.shared_bytes > _SHARED:
                kind = self._cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                self.call("cuFuncSetAttribute", function, kind, code.shared_bytes)
            self._functions[key] = function, code
        return self._functions[key]

    def free(self, name: str, handle: Any) -> None:
        """Free something; when the process ends, or the GPU is lost, there is nothing left to free."""
        try:
            self.call(name, handle)
        except Exception:  # in a destructor: no one could catch it
            return


class Memory:
    """Of the GPU, freed with the last reference to it."""

    def __init__(self, driver: CudaDriver, count: int, shape: tuple[int, ...]) -> None:
        self.count, self.shape, self._driver = count, shape, driver
        self.entry = count // max(shape[0], 1)  # bytes of an entry of the first axis
        self.address = int(driver.call("cuMemAlloc", max(count, 1)))

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self._driver.free("cuMemFree", self.address)


class PinnedArray:
    """int64 in memory of the host that the GPU can write."""

    def __init__(self, driver: CudaDriver, shape: tuple[int, ...]) -> None:
        self._driver = driver
        self.address = int(driver.call("cuMemHostAlloc", 8 * max(math.prod(shape), 1), 0))
        self.array = np.ctypeslib.as_array(ctypes.cast(self.address, ctypes.POINTER(ctypes.c_int64)), shape)

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self._driver.free("cuMemFreeHost", self.address)


class StagingBuffer:
    """Pinned arrays, and the event that signals that the copies into them have finished."""

    def __init__(self, driver: CudaDriver, shapes: tuple[tuple[int, ...], ...]) -> None:
        self._driver, self.pinned = driver, [PinnedArray(driver, shape) for shape in shapes]
        self.event = driver.call("cuEventCreate", driver._cuda.CUevent_flags.CU_EVENT_DISABLE_TIMING)

    def __del__(self) -> None:
        if hasattr(self, "event"):
            self._driver.free("cuEventDestroy", self.event)


class Recorded:
    """A graph of launches, and what they use: memory, and contexts of engines."""

    def __init__(self, driver: CudaDriver, graph: Any, used: list[Any]) -> None:
        self._driver, self._used = driver, used
        try:
            self.graph = driver.call("cuGraphInstantiate", graph, 0)
        finally:
            driver.call("cuGraphDestroy", graph)

    def __del__(self) -> None:
        if hasattr(self, "graph"):
            self._driver.free("cuGraphExecDestroy", self.graph)
