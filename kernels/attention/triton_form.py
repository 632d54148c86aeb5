"""Attention of new positions against the caches of their sequences, as GPU kernels: one position of each in a step, several in a prefill.

    out[b, h] = softmax_t( q[b, h] . k[b, t] * scale + table[h, clip(cq[b] - ck[b, t], 0, M)] ) @ v[b, t],   t < lengths[b]

In: what the product before it made, float32 [B, H * D + 2 * D]: the queries by head, then the new key and the new value; the caches
[slots, T, D] in fp32, fp16 or bf16, and the slot of each row. Out: the new key and value in the caches at lengths[b] - 1, and `partial`,
float32: for each part of the keys the exponentials' sum-product with the values, their sum, and the largest score, which `merge` joins when
the next product reads them: a launch saved. Cross-attention is the same kernel without appending and without bias, over the few
conditioning keys. Of a prefill each position of a sequence is a row; `append` puts the keys and values of all of them into the caches in a
launch of its own, since a program of `attend` reads what those of earlier positions have written.

Threads: program (b, h, split) has one head and the keys of one row from split * span on, BLOCK at a time; span follows the row's own
length. All heads read the same keys and values, the first from memory and the others from the second level of cache: at one row there are
more processors than there is to read. Sums are float32, whatever the caches hold.
Bytes: 2 * lengths[b] * D of the cache's type a row, read once, and 8 * lengths[b] of coordinates; 4 * H * (D + 2) a split written.
"""

import triton
import triton.language as tl

from ..early.triton_form import wait


@triton.jit
def attend(
    projected,  # float32 [B, stride]: queries [H, D], then the new key [D] and value [D]
    first,  # float32 [B, stride]: `projected` of layer 0, half of whose value is added; any pointer when not RESIDUAL
    keys,  # [slots, capacity, D]
    values,  # [slots, capacity, D]
    slots,  # int64 [B]
    lengths,  # int64 [B]: positions that a row sees, its own included, at most the capacity
    table,  # float32 [H, entries]
    query_coordinates,  # int64 [B]
    key_coordinates,  # int64 [slots, capacity], the new positions' included
    partial,  # float32 [B, SPLITS, H, D]
    statistics,  # float32 [B, SPLITS, H, 2]: largest score, sum of exponentials; -inf and 0 for a split without keys
    stride,
    capacity,
    entries,
    scale,
    H: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,  # D up to a power of two
    BLOCK: tl.constexpr,  # keys at a time
    SPLITS: tl.constexpr,
    APPEND: tl.constexpr,
    BIASED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    b, h, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    d = tl.arange(0, WIDTH)
    slot = tl.load(slots + b)  # no launch of the list writes it
    wait(EARLY)
    length = tl.load(lengths + b).to(tl.int32)
    span = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK) * BLOCK
    begin = split * span
    end = tl.minimum(begin + span, length)
    query = tl.load(projected + b * stride + h * D + d, mask=d < D, other=0.0) * scale
    if APPEND:
        at = b * stride + H * D + d
        key = tl.load(projected + at, mask=d < D, other=0.0)
        value = tl.load(projected + at + D, mask=d < D, other=0.0)
        if RESIDUAL:
            value += 0.5 * tl.load(first + at + D, mask=d < D, other=0.0)
        key, value = key.to(keys.dtype.element_ty), value.to(values.dtype.element_ty)
        if (h == 0) & (split == 0):
            place = (slot * capacity + length - 1) * D + d
            tl.store(keys + place, key, mask=d < D)
            tl.store(values + place, value, mask=d < D)
    if BIASED:
        coordinate = tl.load(query_coordinates + b)

    largest = float("-inf")
    total = 0.0
    out = tl.zeros([WIDTH], tl.float32)
    for start in range(begin, end, BLOCK):
        t = start + tl.arange(0, BLOCK)
        place = (slot * capacity + t[:, None]) * D + d[None, :]
        cached = (t[:, None] < (length - 1 if APPEND else length)) & (t[:, None] < end) & (d[None, :] < D)
        k = tl.load(keys + place, mask=cached, other=0.0)
        v = tl.load(values + place, mask=cached, other=0.0)
        if APPEND:  # not from the cache: another program's store, or thread's, need not be there yet
            k = tl.where(t[:, None] == length - 1, key[None, :], k)
            v = tl.where(t[:, None] == length - 1, value[None, :], v)
        score = tl.sum(query[None, :] * k.to(tl.float32), axis=1)
        if BIASED:
            distance = coordinate - tl.load(key_coordinates + slot * capacity + t, mask=t < end, other=0)
            entry = tl.minimum(tl.maximum(distance, 0), entries - 1)
            score += tl.load(table + h * entries + entry, mask=t < end, other=0.0)
        score = tl.where(t < end, score, float("-inf"))
        above = tl.maximum(largest, tl.max(score, axis=0))
        shrink, weight = tl.exp(largest - above), tl.exp(score - above)
        total = total * shrink + tl.sum(weight, axis=0)
        out = out * shrink + tl.sum(weight[:, None] * v.to(tl.float32), axis=0)
        largest = above

    place = (b * SPLITS + split) * H + h
    tl.store(statistics + place * 2, largest)
    tl.store(statistics + place * 2 + 1, total)
    tl.store(partial + place * D + d, out, mask=d < D)


@triton.jit
def append(
    projected,  # float32 [B, stride], as in `attend`
    first,
    keys,  # [slots, capacity, D]
    values,
    slots,  # int64 [B]
    lengths,  # int64 [B]: the position's number, from 1 on
    stride,
    capacity,
    H: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    RESIDUAL: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    b = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, WIDTH)
    wait(EARLY)
    length = tl.load(lengths + b)
    at = b * stride + H * D + d
    key = tl.load(projected + at, mask=d < D, other=0.0)
    value = tl.load(projected + at + D, mask=d < D, other=0.0)
    if RESIDUAL:
        value += 0.5 * tl.load(first + at + D, mask=d < D, other=0.0)
    place = (tl.load(slots + b) * capacity + length - 1) * D + d
    tl.store(keys + place, key.to(keys.dtype.element_ty), mask=d < D)
    tl.store(values + place, value.to(values.dtype.element_ty), mask=d < D)


@triton.jit
def merge(inputs, sizes: tl.constexpr, state, b, k, there):
    """Element k = h * D + d of row b of the attention's output: float32, of the shape of k; the source of a product.

    inputs: partial and statistics as `attend` leaves them. Some split of every row has keys.
    """
    partial, statistics = inputs
    splits: tl.constexpr = sizes.splits
    largest = tl.full(there.shape, float("-inf"), tl.float32)
    for split in range(splits):
        place = (b * splits + split) * sizes.heads + k // sizes.dim_head
        largest = tl.maximum(largest, tl.load(statistics + place * 2, mask=there, other=0.0))
    total = tl.zeros(there.shape, tl.float32)
    out = tl.zeros(there.shape, tl.float32)
    for split in range(splits):
        place = (b * splits + split) * sizes.heads + k // sizes.dim_head
        weight = tl.exp(tl.load(statistics + place * 2, mask=there, other=0.0) - largest)
        total += weight * tl.load(statistics + place * 2 + 1, mask=there, other=1.0)
        out += weight * tl.load(partial + place * sizes.dim_head + k % sizes.dim_head, mask=there, other=0.0)
    return out / total


@triton.jit
def nothing(inputs, sizes: tl.constexpr, b, rows):
    """State of `merge`: it needs none."""
    return 0
