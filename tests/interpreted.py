"""What the tests of the GPU's kernels share: launches in Triton's interpreter, on the CPU. conftest.py turns it on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from musiclm_deploy.kernels.functions import functions_of
from musiclm_deploy.kernels.launch import Step
from musiclm_deploy.runtime.device.driver import Download

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int64": torch.int64}


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


class InterpreterDriver:
    """The driver of runtime/device whose device is Triton's interpreter: what is asked for has been done when a method returns.

    Memory is NaN, or for numbers an impossible one, until it is written.
    """

    programs = 1  # of a product: the interpreter takes its time for every program

    def __init__(self, memory: int = 1 << 30) -> None:
        self.memory, self.replayed, self.coming = memory, 0, 0

    def free_bytes(self) -> int:
        return self.memory

    def allocate(self, kind: str, shape: tuple[int, ...]) -> torch.Tensor:
        self.memory -= torch.Size(shape).numel() * TYPES[kind].itemsize
        return torch.full(shape, -(1 << 50) if kind == "int64" else torch.nan, dtype=TYPES[kind])

    def upload(self, buffer: torch.Tensor, array: np.ndarray) -> None:
        given = torch.from_numpy(array)
        given = given.view(torch.bfloat16) if array.dtype == np.uint16 else given
        assert given.dtype == buffer.dtype and given.shape == buffer.shape, (given.dtype, given.shape, buffer.dtype, buffer.shape)
        buffer.copy_(given)

    def record(self, step: Step, buffers: Mapping[str, torch.Tensor]) -> tuple[list[Any], Mapping[str, torch.Tensor]]:
        return step.launches, dict(buffers)

    def replay(self, recorded: tuple[list[Any], dict[str, torch.Tensor]]) -> None:
        self.replayed += 1
        run_step(*recorded)

    def download(self, buffers: Sequence[torch.Tensor]) -> Download:
        arrays = [buffer.numpy().copy() for buffer in buffers]
        self.coming += 1

        def wait() -> list[np.ndarray]:
            self.coming -= 1
            return arrays

        return wait
