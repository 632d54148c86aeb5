"""What the tests of the GPU's kernels share: launches in Triton's interpreter, on the CPU. conftest.py turns it on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any) -> None:
    """Run every program of the grid, one after another."""
    kernel[grid](*arguments)


def floats(array: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The array as the kernels take it: rounded to float32 first, contiguous."""
    return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(dtype)


def empty(*shape: int) -> torch.Tensor:
    """float32, NaN all over: what is read before it is written shows."""
    return torch.full(shape, torch.nan)
