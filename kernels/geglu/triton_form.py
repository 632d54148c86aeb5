"""The gated feed-forward on a GPU: the second norm, as the source of the product that follows it.

    n[b, k] = (z[b, k] - mean(z[b])) / sqrt(var(z[b]) + 1e-5) * gain[k] (+ shift[k])

In: z float32 [B, inner], which the gated product before it made. The first norm belongs to the branch's connection, the gate to that
product, so that a feed-forward is two launches: the connected, gated product, and the product of this source.

Threads: every program goes over its rows twice for mean and variance, then reads again while it multiplies: an inner width of 2730 in fp32
is 11 kB a row, which stays in the nearest cache. Mean first, then squares of what is left: no cancellation.
Bytes: 4 * inner a row and program, and 4 * inner of gains a program, nearly all from the caches.
"""

import triton
import triton.language as tl


@triton.jit
def measure(inputs, sizes: tl.constexpr, b, rows):
    """State of `read_normed`: mean and inverse deviation, [ROWS, 1] each. inputs: z, gain, shift."""
    z, _, _ = inputs
    ROWS: tl.constexpr = b.shape[0]
    total = tl.zeros([ROWS, sizes.block], tl.float32)
    for start in range(0, sizes.dim, sizes.block):
        k = (start + tl.arange(0, sizes.block))[None, :]
        total += tl.load(z + b * sizes.dim + k, mask=(b < rows) & (k < sizes.dim), other=0.0)
    mean = tl.sum(total, axis=1)[:, None] / sizes.dim
    square = tl.zeros([ROWS, sizes.block], tl.float32)
    for start in range(0, sizes.dim, sizes.block):
        k = (start + tl.arange(0, sizes.block))[None, :]
        there = (b < rows) & (k < sizes.dim)
        centred = tl.where(there, tl.load(z + b * sizes.dim + k, mask=there, other=0.0) - mean, 0.0)
        square += centred * centred
    return mean, 1 / tl.sqrt(tl.sum(square, axis=1)[:, None] / sizes.dim + 1e-5)


@triton.jit
def read_normed(inputs, sizes: tl.constexpr, state, b, k, there):
    """n: float32 of the shape that b and k broadcast to, zero where nothing is there."""
    z, gain, shift = inputs
    mean, deviation = state
    n = (tl.load(z + b * sizes.dim + k, mask=there, other=0.0) - mean) * deviation
    n *= tl.load(gain + k, mask=k < sizes.dim, other=0.0)
    if sizes.shifted:
        n += tl.load(shift + k, mask=k < sizes.dim, other=0.0)
    return tl.where(there, n, 0.0)
