"""The products of a decode step as a GPU kernel, for any source of its input.

    y[b, n] = sum_k x[b, k] w[n, k] (+ bias[n]),        gated: y[b, n] = gelu(v[b, N + n]) v[b, n],  v = x @ w^T

In: weights [N, PITCH] ([2 * N, PITCH] when gated) in fp32, fp16, bf16, or int8 with float32 scales. Out: float32 [B, N].
The input is made where it is read, by two functions that another operation brings, so that a norm and the merging of attention's parts
cost no launch of their own; each program does them again, from the caches:
    prepare(inputs, sizes, b, rows) -> state      what a row needs once, a norm's statistics for example; b: the row, a scalar
    read(inputs, sizes, state, b, k, there)       x[b, k], float32 [BLOCK], zero where not there; k: int32 [BLOCK], there: bool [BLOCK]
`inputs` is the tuple of pointers and numbers of the launch, `sizes` what is known of it when it is compiled. geglu brings `measure` and
`read_normed`, attention `nothing` and `merge`, hyper_connection `choose` and `read_branch`. Gated it leaves of its columns what the next
norm needs.

Threads: program (i, j) has COLUMNS outputs of ROWS rows. All its weights are asked for at once, before the kernel waits for those that make
its input, and stay in registers, as they are stored, for one row after the other. Every thread adds up its own elements, and only the end
sums across threads: at 1 to 8 rows that is not worth the tensor cores, the reading of the weights is what takes time. Tiles have two
dimensions, [COLUMNS, BLOCK], so that weights are multiplied in the layout in which they are read.
Bytes: N * PITCH of the weights' type, once for each ROWS rows (from the second on out of the nearest cache); with int8 4 / GROUP more.
"""

import triton
import triton.language as tl

from ..early.triton_form import wait


@triton.jit
def product(
    prepare: tl.constexpr,
    read: tl.constexpr,
    inputs,  # of `prepare` and `read`
    sizes: tl.constexpr,  # of theirs, known when the kernel is compiled
    weights,
    scales,  # float32 [N, ceil(K / GROUP)] of int8 weights ([2 * N, ...] when gated); any pointer without GROUP
    bias,  # float32 [N]; any pointer when not BIASED
    out,  # float32 [rows, N]
    moments,  # float32 [rows, programs, 2] when GATED: mean of a program's columns, sum of squares around it; else any pointer
    rows,
    N,
    K: tl.constexpr,
    PITCH: tl.constexpr,  # weights from one output to the next, K or more, best a multiple of 16; beyond K finite numbers
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,  # K up to a power of two
    GROUP: tl.constexpr,  # weights that share a scale; 0 for weights that have none
    GATED: tl.constexpr,
    BIASED: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    n, k = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, BLOCK)
    w = _tile(weights, n, k, N, PITCH)
    if GATED:
        w_gate = _tile(weights + N * PITCH, n, k, N, PITCH)
    if GROUP:
        w = _scaled(w, scales, n, k, N, K, GROUP)
        if GATED:
            w_gate = _scaled(w_gate, scales + N * tl.cdiv(K, GROUP), n, k, N, K, GROUP)
    if BIASED:
        added = tl.load(bias + n, mask=n < N, other=0.0)
    wait(EARLY)
    xs = ()  # of all rows, so that none waits for the sums of the one before it
    for row in tl.static_range(ROWS):
        b = tl.program_id(1) * ROWS + row
        xs += (read(inputs, sizes, prepare(inputs, sizes, b, rows), b, k, k < tl.where(b < rows, K, 0)),)
    for row in tl.static_range(ROWS):
        b = tl.program_id(1) * ROWS + row
        y = tl.sum(xs[row][None, :] * w.to(tl.float32), axis=1)
        if GATED:
            g = tl.sum(xs[row][None, :] * w_gate.to(tl.float32), axis=1)
            y *= 0.5 * g * (1 + tl.erf(g * 0.7071067811865476))
            mean = tl.sum(tl.where(n < N, y, 0.0), axis=0) / tl.minimum(N - tl.program_id(0) * COLUMNS, COLUMNS)
            apart = tl.where(n < N, y - mean, 0.0)
            at = moments + (b * tl.num_programs(0) + tl.program_id(0)) * 2
            tl.store(at, mean, mask=b < rows)
            tl.store(at + 1, tl.sum(apart * apart, axis=0), mask=b < rows)
        if BIASED:
            y += added
        tl.store(out + b * N + n, y, mask=n < tl.where(b < rows, N, 0))


@triton.jit
def _tile(weights, n, k, N, PITCH: tl.constexpr):
    """[COLUMNS, BLOCK] as it is stored."""
    return tl.load(weights + n[:, None].to(tl.int64) * PITCH + k[None, :], mask=(n[:, None] < N) & (k[None, :] < PITCH), other=0)


@triton.jit
def _scaled(w, scales, n, k, N, K: tl.constexpr, GROUP: tl.constexpr):
    """The tile in float32."""
    there = (n[:, None] < N) & (k[None, :] < K)
    return w.to(tl.float32) * tl.load(scales + n[:, None] * tl.cdiv(K, GROUP) + k[None, :] // GROUP, mask=there, other=0.0)
