"""Hyper-connections on a GPU: the depth of the branch before, the width of this one and its LayerNorm, as the source of a product.

    x[s] = x'[s] + beta[s] y                                                              depth; one stream: beta = 1
    m[s, j] = tanh(x[s] . D[j] sqrt(dim) / |x[s]|) scale[j] + static[s, j]                j = 0: branch, 1..S: streams, S + 1: beta
    u = sum_s m[s, 0] x[s],    x''[j] = sum_s m[s, 1 + j] x[s],    beta'[s] = m[s, S + 1]
    n = (u - mean(u)) / sqrt(var(u) + 1e-5) * gain (+ shift)

In: streams x', beta, the branch's output y. Out: `read` gives n, and u to the programs from `raw` on: keys and values come from what is not
normed. x'' and beta' are written to other arrays than are read, since every program of the launch reads. Without mixing u is the sum
of the streams: a model with one stream, and what goes to the output projections.

Threads: every program works out its rows' mixing into u. What the next branch needs is shared out: program i of a row has the
streams i, i + programs, ... and beta as one more.
Bytes: 4 * dim * (S + 1) a row for x' and y, 4 * dim of D for each column of m a program works out; 4 * dim * S a row written once.
"""

import triton
import triton.language as tl

# inputs, in this order: streams float32 [B, S, dim]; beta float32 [B, S]; y float32 [B, dim]; D float32 [S + 2, dim], the norm's gain
# multiplied in; scale float32 [S + 2]; static float32 [S, S + 2]; gain, shift float32 [dim]; streams and beta to write, like those read;
# raw: the first program that reads u.


@triton.jit
def connect(inputs, sizes: tl.constexpr, b, rows):
    """State of `read_branch`: m[:, 0] as [ROWS, padded, 1], mean and inverse deviation of u as [ROWS, 1], rows."""
    _, _, _, _, _, _, _, _, streams_out, beta_out, _ = inputs
    ROWS: tl.constexpr = b.shape[0]
    s = tl.arange(0, sizes.padded)[None, :]
    branch = tl.full([ROWS, sizes.padded, 1], 1.0, tl.float32)
    if sizes.mixed:
        branch = _mixing(inputs, sizes, b, rows, 0)[:, :, None]
    if sizes.keep:
        for part in range(tl.program_id(0), sizes.streams + 1, tl.num_programs(0)):
            if part < sizes.streams:
                if sizes.mixed:
                    weights = _mixing(inputs, sizes, b, rows, part + 1)[:, :, None]
                else:
                    weights = tl.where(s == part, 1.0, tl.zeros([ROWS, sizes.padded], tl.float32))[:, :, None]
                for start in range(0, sizes.dim, sizes.block):
                    k = (start + tl.arange(0, sizes.block))[None, :]
                    x = tl.sum(weights * _streams(inputs, sizes, b, k, rows), axis=1)
                    tl.store(streams_out + (b * sizes.streams + part) * sizes.dim + k, x, mask=(b < rows) & (k < sizes.dim))
            elif sizes.mixed:
                depth = _mixing(inputs, sizes, b, rows, sizes.streams + 1)
                tl.store(beta_out + b * sizes.streams + s, depth, mask=(b < rows) & (s < sizes.streams))
    total = tl.zeros([ROWS, sizes.block], tl.float32)
    for start in range(0, sizes.dim, sizes.block):
        k = (start + tl.arange(0, sizes.block))[None, :]
        total += tl.sum(branch * _streams(inputs, sizes, b, k, rows), axis=1)
    mean = tl.sum(total, axis=1)[:, None] / sizes.dim
    square = tl.zeros([ROWS, sizes.block], tl.float32)
    for start in range(0, sizes.dim, sizes.block):
        k = (start + tl.arange(0, sizes.block))[None, :]
        centred = tl.where(k < sizes.dim, tl.sum(branch * _streams(inputs, sizes, b, k, rows), axis=1) - mean, 0.0)
        square += centred * centred
    return branch, mean, 1 / tl.sqrt(tl.sum(square, axis=1)[:, None] / sizes.dim + 1e-5), rows


@triton.jit
def read_branch(inputs, sizes: tl.constexpr, state, b, k, there):
    """n, or u to the programs from `raw` on: float32 [ROWS, k]."""
    _, _, _, _, _, _, gain, shift, _, _, raw = inputs
    branch, mean, deviation, rows = state
    u = tl.sum(branch * _streams(inputs, sizes, b, k, rows), axis=1)
    n = (u - mean) * deviation * tl.load(gain + k, mask=k < sizes.dim, other=0.0)
    if sizes.shifted:
        n += tl.load(shift + k, mask=k < sizes.dim, other=0.0)
    return tl.where(there, tl.where(tl.program_id(0) >= raw, u, n), 0.0)


@triton.jit
def _streams(inputs, sizes: tl.constexpr, b, k, rows):
    """x: float32 [ROWS, padded, k], zero where there is none."""
    streams, beta, y, _, _, _, _, _, _, _, _ = inputs
    s = tl.arange(0, sizes.padded)[None, :]
    there, ours = (b < rows) & (k < sizes.dim), (b < rows) & (s < sizes.streams)
    at = ((b * sizes.streams + s) * sizes.dim)[:, :, None] + k[:, None, :]
    x = tl.load(streams + at, mask=ours[:, :, None] & there[:, None, :], other=0.0)
    depth = tl.load(beta + b * sizes.streams + s, mask=ours, other=0.0)
    return x + depth[:, :, None] * tl.load(y + b * sizes.dim + k, mask=there, other=0.0)[:, None, :]


@triton.jit
def _mixing(inputs, sizes: tl.constexpr, b, rows, j):
    """m[:, j]: float32 [ROWS, padded], zero where there is no stream."""
    _, _, _, dynamic, scale, static, _, _, _, _, _ = inputs
    ROWS: tl.constexpr = b.shape[0]
    s = tl.arange(0, sizes.padded)[None, :]
    square = tl.zeros([ROWS, sizes.padded, sizes.block], tl.float32)
    product = tl.zeros([ROWS, sizes.padded, sizes.block], tl.float32)
    for start in range(0, sizes.dim, sizes.block):
        k = (start + tl.arange(0, sizes.block))[None, :]
        x = _streams(inputs, sizes, b, k, rows)
        square += x * x
        product += x * tl.load(dynamic + j * sizes.dim + k, mask=k < sizes.dim, other=0.0)[:, None, :]
    norm = tl.maximum(tl.sqrt(tl.sum(square, axis=2)), 1e-12)
    mixed = tl.sum(product, axis=2) * sizes.dim**0.5 / norm
    mixed = 2 / (1 + tl.exp(-2 * mixed)) - 1  # tanh, which Triton's language does not have
    fixed = tl.load(static + s * (sizes.streams + 2) + j, mask=s < sizes.streams, other=0.0)
    return tl.where(s < sizes.streams, mixed * tl.load(scale + j) + fixed, 0.0)
