"""The products of a decode step as a GPU kernel, for any source of its input.

    y[b, n] = sum_k x[b, k] w[n, k] (+ bias[n]),        gated: y[b, n] = gelu(v[b, N + n]) v[b, n],  v = x @ w^T

In: weights [N, PITCH] ([2 * N, PITCH] when gated) in fp32, fp16, bf16, or int8 with float32 scales. Out: float32 [B, N].
The input is made where it is read, by two functions that another operation brings: `prepare(inputs, sizes, b, rows)` does what every row
needs once (a norm's statistics), `read(inputs, sizes, state, b, k, there)` gives x[b, k]. So a norm and the merging of attention's parts
cost no launch of their own; each program does them again, from the caches. Gated it leaves of its columns what the next norm needs.

Threads: program (i, j) has COLUMNS outputs of ROWS rows. Every thread adds up its own elements of a tile [COLUMNS, BLOCK] for every row,
and only the end sums across threads: at 1 to 8 rows that is not worth the tensor cores, the reading of the weights is what takes time.
A tile is asked for before the input of the one before is computed, the first before the kernel waits for those that make its input.
Bytes: N * PITCH of the weights' type, once for each ROWS rows (from the second on out of the nearest cache); with int8 4 / GROUP more.
"""

import triton
import triton.language as tl

from ..early import wait


@triton.jit
def product(
    prepare: tl.constexpr,
    read: tl.constexpr,
    inputs,  # of `prepare` and `read`
    sizes: tl.constexpr,  # of theirs, known when the kernel is compiled
    weights,
    scales,  # float32 [N, ceil(K / GROUP)] of int8 weights; any pointer without GROUP
    bias,  # float32 [N]; any pointer when not BIASED
    out,  # float32 [rows, N]
    moments,  # float32 [rows, programs, 2] when GATED: mean of a program's columns, sum of squares around it; else any pointer
    rows,
    N,
    K: tl.constexpr,
    PITCH: tl.constexpr,  # weights from one output to the next, K or more, best a multiple of 16; beyond K finite numbers
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,  # weights that share a scale; 0 for weights that have none
    GATED: tl.constexpr,
    BIASED: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    b = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    w = _tile(weights, n, N, 0, PITCH, BLOCK)
    if GATED:
        w_gate = _tile(weights + N * PITCH, n, N, 0, PITCH, BLOCK)
        gate = tl.zeros([ROWS, COLUMNS, BLOCK], tl.float32)
    total = tl.zeros([ROWS, COLUMNS, BLOCK], tl.float32)
    wait(EARLY)
    state = prepare(inputs, sizes, b[:, None], rows)
    for start in range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK)
        if BLOCK < K:
            following = _tile(weights, n, N, start + BLOCK, PITCH, BLOCK)
        x = read(inputs, sizes, state, b[:, None], k[None, :], (b[:, None] < rows) & (k[None, :] < K))[:, None, :]
        total += x * _scaled(w, scales, n, N, k, K, GROUP)[None, :, :]
        if GATED:
            if BLOCK < K:
                gate_following = _tile(weights + N * PITCH, n, N, start + BLOCK, PITCH, BLOCK)
            gate += x * _scaled(w_gate, scales + N * tl.cdiv(K, GROUP) if GROUP else scales, n, N, k, K, GROUP)[None, :, :]
            if BLOCK < K:
                w_gate = gate_following
        if BLOCK < K:
            w = following
    y = tl.sum(total, axis=2)
    if GATED:
        g = tl.sum(gate, axis=2)
        y *= 0.5 * g * (1 + tl.erf(g * 0.7071067811865476))
        there = n[None, :] < N
        mean = tl.sum(tl.where(there, y, 0.0), axis=1) / tl.minimum(N - tl.program_id(0) * COLUMNS, COLUMNS)
        apart = tl.where(there, y - mean[:, None], 0.0)
        at = moments + (b * tl.num_programs(0) + tl.program_id(0)) * 2
        tl.store(at, mean, mask=b < rows)
        tl.store(at + 1, tl.sum(apart * apart, axis=1), mask=b < rows)
    if BIASED:
        y += tl.load(bias + n, mask=n < N, other=0.0)[None, :]
    tl.store(out + b[:, None] * N + n[None, :], y, mask=(b[:, None] < rows) & (n[None, :] < N))


@triton.jit
def _tile(weights, n, N, start, PITCH: tl.constexpr, BLOCK: tl.constexpr):
    """[COLUMNS, BLOCK] as it is stored."""
    k = start + tl.arange(0, BLOCK)
    return tl.load(weights + n[:, None].to(tl.int64) * PITCH + k[None, :], mask=(n[:, None] < N) & (k[None, :] < PITCH), other=0)


@triton.jit
def _scaled(w, scales, n, N, k, K: tl.constexpr, GROUP: tl.constexpr):
    """The tile in float32."""
    w = w.to(tl.float32)
    if GROUP:
        there = (n[:, None] < N) & (k[None, :] < K)
        w *= tl.load(scales + n[:, None] * tl.cdiv(K, GROUP) + k[None, :] // GROUP, mask=there, other=0.0)
    return w
