"""The gated feed-forward in numpy float64, the way the formula reads."""

import math
from dataclasses import dataclass

import numpy as np

_erf = np.vectorize(math.erf)


@dataclass(frozen=True)
class FeedForward:
    norm: np.ndarray  # gain [dim]
    norm_bias: np.ndarray  # [dim]
    w_in: np.ndarray  # [dim, 2 * inner]: values, then gates
    inner_norm: np.ndarray  # gain [inner]
    inner_norm_bias: np.ndarray  # [inner]
    w_out: np.ndarray  # [inner, dim]


def layer_norm(x: np.ndarray, gain: np.ndarray, bias: np.ndarray, epsilon: float = 1e-5) -> np.ndarray:
    """x [..., dim], normalized over the last axis."""
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + epsilon) * gain + bias


def feed_forward(p: FeedForward, x: np.ndarray) -> np.ndarray:
    """x [..., dim] -> float64 [..., dim]."""
    value, gate = np.split(layer_norm(x.astype(np.float64), p.norm, p.norm_bias) @ p.w_in, 2, axis=-1)
    inner = 0.5 * gate * (1 + _erf(gate / math.sqrt(2))) * value
    return layer_norm(inner, p.inner_norm, p.inner_norm_bias) @ p.w_out
