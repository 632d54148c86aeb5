"""The beginning of a launch list over the positions of a prompt, on a GPU.

    at = lengths[b] + positions - 1,    x[b, s] = table[ids[sequence, at]],    lengths[b] = at + 1

In: prompts of all sequences, int64 [sequences, capacity], and `lengths`, which says how far each row has come. Out: the streams of its next
position, its coordinate, its length. Row b is position b % positions of sequence b / positions.

Threads: program b has row b.
Bytes: a row of the table read, 4 * dim * S written; with a width of 0 none is, and the row's number is all.
"""

import triton
import triton.language as tl

from ..early.triton_form import wait


@triton.jit
def embed(
    table,  # [rows, dim], fp32, fp16 or bf16
    ids,  # int64 [B / positions, capacity]: rows of the table
    coordinates,  # int64 [B / positions, capacity], of the queries
    lengths,  # int64 [B]
    query_coordinates,  # int64 [B]
    row_ids,  # int64 [B]: the position's row of the table
    streams,  # float32 [B, S, dim]
    capacity,
    positions,
    DIM: tl.constexpr,
    STREAMS: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    wait(EARLY)
    b = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths + b) + positions
    tl.debug_barrier()  # all threads of the program read it, one writes it
    tl.store(lengths + b, length)
    place = b // positions * capacity + length - 1
    row = tl.load(ids + place)
    tl.store(query_coordinates + b, tl.load(coordinates + place))
    tl.store(row_ids + b, row)
    for start in range(0, DIM, BLOCK):
        d = start + tl.arange(0, BLOCK)
        x = tl.load(table + row * DIM + d, mask=d < DIM, other=0.0).to(tl.float32)
        for s in range(STREAMS):
            tl.store(streams + (b * STREAMS + s) * DIM + d, x, mask=d < DIM)
