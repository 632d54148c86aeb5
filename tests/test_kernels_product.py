"""The product kernel in Triton's interpreter, against float64.

Given weights as they are stored it computes in fp32: sums of at most 300 terms of order 1, whose roundings stay below 1e-6 of the root of
their number times the largest; a lost or doubled weight is of order 1. Given weights that the type cannot hold it loses no more than a
plain product in that type does: at most half as much again, some cases having five outputs, and in fp32, where only the order of the sum
differs, three times.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
import triton
from support.interpreted import empty, launch

from musiclm_deploy.kernels.hyper_connection.triton_form import choose, read_branch
from musiclm_deploy.kernels.product import reference
from musiclm_deploy.kernels.product.triton_form import product


class Case(NamedTuple):
    B: int
    N: int
    K: int
    pitch: int | None
    tile: tuple[int, int]  # rows and columns of a program


CASES = [
    Case(1, 5, 32, None, (1, 4)),
    Case(2, 3, 7, 8, (2, 4)),
    Case(3, 9, 70, 72, (4, 2)),
    Case(8, 16, 300, 304, (8, 8)),
    Case(9, 4, 33, None, (4, 4)),
]
DTYPES = {torch.float32: 3.0, torch.float16: 1.5, torch.bfloat16: 1.5}  # of the plain version's error


def run(
    x: np.ndarray,
    weights: torch.Tensor,
    *,
    scales: np.ndarray | None = None,
    group: int = 0,
    bias: np.ndarray | None = None,
    gated: bool = False,
    tile: tuple[int, int] = (2, 4),
    pitch: int | None = None,
) -> np.ndarray:
    """x float32 [B, K], weights [N, K] -> float32 [B, N]; tile: rows and columns of a program."""
    (B, K), N = x.shape, len(weights) // (1 + gated)
    padded = torch.full((len(weights), pitch or K), 99).to(weights.dtype)
    padded[:, :K] = weights
    out, moments = empty(B, N), empty(B, -(-N // tile[1]), 2)
    rest = [torch.from_numpy(np.zeros(1, np.float32) if a is None else a) for a in (scales, bias)]
    grid = -(-N // tile[1]), -(-B // tile[0])
    launch(
        product,
        grid,
        *(
            choose,
            read_branch,
            (torch.stack([torch.from_numpy(x), empty(B, K)]), 1 << 30),
            K,
            padded,
            *rest,
            out,
            moments,
            B,
            N,
            K,
            pitch or K,
            *tile,
            triton.next_power_of_2(K),
            group,
            gated,
            bias is not None,
        ),
    )
    return out.numpy()


def data(B: int, N: int, K: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(B * N * K)
    return rng.standard_normal((B, K)).astype(np.float32), (rng.standard_normal((N, K)) / K**0.5).astype(np.float32)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_products_of_odd_sizes(case: Case, dtype: torch.dtype, gated: bool) -> None:
    """Fault: a tile that is not full reads or writes beside it, a row or a tile is taken twice or lost, values and gates are swapped, the
    gate is not gelu by the error function, the bias goes before the gate, sums in less than fp32."""
    B, N, K, pitch, tile = case
    x, w = data(B, N * (1 + gated), K)
    bias = np.random.default_rng(0).standard_normal(N).astype(np.float32)
    stored = torch.from_numpy(w).to(dtype)
    out = run(x, stored, bias=bias, gated=gated, tile=tile, pitch=pitch)
    held = reference.product(x, stored.float().numpy(), bias, gated)
    np.testing.assert_allclose(out, held, rtol=0, atol=1e-6 * K**0.5 * np.abs(held).max())
    exact = reference.product(x, w, None, gated)
    plain = torch.from_numpy(x).to(dtype) @ stored.T
    if gated:
        plain = torch.nn.functional.gelu(plain[:, N:]) * plain[:, :N]
    lost = np.abs(plain.double().numpy() - exact).max()
    assert np.abs(out - bias - exact).max() <= DTYPES[dtype] * lost + 5e-7 * np.abs(held).max()


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("K", "group"), [(64, 32), (70, 32), (33, 16), (40, 64)])
def test_eight_bits(K: int, group: int, gated: bool) -> None:
    """Fault: a scale of another group or output, at a group's edge or in the last group, which is not full; a weight of -127 wraps."""
    x, w = data(3, 6 * (1 + gated), K)
    w *= np.random.default_rng(1).gamma(1, 1, (len(w), 1)).astype(np.float32)
    w[:, -1] = np.linspace(-2, 2, len(w))
    stored, scales = reference.quantize(w, group)
    held = reference.dequantize(stored, scales, group)
    assert np.abs(held - w).max() <= np.repeat(scales, group, axis=1)[:, :K].max() / 2 * 1.001
    out = run(x, torch.from_numpy(stored), scales=scales, group=group, gated=gated, tile=(4, 4), pitch=-(-K // 16) * 16)
    expected = reference.product(x, held, None, gated)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6 * K**0.5 * np.abs(expected).max())


def test_eight_bits_lose_what_rounding_loses() -> None:
    """Fault: a scale that leaves steps unused. Uniform weights: an error of a step / sqrt(12), a step being the largest / 127."""
    rng = np.random.default_rng(2)
    w = rng.uniform(-1, 1, (50, 256)).astype(np.float32)
    error = reference.dequantize(*reference.quantize(w, 64), 64) - w
    assert 0.9 < np.sqrt(np.square(error).mean()) * 127 * 12**0.5 < 1.01
    assert not reference.quantize(np.zeros((2, 5), np.float32), 4)[0].any()


def test_rows_do_not_touch_each_other() -> None:
    """Fault: a row that holds NaN or infinity, such as one that ended, spoils its neighbours."""
    x, w = data(4, 5, 40)
    clean = run(x, torch.from_numpy(w), tile=(4, 4))
    x[1], x[2] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(run(x, torch.from_numpy(w), tile=(4, 4))[[0, 3]], clean[[0, 3]])
