"""The end of a decode step on a GPU: sampling, and what the next step reads, so that no token waits for the host.

    token = argmax( top_k(null + (cond - null) * scale) / temperature + gumbel )
    gumbel = -log(-log(((bits >> 8) + 0.5) / 2**24)) in float64, bits of Philox 4x32-10, counter (v / 4, step, stage, item), key seed

In: logits float32 [copies * B, V], rows without condition last; each row's plan and state. Out: the token; the row's state; and of all
copies of the row: length, coordinates, the residual streams that the next step begins with. Products and quotients are not fused or
approximated here, so that equal logits give the tokens of runtime/sampling.py.

Top-k keeps what is at least the k-th largest entry; that one is found two bits at a time from the highest: floats in the order of
integers, 16 times three counts over the row. Ties at the edge all stay, whatever the machine.

Threads: program b has row b and its copy without condition; entries lie in fours, as Philox makes them.
Bytes: 4 * V * copies read, 4 * dim * S * copies written, one row of the table read, a few numbers more; with a width of 0 none is embedded,
and the row's number is all. Two float64 logarithms an entry.
"""

import triton
import triton.language as tl

from ..early.triton_form import wait
from . import constants

PLAN, STATE = tl.constexpr(constants.PLAN), tl.constexpr(constants.STATE)
NEVER, ALWAYS = tl.constexpr(constants.NEVER), tl.constexpr(constants.ALWAYS)


@triton.jit
def sample(
    logits,  # float32 [copies * B, V]
    plans,  # int64 [B, PLAN]
    states,  # int64 [B, STATE]
    tokens,  # int64 [B, total], a ring: token number n at n % total
    table,  # [rows, dim], fp32, fp16 or bf16
    lengths,  # int64 [copies * B]
    query_coordinates,  # int64 [copies * B]
    key_coordinates,  # int64 [copies * B, capacity]
    row_ids,  # int64 [copies * B]: the next position's row of the table
    streams,  # float32 [copies * B, S, dim]
    integers,  # int64 [INTEGERS], of Rules
    factors,  # float32 [2]: scale of guidance, temperature
    B,
    total,
    capacity,
    sizes: tl.constexpr,  # a Draw
    EARLY: tl.constexpr = False,
):
    wait(EARLY)
    first_row, codebook, quantizers = tl.load(integers), tl.load(integers + 1), tl.load(integers + 2)
    origin, per_frame, stride = tl.load(integers + 3), tl.load(integers + 4), tl.load(integers + 5)
    shift, padding, stage, frame = tl.load(integers + 6), tl.load(integers + 7), tl.load(integers + 8), tl.load(integers + 9)
    end, k = tl.load(integers + 10), tl.load(integers + 11)
    scale, temperature = tl.load(factors), tl.load(factors + 1)
    b = tl.program_id(0)
    V: tl.constexpr = sizes.vocabulary
    seed, item = tl.load(plans + b * PLAN), tl.load(plans + b * PLAN + 1)
    step, running, kept = tl.load(states + b * STATE), tl.load(states + b * STATE + 1), tl.load(states + b * STATE + 2)

    v = tl.arange(0, sizes.fours * 4)
    score = tl.load(logits + b * V + v, mask=v < V, other=float("-inf"))
    if sizes.copies == 2:
        null = tl.load(logits + (B + b) * V + v, mask=v < V, other=0.0)
        score = null + (score - null) * scale
    in_frames = tl.load(plans + b * PLAN + 4) + step
    opens = (in_frames % tl.maximum(frame, 1) == 0) & (in_frames > 0)
    forbidden = (frame == ALWAYS) | ((frame > NEVER) & (opens == 0))
    # beyond V guidance makes of -inf what it likes: a scale of 0 or less turns it round
    score = tl.where((v >= V) | ((v == V - 1) & forbidden), float("-inf"), score)
    if temperature > 0:
        kth = kth_largest(score, v < V, k)
        drawn = tl.div_rn(score, tl.zeros_like(score) + temperature) + gumbel_noise(
            seed, item, stage, tl.load(plans + b * PLAN + 2) + step, sizes
        )
        score = tl.where(score >= kth, drawn, float("-inf"))
    token = tl.argmax(score, axis=0).to(tl.int64)

    tl.store(tokens + b * total + step % total, token)
    going = (running != 0) & (token != end)
    kept = tl.where(going, step + 1, kept)
    going = going & (tl.load(plans + b * PLAN + 5) > step + 1)
    index = tl.load(plans + b * PLAN + 3) + step
    tl.store(states + b * STATE, step + 1)
    tl.store(states + b * STATE + 1, going.to(tl.int64))
    tl.store(states + b * STATE + 2, kept)

    row = tl.where(going, first_row + index % quantizers * codebook + token, padding)
    coordinate = origin + index // per_frame * stride + index % per_frame
    for copy in range(sizes.copies):
        one = copy * B + b
        length = tl.load(lengths + one) + going.to(tl.int64)
        tl.store(lengths + one, length)
        tl.store(query_coordinates + one, coordinate + shift)
        tl.store(row_ids + one, row)
        tl.store(key_coordinates + one.to(tl.int64) * capacity + length - 1, coordinate)
        for start in range(0, sizes.dim, sizes.block):
            d = start + tl.arange(0, sizes.block)
            x = tl.load(table + row * sizes.dim + d, mask=d < sizes.dim, other=0.0).to(tl.float32)
            for s in range(sizes.streams):
                tl.store(streams + (one * sizes.streams + s) * sizes.dim + d, x, mask=d < sizes.dim)


@triton.jit
def kth_largest(score, there, k):
    """The k-th largest of the entries that are there, 1 <= k <= their number."""
    bits = score.to(tl.uint32, bitcast=True)
    negative = bits >> 31 != 0
    order = tl.where(there, tl.where(negative, bits ^ 0xFFFFFFFF, bits | 0x80000000), 0)
    found = tl.zeros([1], tl.uint32)
    one = tl.full([1], 1, tl.uint32)
    for place in tl.static_range(30, -1, -2):
        first = (order >= (found | (one << place))).to(tl.int64)
        second = (order >= (found | (2 * one << place))).to(tl.int64)
        third = (order >= (found | (3 * one << place))).to(tl.int64)
        counts = tl.sum(first + (second << 20) + (third << 40), axis=0)  # three sums in one: up to 2**20 entries
        digit = (counts % 1048576 >= k).to(tl.uint32) + ((counts >> 20) % 1048576 >= k).to(tl.uint32) + (counts >> 40 >= k).to(tl.uint32)
        found |= digit << place
    return tl.where(found >> 31 != 0, found ^ 0x80000000, found ^ 0xFFFFFFFF).to(tl.float32, bitcast=True)


@triton.jit
def gumbel_noise(seed, item, stage, step, sizes: tl.constexpr):
    """float32 [4 * fours]: the lines of runtime/noise.py."""
    four = tl.arange(0, sizes.fours).to(tl.uint32)
    nothing = four * 0
    step, stage, item = nothing + step.to(tl.uint32), nothing + stage.to(tl.uint32), nothing + item.to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, four, step, stage, item)
    bits = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [sizes.fours * 4])
    uniform = ((bits >> 8).to(tl.float64) + 0.5) / 16777216.0
    return (-tl.log(-tl.log(uniform))).to(tl.float32)
