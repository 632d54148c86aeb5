"""The end of a decode step on a GPU: sampling, and what the next step reads, so that no token waits for the host.

    token = argmax( top_k(null + (cond - null) * scale) / temperature + gumbel )
    gumbel = -log(-log(((bits >> 8) + 0.5) / 2**24)) in float64, bits of Philox 4x32-10, counter (v / 4, step, stage, item), key seed

In: logits float32 [B, V] of all rows; which slot each row has, and which other row has the pass without condition of its sequence. Settings
and progress of a sequence are in its slot. Out: the token, and the sequence's progress; and for its row and the one without condition
length, coordinates and the residual streams that the next step begins with, in the row, and where it stands, in the slot. Products and
quotients are not fused or approximated here, so that equal logits give the tokens of runtime/sampling.py.

Top-k keeps what is at least the k-th largest entry; that one is found two bits at a time from the highest: floats in the order of
integers, 16 times three counts over the row. Ties at the edge all stay, whatever the machine.

Threads: program b has row b and its copy without condition; entries lie in fours, as Philox makes them. The program of a row that draws
nothing, a copy or padding, ends at once.
Bytes: 4 * V read of each row, 4 * dim * S written, one row of the table read, a few numbers more; with a width of 0 none is embedded, and
the row's number is all. Two float64 logarithms an entry.
"""

import triton
import triton.language as tl

from ..early.triton_form import wait
from . import constants

NEVER, ALWAYS = tl.constexpr(constants.NEVER), tl.constexpr(constants.ALWAYS)
SETTINGS, FACTORS = tl.constexpr(len(constants.Settings._fields)), tl.constexpr(len(constants.Factors._fields))
PROGRESS = tl.constexpr(len(constants.Progress._fields))
# where a record has what
AT = tl.constexpr(constants.Settings(*range(len(constants.Settings._fields))))
FACTOR = tl.constexpr(constants.Factors(*range(len(constants.Factors._fields))))
COUNT = tl.constexpr(constants.Progress(*range(len(constants.Progress._fields))))


@triton.jit
def sample(
    logits,  # float32 [B, V]
    slots,  # int64 [B]
    nulls,  # int64 [B]: row of the pass without condition; the row itself if there is none; -1 if the row draws nothing
    settings,  # int64 [slots, Settings]
    factors,  # float32 [slots, Factors]
    progress,  # int64 [slots, Progress]
    tokens,  # int64 [slots, ring]: token number n at n % ring
    table,  # [rows, dim], fp32, fp16 or bf16
    next,  # int64 [slots, NEXT]: the position that the next step feeds
    lengths,  # int64 [B]
    query_coordinates,  # int64 [B]
    key_coordinates,  # int64 [slots, capacity]
    embedding_ids,  # int64 [B]: the next position's row of the table
    streams,  # float32 [B, S, dim]
    ring,
    capacity,
    sizes: tl.constexpr,  # a Draw
    NEXT: tl.constexpr,  # numbers of a position
    place: tl.constexpr,  # where a position has what: a Position
    EARLY: tl.constexpr = False,
):
    b = tl.program_id(0)
    wait(EARLY)
    slot, null = tl.load(slots + b), tl.load(nulls + b)
    if null < 0:
        return
    V: tl.constexpr = sizes.vocabulary
    own, counts = settings + slot * SETTINGS, progress + slot * PROGRESS
    scale = tl.load(factors + slot * FACTORS + FACTOR.value.scale)
    temperature = tl.load(factors + slot * FACTORS + FACTOR.value.temperature)
    step, running, kept = tl.load(counts + COUNT.value.drawn), tl.load(counts + COUNT.value.running), tl.load(counts + COUNT.value.kept)
    frame = tl.load(own + AT.value.frame)

    v = tl.arange(0, sizes.fours * 4)
    score = tl.load(logits + b * V + v, mask=v < V, other=float("-inf"))
    unconditioned = tl.load(logits + null * V + v, mask=v < V, other=0.0)
    score = tl.where(null == b, score, unconditioned + (score - unconditioned) * scale)
    in_frames = tl.load(own + AT.value.in_frames) + step
    opens = (in_frames % tl.maximum(frame, 1) == 0) & (in_frames > 0)
    forbidden = (frame == ALWAYS) | ((frame > NEVER) & (opens == 0))
    # beyond V guidance makes of -inf what it likes: a scale of 0 or less turns it round
    score = tl.where((v >= V) | ((v == V - 1) & forbidden), float("-inf"), score)
    if temperature > 0:
        kth = kth_largest(score, v < V, tl.load(own + AT.value.k))
        number, stage = tl.load(own + AT.value.first) + step, tl.load(own + AT.value.stage)
        noise = gumbel_noise(tl.load(own + AT.value.seed), tl.load(own + AT.value.item), stage, number, sizes)
        drawn = tl.div_rn(score, tl.zeros_like(score) + temperature) + noise
        score = tl.where(score >= kth, drawn, float("-inf"))
    token = tl.argmax(score, axis=0).to(tl.int64)

    tl.debug_barrier()  # all threads of the program have read what one of them writes now
    tl.store(tokens + slot * ring + step % ring, token)
    going = (running != 0) & (token != tl.load(own + AT.value.end))
    kept = tl.where(going, step + 1, kept)
    going = going & (tl.load(own + AT.value.steps) > step + 1)
    tl.store(counts + COUNT.value.drawn, step + 1)
    tl.store(counts + COUNT.value.running, going.to(tl.int64))
    tl.store(counts + COUNT.value.kept, kept)

    index, quantizers = tl.load(own + AT.value.known) + step, tl.load(own + AT.value.quantizers)
    row = tl.load(own + AT.value.first_row) + index % quantizers * tl.load(own + AT.value.codebook) + token
    row = tl.where(going, row, tl.load(own + AT.value.padding))
    per_frame = tl.load(own + AT.value.per_frame)
    coordinate = tl.load(own + AT.value.origin) + index // per_frame * tl.load(own + AT.value.stride) + index % per_frame
    query = coordinate + tl.load(own + AT.value.shift)
    for copy in range(tl.where(null == b, 1, 2)):
        one = tl.where(copy == 0, b, null)
        slot = tl.load(slots + one)
        length = tl.load(lengths + one) + going.to(tl.int64)
        tl.store(lengths + one, length)
        tl.store(query_coordinates + one, query)
        tl.store(embedding_ids + one, row)
        tl.store(key_coordinates + slot * capacity + length - 1, coordinate)
        tl.store(next + slot * NEXT + place.length, length)
        tl.store(next + slot * NEXT + place.embedding_id, row)
        tl.store(next + slot * NEXT + place.coordinate, query)
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
