"""A whole feed-forward of three launches in Triton's interpreter, against the reference that its ONNX form is tested with.

The launches are the hyper-connection's, the gated product, and the product with this operation's source. fp32 has the
tolerance of the ONNX form, 1e-5: the inner norm brings everything to order 1. With weights of 16 bits no more is lost than by a plain
version in that type.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
from support.interpreted import empty, floats, launch

from musiclm_deploy.kernels.geglu.constants import Inner
from musiclm_deploy.kernels.geglu.reference import FeedForward, feed_forward
from musiclm_deploy.kernels.geglu.triton_form import measure, read_normed
from musiclm_deploy.kernels.hyper_connection.constants import Mixing
from musiclm_deploy.kernels.hyper_connection.triton_form import choose, connect, read_branch
from musiclm_deploy.kernels.product.triton_form import product

FP32 = 1e-5
DIM = 28
ROWS, COLUMNS = 2, 8


def parameters(inner: int, shifted: bool) -> FeedForward:
    rng = np.random.default_rng(inner)
    norm, norm_bias = rng.standard_normal((2, DIM)) * 0.5
    inner_norm, inner_norm_bias = rng.standard_normal((2, inner)) * 0.5
    w_in, w_out = rng.standard_normal((DIM, 2 * inner)) / DIM**0.5, rng.standard_normal((inner, DIM)) / inner**0.5
    return FeedForward(norm, norm_bias * shifted, w_in, inner_norm, inner_norm_bias * shifted, w_out)


def kernels(p: FeedForward, x: np.ndarray, dtype: torch.dtype, shifted: bool) -> np.ndarray:
    """x [B, DIM] -> float32 [B, DIM]"""
    B, inner = len(x), len(p.w_out)
    unused, z, y, branch = torch.zeros(1), empty(B, inner), empty(B, DIM), empty(2, B, DIM)
    plain = (floats(x), torch.ones(B), torch.zeros(B, DIM), unused, unused, unused)
    mixing = Mixing(DIM, triton.next_power_of_2(DIM), 1, 1, False, shifted)
    launch(connect, (B, 1), *plain, floats(p.norm), floats(p.norm_bias), unused, unused, branch, B, mixing)
    rows, programs = -(-B // ROWS), -(-inner // COLUMNS)
    moments = empty(B, programs, 2)
    launch(
        product,
        (programs, rows),
        *(choose, read_branch, (branch, 1 << 30), DIM, floats(p.w_in.T, dtype), unused, unused, z, moments),
        *(B, inner, DIM, DIM, ROWS, COLUMNS, triton.next_power_of_2(DIM), 0, True, False),
    )
    normed = (z, moments, floats(p.inner_norm), floats(p.inner_norm_bias))
    sizes = Inner(inner, COLUMNS, triton.next_power_of_2(programs), shifted)
    launch(
        product,
        (-(-DIM // COLUMNS), rows),
        *(measure, read_normed, normed, sizes, floats(p.w_out.T, dtype), unused, unused, y, unused),
        *(B, DIM, inner, inner, ROWS, COLUMNS, triton.next_power_of_2(inner), 0, False, False),
    )
    return y.numpy()


def plain(p: FeedForward, x: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """By torch, all of it in `dtype`."""
    w = {name: torch.from_numpy(array).to(dtype) for name, array in vars(p).items()}
    normed = torch.nn.functional.layer_norm(torch.from_numpy(x).to(dtype), (DIM,), w["norm"], w["norm_bias"])
    value, gate = (normed @ w["w_in"]).chunk(2, dim=-1)
    inner = torch.nn.functional.gelu(gate) * value
    normed = torch.nn.functional.layer_norm(inner, inner.shape[-1:], w["inner_norm"], w["inner_norm_bias"])
    return (normed @ w["w_out"]).double().numpy()


@pytest.mark.parametrize(("B", "inner", "shifted"), [(1, 74, True), (3, 33, False)])
def test_three_launches_are_the_reference(B: int, inner: int, shifted: bool) -> None:
    """Fault: value and gate are swapped, gelu is approximated, a norm is skipped or goes over the padding, a bias that is not zero is
    dropped."""
    x = (np.random.default_rng(1).standard_normal((B, DIM)) * 3).astype(np.float32)
    p = parameters(inner, shifted)
    exact = feed_forward(p, x)
    np.testing.assert_allclose(kernels(p, x, torch.float32, shifted), exact, rtol=0, atol=FP32)
    for dtype in (torch.float16, torch.bfloat16):
        out = kernels(p, x, dtype, shifted)
        assert 1e-5 < np.abs(out - exact).max() <= np.abs(plain(p, x, dtype) - exact).max()


def test_a_mean_far_from_zero() -> None:
    """Fault: the variance as a difference of large squares: at a mean of 300 deviations fp32 has no digit of it left."""
    p = parameters(40, False)
    z = (np.random.default_rng(2).standard_normal((3, 40)) + 300).astype(np.float32)
    y, unused = empty(3, DIM), torch.zeros(1)
    parts = z.astype(np.float64).reshape(3, 5, COLUMNS)
    moments = np.stack([parts.mean(axis=2), parts.var(axis=2) * COLUMNS], axis=2)
    inputs = (torch.from_numpy(z), floats(moments), torch.ones(40), unused)
    launch(
        product,
        (-(-DIM // COLUMNS), 2),
        *(measure, read_normed, inputs, Inner(40, COLUMNS, 8, False), floats(p.w_out.T), unused, unused, y, unused),
        *(3, DIM, 40, 40, ROWS, COLUMNS, 64, 0, False, False),
        within=FP32 * 10,  # share of the largest output, 2.5; a mean of 300 has 300 times the roundings of a mean of 1
    )
    centred = z.astype(np.float64) - z.astype(np.float64).mean(axis=1, keepdims=True)
    expected = centred / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + 1e-5) @ p.w_out
    np.testing.assert_allclose(y.numpy(), expected, rtol=0, atol=300 * FP32 / 10)
