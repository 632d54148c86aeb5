"""Constants of the kernel, and the records of a slot that it reads, without Triton: launches are listed where there is none."""

from typing import NamedTuple

# `frame`: when the last entry is forbidden, if not in all tokens but the first of a frame after the first frame
NEVER, ALWAYS = 0, -1
RING = 32  # tokens of a slot that the device holds


class Draw(NamedTuple):
    """What is known when the kernel is compiled."""

    vocabulary: int
    fours: int  # of the vocabulary, up to a power of two
    dim: int
    streams: int
    block: int  # of the embedding at a time


class Place(NamedTuple):
    """Rows and coordinates of a stage's tokens, see runtime/sequence.py; index counts them from the sequence's first one."""

    first_row: int  # row of the table: first_row + index % quantizers * codebook + token
    codebook: int
    quantizers: int
    origin: int  # coordinate: origin + index // per_frame * stride + index % per_frame; the query's is `shift` more
    per_frame: int
    stride: int
    shift: int
    padding: int  # row of the table for a sequence that has ended


class Rules(NamedTuple):
    """The rules of a sequence's stage, for `sample`."""

    place: Place
    stage: int  # see runtime/noise.py
    frame: int  # tokens of a frame, or NEVER, ALWAYS
    end: int  # the token that ends a sequence; -1: none does
    k: int  # of top-k

    def integers(self) -> list[int]:
        return [*self.place, self.stage, self.frame, self.end, self.k]


INTEGERS = len(Place._fields) + 4


class Settings(NamedTuple):
    """int64 numbers of a sequence that do not change, in the order in which they lie in the memory of its slot."""

    seed: int  # the bits of an unsigned number
    item: int
    first: int  # number of its first sampled token in the noise of its item
    known: int  # number of its first sampled token among its own tokens
    in_frames: int  # the same in its frames
    steps: int  # tokens to sample at most
    first_row: int  # `Place` from here on
    codebook: int
    quantizers: int
    origin: int
    per_frame: int
    stride: int
    shift: int
    padding: int
    stage: int  # `Rules` from here on
    frame: int
    end: int
    k: int


class Factors(NamedTuple):
    """float32 numbers of a sequence that do not change."""

    scale: float  # of guidance
    temperature: float  # 0 for the likeliest token


class Progress(NamedTuple):
    """int64 numbers of a sequence that the kernel counts."""

    drawn: int  # tokens, those after its end included
    running: int  # 1 until it has ended or has all its tokens
    kept: int  # tokens without the end and what follows it
