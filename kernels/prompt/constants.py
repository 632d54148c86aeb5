"""A position that is fed, as the kernel reads it, without Triton: launches are listed where there is none."""

from typing import NamedTuple


class Position(NamedTuple):
    """int64 numbers of a position, in the order in which they lie in memory."""

    slot: int
    length: int  # positions of its slot up to this one, itself included
    embedding_id: int  # row of the table of embeddings
    coordinate: int  # of its query
