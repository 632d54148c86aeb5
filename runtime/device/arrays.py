"""Sounds that lie in a GPU's memory, as arrays of others: pycuda's GPUArray, CuPy, PyTorch, Numba.

In: anything with `__cuda_array_interface__` (version 3, numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html), alone or within
what a request takes. Out: the same with numpy arrays in its place.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import BackendError
from ..prompts import Blend
from .cuda import CudaDriver


def on_host(value: Any, driver: Any) -> Any:
    """Return a sound, a list of sounds, a `Blend` or anything else with GPU arrays copied to the host. driver: of the loaded model.

    PyTorch's tensors stay as they are: they copy themselves. Raises BackendError where the model has no GPU to read from, ValueError for an
    array with gaps.
    """
    if hasattr(value, "detach"):
        return value
    if hasattr(value, "__cuda_array_interface__"):
        return _copied(value.__cuda_array_interface__, driver)
    if isinstance(value, Blend):
        return Blend(on_host(value.parts, driver))
    if type(value) is dict:
        return {name: on_host(one, driver) for name, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(on_host(one, driver) for one in value)
    return value


def _copied(told: dict[str, Any], driver: Any) -> np.ndarray:
    if not isinstance(driver, CudaDriver):
        raise BackendError("a sound lies in a GPU's memory, and this bundle runs on the CPU: load it on the GPU, or give a numpy array.")
    found = np.empty(told["shape"], told["typestr"])
    if told.get("strides") not in (None, found.strides):
        got = f"strides {told['strides']} of {found.dtype} {list(found.shape)}"
        raise ValueError(f"a sound in a GPU's memory must be contiguous, got {got}.")
    if told.get("stream"):
        driver.call("cuStreamSynchronize", told["stream"])
    driver.call("cuMemcpyDtoH", found.ctypes.data, told["data"][0], found.nbytes)  # waits for what others do on the default stream
    return found
