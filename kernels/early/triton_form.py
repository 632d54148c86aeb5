"""How a kernel waits for those before it. Where it cannot be launched early, and in the interpreter, EARLY is False and nothing is done."""

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
