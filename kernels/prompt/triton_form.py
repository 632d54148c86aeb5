"""The beginning of launch lists on a GPU: rows are told where they stand, and their residual streams are embedded.

In: positions int64 [N, Position], and for each row the number of its position. Out: the rows' slots, lengths, coordinates, embedding ids,
streams.

Threads: program b has row b.
Bytes: a row of the table read, 4 * dim * S written; with a width of 0 none is, and the row's number is all.
"""

import triton
import triton.language as tl

from ..early.triton_form import wait
from . import constants

FIELDS = tl.constexpr(len(constants.Position._fields))
AT = tl.constexpr(constants.Position(*range(len(constants.Position._fields))))


@triton.jit
def embed(
    table,  # [rows, dim], fp32, fp16 or bf16
    positions,  # int64 [N, Position]
    at,  # int64 [B]: number of each row's position
    slots,  # int64 [B]
    lengths,  # int64 [B]
    query_coordinates,  # int64 [B]
    embedding_ids,  # int64 [B]
    streams,  # float32 [B, S, dim]
    DIM: tl.constexpr,
    STREAMS: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    wait(EARLY)
    b = tl.program_id(0).to(tl.int64)
    position = positions + tl.load(at + b) * FIELDS
    row = tl.load(position + AT.value.embedding_id)
    tl.store(slots + b, tl.load(position + AT.value.slot))
    tl.store(lengths + b, tl.load(position + AT.value.length))
    tl.store(query_coordinates + b, tl.load(position + AT.value.coordinate))
    tl.store(embedding_ids + b, row)
    for start in range(0, DIM, BLOCK):
        d = start + tl.arange(0, BLOCK)
        x = tl.load(table + row * DIM + d, mask=d < DIM, other=0.0).to(tl.float32)
        for s in range(STREAMS):
            tl.store(streams + (b * STREAMS + s) * DIM + d, x, mask=d < DIM)
