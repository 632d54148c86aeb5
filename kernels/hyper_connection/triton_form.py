"""Hyper-connections on a GPU: the depth of the branch before, the width of this one and its LayerNorm.

    x[s] = x'[s] + beta[s] y                                                              depth; one stream: beta = 1
    m[s, j] = tanh(x[s] . D[j] sqrt(dim) / |x[s]|) scale[j] + static[s, j]                j = 0: branch, 1..S: streams, S + 1: beta
    u = sum_s m[s, 0] x[s],    x''[j] = sum_s m[s, 1 + j] x[s],    beta'[s] = m[s, S + 1]
    n = (u - mean(u)) / sqrt(var(u) + 1e-5) * gain (+ shift)

In: streams x', beta, the branch's output y. Out: n and u of every row, of which the product that follows reads n, or u where it makes keys
and values, which come from what is not normed; x'' and beta' to other arrays than are read, since every program of the launch reads.
Without mixing u is the sum of the streams: a model with one stream, and what goes to the output projections.

Threads: program (b, j) has column j of row b's mixing, and all of the row's streams in registers, read once.
Bytes: 4 * dim * (S + 1) a program for x' and y, from the second level of cache, 4 * dim of D; 4 * dim * (S + 2) a row written once.
"""

import triton
import triton.language as tl

from ..early.triton_form import wait


@triton.jit
def connect(
    streams,  # float32 [B, S, dim]
    beta,  # float32 [B, S]
    y,  # float32 [B, dim]
    dynamic,  # float32 [S + 2, dim], the norm's gain multiplied in; any pointer without mixing, like the two that follow
    scale,  # float32 [S + 2]
    static,  # float32 [S, S + 2]
    gain,  # float32 [dim]
    shift,  # float32 [dim]; any pointer when not shifted
    streams_out,
    beta_out,
    branch,  # float32 [2, B, dim]: n, then u
    rows,
    sizes: tl.constexpr,  # a Mixing
    EARLY: tl.constexpr = False,
):
    b, j = tl.program_id(0), tl.program_id(1)
    s, k = tl.arange(0, sizes.padded), tl.arange(0, sizes.width)
    if sizes.mixed:
        column = tl.load(dynamic + j * sizes.dim + k, mask=k < sizes.dim, other=0.0)
        factor = tl.load(scale + j)
        fixed = tl.load(static + s * (sizes.streams + 2) + j, mask=s < sizes.streams, other=0.0)
    g = tl.load(gain + k, mask=k < sizes.dim, other=0.0)
    if sizes.shifted:
        added = tl.load(shift + k, mask=k < sizes.dim, other=0.0)
    wait(EARLY)
    there = (s[:, None] < sizes.streams) & (k[None, :] < sizes.dim)
    x = tl.load(streams + (b * sizes.streams + s[:, None]) * sizes.dim + k[None, :], mask=there, other=0.0)
    depth = tl.load(beta + b * sizes.streams + s, mask=s < sizes.streams, other=0.0)
    x += depth[:, None] * tl.load(y + b * sizes.dim + k, mask=k < sizes.dim, other=0.0)[None, :]
    if sizes.mixed:
        norm = tl.maximum(tl.sqrt(tl.sum(x * x, axis=1)), 1e-12)
        mixed = tl.sum(x * column[None, :], axis=1) * sizes.dim**0.5 / norm
        mixed = 2 / (1 + tl.exp(-2 * mixed)) - 1  # tanh, which Triton's language does not have
        m = tl.where(s < sizes.streams, mixed * factor + fixed, 0.0)
    else:
        m = tl.where((j == 0) | (s == j - 1), 1.0, 0.0)
    if j == sizes.streams + 1:
        tl.store(beta_out + b * sizes.streams + s, m, mask=s < sizes.streams)
    else:
        u = tl.sum(m[:, None] * x, axis=0)
        if j > 0:
            tl.store(streams_out + (b * sizes.streams + j - 1) * sizes.dim + k, u, mask=k < sizes.dim)
        else:
            mean = tl.sum(u, axis=0) / sizes.dim
            centred = tl.where(k < sizes.dim, u - mean, 0.0)
            n = centred * (1 / tl.sqrt(tl.sum(centred * centred, axis=0) / sizes.dim + 1e-5)) * g
            if sizes.shifted:
                n += added
            tl.store(branch + b * sizes.dim + k, n, mask=k < sizes.dim)
            tl.store(branch + (rows + b) * sizes.dim + k, u, mask=k < sizes.dim)


@triton.jit
def choose(inputs, sizes: tl.constexpr, b, rows):
    """State of `read_branch`: where the program's half of `branch` begins. inputs: branch, and the first program that reads u."""
    _, raw = inputs
    return tl.where(tl.program_id(0) >= raw, rows * sizes, 0)


@triton.jit
def read_branch(inputs, sizes: tl.constexpr, state, b, k, there):
    """n, or u to the programs from `raw` on: float32 of the shape of k, the source of a product. sizes: dim."""
    branch, _ = inputs
    return tl.load(branch + state + b * sizes + k, mask=there, other=0.0)
