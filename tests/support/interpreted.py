"""Kernels of the GPU in Triton's interpreter, on the CPU, each held against its numpy reference. conftest.py turns the interpreter on."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from musiclm_deploy.kernels.functions import functions_of
from musiclm_deploy.kernels.launch import Launch

from . import references

ON = os.environ.get("MUSICLM_KERNELS_ON")  # torch's name of a GPU
CLOSE = 1e-5  # share of a buffer's largest number: some hundred roundings of float32
ROUNDED = {torch.float32: 0.0, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}  # share of a number: a step of its type

_ready: set[str] = set()  # modules in whose functions Triton's language is the interpreter's, while a kernel runs


def _call(self: Any, *arguments: Any, **constants: Any) -> Any:
    """Call a function within a kernel. Triton's interpreter installs its operators anew for every call, a fifth of all its time, though
    they stay until the kernel has ended; this installs them once for each module."""
    if self.fn.__module__ not in _ready:
        interpreter._patch_lang(self.fn)
        _ready.add(self.fn.__module__)
    return self.rewrite()(*arguments, **constants)


def _run(self: Any, *arguments: Any, _run: Any = interpreter.GridExecutor.__call__, **constants: Any) -> None:
    _ready.clear()
    _run(self, *arguments, **constants)


_element_type = cache(interpreter._get_np_dtype)


def _get_np_dtype(kind: Any) -> np.dtype:
    """Return numpy's type of Triton's. Triton builds a table of all types anew several times in every operation: another fifth."""
    return np.dtype(np.uint64) if isinstance(kind.scalar, tl.pointer_type) else _element_type(kind.scalar)


def _convert_float(numbers: np.ndarray, kind: Any, wanted: Any, rounding: Any) -> np.ndarray:
    """Round float32 to the nearest bf16, as a GPU does; the interpreter truncates."""
    if (kind, wanted) == (tl.float32, tl.bfloat16):
        return numbers.astype(ml_dtypes.bfloat16).view(np.uint16)
    return _convert_plainly(numbers, kind, wanted, rounding)


_convert_plainly = interpreter._convert_float
interpreter._convert_float = _convert_float
interpreter._get_np_dtype = _get_np_dtype
interpreter.InterpretedFunction.__call__ = _call
interpreter.GridExecutor.__call__ = _run
# Checking every sum and product of integers for overflow takes a quarter of the time, and compiled kernels do not do it.
interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, within: float = CLOSE, **constants: Any) -> None:
    """Run every program of the grid, and hold what it wrote against the kernel's reference, if it is one that lists launch.

    On the CPU programs run one after another, in the interpreter; on the GPU of `MUSICLM_KERNELS_ON`, if it is set. within: how far a
    float32 may be from the reference's, as a share of its buffer's largest.
    """
    given = dict(zip(kernel.arg_names, arguments, strict=False)) | constants
    known = kernel.fn.__name__ in references.REFERENCES
    expected = _copied(given) if known else {}
    _run_programs(kernel, grid, given)
    if not known:
        return
    parameters = inspect.signature(references.REFERENCES[kernel.fn.__name__]).parameters
    named = {name: value.fn.__name__ if hasattr(value, "fn") else value for name, value in expected.items() if name in parameters}
    references.compute(Launch("", kernel.fn.__name__, grid, {}, {}), named)
    _assert_written(kernel.fn.__name__, given, expected, within)


def interpret(one: Launch, arguments: Mapping[str, Any]) -> None:
    """Run a launch's programs. arguments: tensors and numbers by parameter, as `references.compute` takes them."""
    kernel, constants = functions_of(one)
    _run_programs(kernel, one.grid, dict(arguments) | constants)


def check(one: Launch, arguments: Mapping[str, Any]) -> None:
    """Run a launch's programs, and hold what they wrote against its reference."""
    kernel, constants = functions_of(one)
    launch(kernel, one.grid, **arguments, **constants)


def run_step(launches: list[Any], buffers: dict[str, torch.Tensor]) -> None:
    """Run the launches of `kernels/launch.py`, in order, on these buffers, each held against its reference."""
    for one in launches:
        check(one, resolved(one, buffers))


def resolved(one: Launch, buffers: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return a launch's arguments by parameter, with buffers in place of their names."""

    def resolve(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(resolve, value))
        return buffers[value] if isinstance(value, str) else value

    return {name: resolve(value) for name, value in one.arguments.items()}


def floats(array: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return the array as the kernels take it: rounded to float32 first, contiguous."""
    return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(dtype)


def empty(*shape: int) -> torch.Tensor:
    """Return float32 filled with NaN, so that a read before the write shows."""
    return torch.full(shape, torch.nan)


def _run_programs(kernel: Any, grid: tuple[int, ...], arguments: Mapping[str, Any]) -> None:
    if ON is None:
        kernel[grid](**arguments)
        return
    moved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def move(tensor: torch.Tensor) -> torch.Tensor:
        return moved.setdefault(id(tensor), (tensor, tensor.to(ON, copy=True)))[1]

    kernel[grid](**{name: _mapped(value, move) for name, value in arguments.items()})
    for here, on_gpu in moved.values():
        here.copy_(on_gpu)


def _copied(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the arguments' tensors; a tensor that is given twice is copied once."""
    tensors: dict[int, torch.Tensor] = {}
    return {name: _mapped(value, lambda one: tensors.setdefault(id(one), one.clone())) for name, value in arguments.items()}


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, tuple):
        mapped = tuple(_mapped(one, change) for one in value)
        return type(value)(*mapped) if hasattr(value, "_fields") else mapped
    return change(value) if isinstance(value, torch.Tensor) else value


def _assert_written(kernel: str, found: Mapping[str, Any], expected: Mapping[str, Any], within: float) -> None:
    for name, tensor in found.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        other = expected[name]
        if tensor.dtype not in ROUNDED:
            assert torch.equal(tensor, other), f"{kernel}: {name}"
            continue
        ours, theirs = tensor.double().numpy(), other.double().numpy()
        finite = np.abs(theirs[np.isfinite(theirs)])
        most = within * finite.max(initial=0)
        message = f"{kernel} is not its reference in {name}"
        np.testing.assert_allclose(ours, theirs, rtol=ROUNDED[tensor.dtype], atol=most, err_msg=message)
