"""What the kernel knows when it is compiled, said without Triton: launches are listed where there is none."""

from typing import NamedTuple


class Mixing(NamedTuple):
    """What is known when the kernel is compiled."""

    dim: int
    width: int  # dim up to a power of two
    streams: int
    padded: int  # streams up to a power of two
    mixed: bool
    shifted: bool
