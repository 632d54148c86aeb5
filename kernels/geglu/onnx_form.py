"""The gated feed-forward as ONNX nodes. `g` is the graph under construction: `g.op`, `g.weight`, `g.constant`."""

from typing import Any

import numpy as np

from ..quantized_product import Form
from ..quantized_product.onnx_form import product
from .reference import FeedForward


def layer_norm(g: Any, name: str, x: str, gain: np.ndarray, bias: np.ndarray) -> str:
    """x [..., dim] -> [..., dim]; upstream's norms have a bias buffer that is zero in every trained model: then it is left out."""
    weights = [g.weight(f"{name}.gain", gain.astype(np.float32))]
    if np.any(bias):
        weights.append(g.weight(f"{name}.bias", bias.astype(np.float32)))
    return g.op("LayerNormalization", x, *weights, axis=-1, epsilon=1e-5)


def feed_forward(g: Any, name: str, p: FeedForward, x: str, form: Form) -> str:
    """x [B, S, dim] -> [B, S, dim]; form: of the two matrices."""
    inner = p.w_out.shape[0]
    unfolded = product(g, f"{name}.w_in", layer_norm(g, f"{name}.norm", x, p.norm, p.norm_bias), p.w_in, form)
    value, gate = g.op("Split", unfolded, g.constant([inner, inner]), outputs=2, axis=-1)
    gated = g.op("Mul", g.op("Gelu", gate), value)
    return product(g, f"{name}.w_out", layer_norm(g, f"{name}.inner_norm", gated, p.inner_norm, p.inner_norm_bias), p.w_out, form)
