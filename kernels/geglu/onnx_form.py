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


def causal_convolution(g: Any, name: str, taps: np.ndarray, x: str, layer: int, last: str) -> str:
    """A depthwise convolution over a position and the two before it: x [B, S, width] -> the same, y[t] = sum_i taps[i] x[t - 2 + i].

    taps [3, width]. What a call needs of the positions before it is `past_conv.<layer>` [B, 2, width], zeros before the first one; it
    leaves `present_conv.<layer>`, the two vectors up to position `last`, int64 [B], of the call.
    """
    length = g.op("Slice", g.op("Shape", x), g.constant([1]), g.constant([2]))
    extended = g.op("Concat", f"past_conv.{layer}", x, axis=1)
    weights = g.weight(f"{name}.taps", taps)
    parts = []
    for i in range(3):
        shifted = g.op("Slice", extended, g.constant([i]), g.op("Add", length, g.constant([i])), g.constant([1]))
        parts.append(g.op("Mul", shifted, g.op("Gather", weights, g.constant(i))))
    kept = g.op("Add", g.op("Unsqueeze", last, g.constant([1])), g.constant([[1, 2]]))  # `extended` begins two positions earlier
    g.op("GatherND", extended, g.op("Unsqueeze", kept, g.constant([2])), outputs=[f"present_conv.{layer}"], batch_dims=1)
    return g.op("Add", g.op("Add", parts[0], parts[1]), parts[2])


def feed_forward(g: Any, name: str, p: FeedForward, x: str, form: Form, convolve: Any = None) -> str:
    """x [B, S, dim] -> [B, S, dim]; form: of the two matrices; convolve: places what stands between the first product and the gate."""
    inner = p.w_out.shape[0]
    unfolded = product(g, f"{name}.w_in", layer_norm(g, f"{name}.norm", x, p.norm, p.norm_bias), p.w_in, form)
    if convolve is not None:
        unfolded = convolve(unfolded)
    value, gate = g.op("Split", unfolded, g.constant([inner, inner]), outputs=2, axis=-1)
    gated = g.op("Mul", g.op("Gelu", gate), value)
    return product(g, f"{name}.w_out", layer_norm(g, f"{name}.inner_norm", gated, p.inner_norm, p.inner_norm_bias), p.w_out, form)
