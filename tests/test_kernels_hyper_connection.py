"""The hyper-connection's kernel, and what a product reads of it, in Triton's interpreter, against the reference of the ONNX form's tests.

All of it is fp32, whatever the products around it are: values are of order 10, sums have at most 52 terms, and 2e-5 is a relative error of
2e-6, the tolerance of the ONNX form.
"""

from __future__ import annotations

import numpy as np
import pytest
import triton
import triton.language as tl
from support.interpreted import empty, floats, launch

from musiclm_deploy.kernels.geglu.reference import layer_norm
from musiclm_deploy.kernels.hyper_connection.constants import Mixing
from musiclm_deploy.kernels.hyper_connection.reference import HyperConnection, apply
from musiclm_deploy.kernels.hyper_connection.triton_form import choose, connect, read_branch

FP32 = 2e-5
PROGRAMS, RAW = 3, 2


@triton.jit
def _probe(inputs, out, rows, dim: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """What each program reads: out [programs, rows, dim]."""
    b = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    k = tl.arange(0, WIDTH)[None, :]
    there = (b < rows) & (k < dim)
    x = read_branch(inputs, dim, choose(inputs, dim, b, rows), b, k, there)
    tl.store(out + (tl.program_id(0) * rows + b) * dim + k, x, mask=there)


def parameters(streams: int, dim: int) -> HyperConnection:
    rng = np.random.default_rng(streams)
    return HyperConnection(
        gamma=rng.standard_normal(dim) * 0.3,
        dynamic_alpha=rng.standard_normal((dim, streams + 1)) * 0.3,
        alpha_scale=0.9,
        static_alpha=rng.standard_normal((streams, streams + 1)),
        dynamic_beta=rng.standard_normal(dim) * 0.3,
        beta_scale=-0.6,
        static_beta=rng.standard_normal(streams),
    )


def run(
    p: HyperConnection | None, x: np.ndarray, beta: np.ndarray, y: np.ndarray, gain: np.ndarray, shift: np.ndarray | None, keep: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [B, S, dim], beta [B, S], y [B, dim] -> what programs read [PROGRAMS, B, dim], x'' and beta'; p: None without mixing."""
    B, S, dim = x.shape
    weights = [np.zeros(1)] * 3
    if p is not None:
        dynamic = np.concatenate([p.dynamic_alpha, p.dynamic_beta[:, None]], axis=1) * (p.gamma + 1)[:, None]
        scale = np.append(np.full(S + 1, p.alpha_scale), p.beta_scale)
        weights = [dynamic.T, scale, np.concatenate([p.static_alpha, p.static_beta[:, None]], axis=1)]
    arrays = (x, beta, y, *weights, gain, gain if shift is None else shift)
    streams_out, beta_out, out = empty(B, S, dim), empty(B, S), empty(PROGRAMS, B, dim)
    branch, width = empty(2, B, dim), triton.next_power_of_2(dim)
    sizes = Mixing(dim, width, S, triton.next_power_of_2(S), p is not None, shift is not None)
    columns = 1 + (S + (p is not None)) * keep
    launch(connect, (B, columns), *(floats(a) for a in arrays), streams_out, beta_out, branch, B, sizes)
    launch(_probe, (PROGRAMS, -(-B // 2)), (branch, RAW), out, B, dim, 2, width)
    return out.numpy(), streams_out.numpy(), beta_out.numpy()


def data(B: int, S: int, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(B * S)
    x, beta = rng.standard_normal((B, S, dim)) * 3, rng.standard_normal((B, S))
    return x.astype(np.float32), beta.astype(np.float32), *rng.standard_normal((3, max(B, 1), dim)).astype(np.float32)


@pytest.mark.parametrize(("B", "S", "dim"), [(1, 4, 52), (3, 2, 17), (2, 3, 16), (5, 4, 8)])
def test_a_branch_between_two_launches_is_the_reference(B: int, S: int, dim: int) -> None:
    """Fault: depth of the wrong branch or stream, alpha by the wrong axis, beta of another row, a missing gain or root of dim, a norm over
    the padding, a stream that no program or the wrong one writes, raw values to programs that need normed ones."""
    x, beta, y, gains, shifts = data(B, S, dim)
    gain, shift = gains[0], shifts[0]
    p = parameters(S, dim)
    before = x + beta[..., None].astype(np.float64) * y[:, None]
    inputs = []

    def branch(u: np.ndarray) -> np.ndarray:
        inputs.append(u)
        return np.tanh(3 * u)

    after = apply(p, before, branch)
    read, streams, depth = run(p, x, beta, y, gain, shift)
    normed = layer_norm(inputs[0], gain, shift)
    for program in range(PROGRAMS):
        np.testing.assert_allclose(read[program], inputs[0] if program >= RAW else normed, rtol=0, atol=FP32, err_msg=str(program))
    # the next launch adds the branch: without mixing it hands the streams on as they are, and reads their sum
    read, handed_on, _ = run(None, streams, depth, branch(inputs[0]).astype(np.float32), gain, None)
    np.testing.assert_allclose(handed_on, after, rtol=0, atol=FP32)
    np.testing.assert_allclose(read[RAW], after.sum(axis=1), rtol=0, atol=S * FP32)
    np.testing.assert_allclose(read[0], layer_norm(after.sum(axis=1), gain, np.zeros(dim)), rtol=0, atol=FP32)


def test_one_stream_is_the_plain_residual() -> None:
    """Fault: a model without hyper-connections loses its skip connection."""
    x, _, y, gains, _ = data(3, 1, 20)
    read, streams, beta = run(None, x, np.ones((3, 1)), y, gains[0], None)
    np.testing.assert_allclose(streams[:, 0], x[:, 0] + y, rtol=0, atol=1e-6)
    np.testing.assert_allclose(read[0], layer_norm((x[:, 0] + y).astype(np.float64), gains[0], np.zeros(20)), rtol=0, atol=FP32)
    assert np.isnan(beta).all()


def test_the_last_reader_writes_nothing() -> None:
    """Fault: the output projection, which has nothing after it, writes streams that are not there."""
    x, beta, y, gains, _ = data(2, 4, 20)
    _, streams, depth = run(None, x, beta, y, gains[0], None, keep=False)
    assert np.isnan(streams).all() and np.isnan(depth).all()


def test_a_zero_vector_stays_finite() -> None:
    """Fault: the norm of a padding row, which is all zeros, divides by zero and its NaN spreads."""
    x, beta, y, gains, _ = data(2, 4, 24)
    x[0], y[0] = 0, 0
    x[1, 2], beta[1, 2] = 0, 0
    p = parameters(4, 24)
    read, streams, _ = run(p, x, beta, y, gains[0], None)
    before = x + beta[..., None] * y[:, None]
    np.testing.assert_allclose(streams, apply(p, before, np.zeros_like), rtol=0, atol=FP32)
    assert not read[:, 0].any() and np.isfinite(read).all()
