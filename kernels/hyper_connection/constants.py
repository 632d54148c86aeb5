"""What the kernel knows when it is compiled, said without Triton: launches are listed where there is none."""

from typing import NamedTuple


class Mixing(NamedTuple):
    """What is known when the kernel is compiled."""

    dim: int
    streams: int
    padded: int  # streams up to a power of two
    block: int  # inputs at a time while the mixing is worked out
    mixed: bool
    keep: bool  # whether the streams are written: somebody reads them after this branch
    shifted: bool
