"""What the kernel knows when it is compiled, said without Triton: launches are listed where there is none."""

from typing import NamedTuple


class Parts(NamedTuple):
    """Of the attention's output: what is known when a kernel that merges them is compiled."""

    heads: int
    dim_head: int
    splits: int
