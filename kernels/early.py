"""Programmatic dependent launch: a kernel begins while the one before it in the stream still runs.

It may read what no kernel writes, weights, before it waits; `wait` returns when all that came before has been written. So what a launch
costs, and the first bytes of its weights, hide behind the kernel before. Cards from 9.0 on have it; elsewhere, and in the interpreter,
EARLY is False and nothing is done. NVIDIA, CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization".
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait(EARLY: tl.constexpr):
    """Let the next kernel of the stream begin, then wait for those before. Every program of every kernel calls it: that a kernel has ended
    then means that all before it have."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
