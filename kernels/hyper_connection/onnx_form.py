"""Hyper-connections as ONNX nodes: one norm, one product for alpha and beta together, one product for the mixing.

`g` is the graph under construction: `g.op`, `g.weight`, `g.constant`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from .reference import HyperConnection

CONTRIB = "com.microsoft"


def hyper_connection(g: Any, name: str, p: HyperConnection, streams: str, branch: Callable[[str], str], fused: bool) -> str:
    """streams [B, S, s, dim] -> [B, S, s, dim]; `branch` places the branch's nodes: [B, S, dim] to [B, S, dim].

    fused: with ONNX Runtime's own product, which transposes on its way. The norm's gain goes into the columns of the mixing product; alpha
    and beta stand side by side as [s, s + 2].
    """
    s = len(p.static_beta)
    dynamic = np.concatenate([p.dynamic_alpha, p.dynamic_beta[:, None]], axis=1)
    scale = np.append(np.full(s + 1, p.alpha_scale), p.beta_scale)
    static = np.concatenate([p.static_alpha, p.static_beta[:, None]], axis=1)

    gain = g.weight(f"{name}.norm", (p.gamma + 1).astype(np.float32))
    normed = g.op("RMSNormalization", streams, gain, axis=-1, epsilon=1e-24)
    mixing = g.op("Tanh", g.op("MatMul", normed, g.weight(f"{name}.dynamic", dynamic.astype(np.float32))))
    mixing = g.op("Mul", mixing, g.weight(f"{name}.scale", scale.astype(np.float32)))
    mixing = g.op("Add", mixing, g.weight(f"{name}.static", static.astype(np.float32)))
    alpha, beta = g.op("Split", mixing, g.constant([s + 1, 1]), outputs=2, axis=-1)
    if fused:
        mixed = g.op("FusedMatMul", alpha, streams, domain=CONTRIB, transA=1)
    else:
        mixed = g.op("MatMul", g.op("Transpose", alpha, perm=[0, 1, 3, 2]), streams)
    branch_input, residual = g.op("Split", mixed, g.constant([1, s]), outputs=2, axis=2)
    output = g.op("Unsqueeze", branch(g.op("Squeeze", branch_input, g.constant([2]))), g.constant([2]))
    return g.op("Add", residual, g.op("Mul", output, beta))


def residual(g: Any, stream: str, branch: Callable[[str], str]) -> str:
    """The plain residual of a model with one stream: stream [B, S, dim]."""
    return g.op("Add", stream, branch(stream))
