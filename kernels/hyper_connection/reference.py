"""Hyper-connections in numpy float64, the way the formula reads."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class HyperConnection:
    """Parameters of one branch's connection, s streams of width dim."""

    gamma: np.ndarray  # [dim]
    dynamic_alpha: np.ndarray  # [dim, s + 1]
    alpha_scale: float
    static_alpha: np.ndarray  # [s, s + 1]
    dynamic_beta: np.ndarray  # [dim]
    beta_scale: float
    static_beta: np.ndarray  # [s]


def apply(p: HyperConnection, streams: np.ndarray, branch: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """streams [..., s, dim] -> [..., s, dim]; `branch` maps [..., dim] to [..., dim]."""
    x = streams.astype(np.float64)
    norm = np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    normed = x / norm * np.sqrt(x.shape[-1]) * (p.gamma + 1)
    alpha = np.tanh(normed @ p.dynamic_alpha) * p.alpha_scale + p.static_alpha
    beta = np.tanh(normed @ p.dynamic_beta) * p.beta_scale + p.static_beta
    mixed = np.swapaxes(alpha, -1, -2) @ x
    return mixed[..., 1:, :] + beta[..., None] * branch(mixed[..., 0, :])[..., None, :]
