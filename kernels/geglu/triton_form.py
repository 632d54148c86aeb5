"""The gated feed-forward on a GPU: the second norm, as the source of the product that follows it.

    n[b, k] = (z[b, k] - mean(z[b])) / sqrt(var(z[b]) + 1e-5) * gain[k] (+ shift[k])

In: z float32 [B, inner], which the gated product before it made, and `moments`, which every program of it left of its columns: their mean,
and the sum of squares around it. The first norm belongs to the branch's connection, the gate to that product.

Threads: every program puts the moments of its rows together, then reads z once, while it multiplies. Means first, then squares around
them (Chan, Golub, LeVeque 1979): no cancellation.
Bytes: 4 * inner a row and program, 4 * inner of gains and 8 * programs a row of moments, all from the caches.
"""

import triton
import triton.language as tl


@triton.jit
def measure(inputs, sizes: tl.constexpr, b, rows):
    """State of `read_normed`: mean and inverse deviation of row b. inputs: z, moments float32 [B, programs, 2], gain, shift."""
    _, moments, _, _ = inputs
    part = tl.arange(0, sizes.parts)
    count = tl.maximum(tl.minimum(sizes.dim - part * sizes.columns, sizes.columns), 0)
    at = moments + (b * tl.cdiv(sizes.dim, sizes.columns) + part) * 2
    there = count > tl.where(b < rows, 0, sizes.columns)
    means, squares = tl.load(at, mask=there, other=0.0), tl.load(at + 1, mask=there, other=0.0)
    mean = tl.sum(means * count, axis=0) / sizes.dim
    apart = tl.where(there, means - mean, 0.0)
    variance = tl.sum(squares + count * apart * apart, axis=0) / sizes.dim
    return mean, 1 / tl.sqrt(variance + 1e-5)


@triton.jit
def read_normed(inputs, sizes: tl.constexpr, state, b, k, there):
    """n: float32 of the shape of k, zero where nothing is there."""
    z, _, gain, shift = inputs
    mean, deviation = state
    n = (tl.load(z + b * sizes.dim + k, mask=there, other=0.0) - mean) * deviation
    n *= tl.load(gain + k, mask=k < sizes.dim, other=0.0)
    if sizes.shifted:
        n += tl.load(shift + k, mask=k < sizes.dim, other=0.0)
    return tl.where(there, n, 0.0)
