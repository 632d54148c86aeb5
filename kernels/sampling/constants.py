"""What the kernel knows when it is compiled or is told at its launch, said without Triton: launches are listed where there is none."""

from typing import NamedTuple

PLAN = 6  # int64 of a row: seed, item, index of its first token in the noise, in its positions, in its frames, tokens at most
STATE = 3  # int64 of a row: tokens drawn, whether it goes on, tokens it keeps
# `frame`: when the last entry is forbidden, if not in all tokens but the first of a frame after the first frame
NEVER, ALWAYS = 0, -1


RING = 32  # tokens of a row that the device holds


class Draw(NamedTuple):
    """What is known when the kernel is compiled."""

    vocabulary: int
    fours: int  # of the vocabulary, up to a power of two
    copies: int  # 2 with guidance
    dim: int
    streams: int
    block: int  # of the embedding at a time


class Place(NamedTuple):
    """Where a stage's tokens stand, see runtime/stages.py; index counts them from the row's first one."""

    first_row: int  # row of the table: first_row + index % quantizers * codebook + token
    codebook: int
    quantizers: int
    origin: int  # coordinate: origin + index // per_frame * stride + index % per_frame; the query's is `shift` more
    per_frame: int
    stride: int
    shift: int
    padding: int  # row of the table for a row that has ended


class Rules(NamedTuple):
    """What `sample` is told of a request: these as int64, and two factors as float32, the scale of guidance and the temperature, 0 for the
    likeliest. They lie in the device's memory, so that launches need not be recorded again for another request."""

    place: Place
    stage: int  # see runtime/noise.py
    frame: int  # tokens of a frame, or NEVER, ALWAYS
    end: int  # the token that ends a row; -1: none does
    k: int  # of top-k

    def integers(self) -> list[int]:
        return [*self.place, self.stage, self.frame, self.end, self.k]


INTEGERS = len(Place._fields) + 4
