"""The products of a step in numpy float64, and weights of eight bits: how they are made and what they stand for."""

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[np.float64])


def product(x: np.ndarray, weights: np.ndarray, bias: np.ndarray | None = None, gated: bool = False) -> np.ndarray:
    """x [B, K], weights [N, K] (gated: [2 * N, K], values before gates), bias [N] -> float64 [B, N]."""
    y = x.astype(np.float64) @ weights.T.astype(np.float64)
    if gated:
        value, gate = np.split(y, 2, axis=1)
        y = 0.5 * gate * (1 + _erf(gate / math.sqrt(2))) * value
    return y if bias is None else y + bias


def quantize(weights: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """weights [N, K] -> int8 [N, K] and scales float32 [N, ceil(K / group)]: symmetric, a group's largest weight is 127 of its scale."""
    N, K = weights.shape
    padded = np.pad(weights, ((0, 0), (0, -K % group))).reshape(N, -1, group)
    scales = (np.abs(padded).max(axis=2) / 127).astype(np.float32)
    steps = np.rint(padded / np.where(scales, scales, 1)[..., None]).astype(np.int8)
    return np.ascontiguousarray(steps.reshape(N, -1)[:, :K]), scales


def dequantize(weights: np.ndarray, scales: np.ndarray, group: int) -> np.ndarray:
    """float64 [N, K]: what `quantize` made, as the product takes it."""
    return weights * np.repeat(scales.astype(np.float64), group, axis=1)[:, : weights.shape[1]]
