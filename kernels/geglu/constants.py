"""What the kernel knows when it is compiled, said without Triton: launches are listed where there is none."""

from typing import NamedTuple


class Inner(NamedTuple):
    """What is known when the kernel is compiled."""

    dim: int
    columns: int  # of a program of the gated product: it has left the mean and the squares around it of so many
    parts: int  # of these programs, up to a power of two
    shifted: bool
