"""The gated feed-forward as ONNX nodes. `g` is the graph under construction: `g.op`, `g.weight`, `g.constant`."""

from typing import Any

import numpy as np

from .reference import FeedForward


def layer_norm(g: Any, name: str, x: str, gain: np.ndarray, bias: np.ndarray) -> str:
    """x [..., dim] -> [..., dim]; upstream's norms have a bias buffer that is zero in every trained model: then it is left out."""
    weights = [g.weight(f"{name}.gain", gain.astype(np.float32))]
    if np.any(bias):
        weights.append(g.weight(f"{name}.bias", bias.astype(np.float32)))
    return g.op("LayerNormalization", x, *weights, axis=-1, epsilon=1e-5)


def feed_forward(g: Any, name: str, p: FeedForward, x: str) -> str:
    """x [B, S, dim] -> [B, S, dim]."""
    inner = p.w_out.shape[0]
    product = g.op("MatMul", layer_norm(g, f"{name}.norm", x, p.norm, p.norm_bias), g.weight(f"{name}.w_in", p.w_in))
    value, gate = g.op("Split", product, g.constant([inner, inner]), outputs=2, axis=-1)
    gated = g.op("Mul", g.op("Gelu", gate), value)
    return g.op("MatMul", layer_norm(g, f"{name}.inner_norm", gated, p.inner_norm, p.inner_norm_bias), g.weight(f"{name}.w_out", p.w_out))
