"""What the kernel knows when it is compiled, said without Triton: launches are listed where there is none."""

from typing import NamedTuple


class Inner(NamedTuple):
    """What is known when the kernel is compiled."""

    dim: int
    block: int  # inputs at a time
    shifted: bool
