"""What a list of launches is made of, and the name of the machine code that a launch needs.

In: a launch and the buffers it is given. Out: its signature and key, the same where kernels are compiled and where they are launched.
It knows no kernel, needs no Triton and holds no memory.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any

FORMAT, RECORD = 3, "kernels.json"  # of a folder of compiled kernels: rises when the record changes; the record's name
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "int64": 8, "bool": 1}
_POINTERS = {"fp32": "*fp32", "fp16": "*fp16", "bf16": "*bf16", "int8": "*i8", "int64": "*i64"}


@dataclass(frozen=True)
class Launch:
    """One kernel of the step."""

    name: str
    kernel: str  # the function's name
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # parameter -> a buffer's name, a number, or a tuple of these
    constants: dict[str, Any]  # parameter -> what is known when the kernel is compiled; a function by its name
    warps: int = 4  # of a program, 32 threads each


@dataclass(frozen=True)
class Call:
    """One run of a stage's engine."""

    stage: str
    prompt: bool  # of a prompt's positions, or of one position a row
    tensors: dict[str, tuple[str, tuple[int, ...]]]  # that the engine may have -> a buffer's name, the tensor's shape


@dataclass
class LaunchList:
    """`buffers`: name -> type and shape. Types: fp32, int64, bool, those of weights and caches, fp32, fp16, bf16, int8."""

    buffers: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    launches: list[Launch | Call] = field(default_factory=list)

    @property
    def kernels(self) -> list[Launch]:
        return [one for one in self.launches if isinstance(one, Launch)]


def signature_of(launch: Launch, launches: LaunchList) -> dict[str, Any]:
    """Type of every parameter: "*fp16", "i32", "constexpr" and so on, a tuple for a tuple. EARLY is of the card, not of the launch."""
    return {name: _kind(value, launches) for name, value in launch.arguments.items()} | dict.fromkeys(
        (*launch.constants, "EARLY"), "constexpr"
    )


def _kind(value: Any, launches: LaunchList) -> Any:
    if isinstance(value, tuple):
        return tuple(_kind(one, launches) for one in value)
    if isinstance(value, str):
        return _POINTERS[launches.buffers[value][0]]
    return "fp32" if isinstance(value, float) else "i32" if -(1 << 31) <= value < 1 << 31 else "i64"


def key_of(launch: Launch, launches: LaunchList) -> str:
    """A name for all launches that the same machine code serves."""
    constants = {name: value if isinstance(value, str) else repr(value) for name, value in launch.constants.items()}
    text = json.dumps([launch.kernel, launch.warps, signature_of(launch, launches), constants], sort_keys=True)
    return f"{launch.kernel}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def bytes_of(kind: str, shape: tuple[int, ...]) -> int:
    """Of a buffer."""
    return BYTES[kind] * math.prod(shape)


def next_power_of_two(count: int) -> int:
    """The least power of two that is no smaller."""
    return 1 << (count - 1).bit_length()
