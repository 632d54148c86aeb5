"""What the tests of the GPU's kernels share: launches in Triton's interpreter, on the CPU. conftest.py turns it on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from musiclm_deploy.kernels.functions import functions_of


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any) -> None:
    """Run every program of the grid, one after another."""
    kernel[grid](*arguments)


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
        kernel[one.grid](**{name: resolve(value) for name, value in one.arguments.items()}, **constants)
