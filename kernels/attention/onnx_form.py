"""Attention as ONNX nodes: for ONNX Runtime's CPU provider, and, in operators of opset 24 alone, for TensorRT.

`GroupQueryAttention` writes the cache in place when the same memory is bound to past and present, and its cost follows the number of
valid positions, not the capacity. Measured against opset 24's `TensorScatter` + `Attention` on the same caches (context 500, capacity
2048, six layers): 0.23 ms against 0.64 ms for one row, 1.6 ms against 5.8 ms for eight. TensorRT has the latter: a cache must be a
`TensorScatter`'s input and output, `Attention` drops `nonpad_kv_seqlen` and is refused in float32 and at small sizes ("not supported by a
dedicated kernel"), so it is two products and a softmax there, and what a query may see is in the bias.

`g` is the graph under construction: `g.op`, `g.weight`, `g.constant`.
"""

from typing import Any

import numpy as np

CONTRIB = "com.microsoft"


def table_bias(g: Any, table: np.ndarray, query_coordinates: str, key_coordinates: str, total: str) -> str:
    """table [H, M + 1]; coordinates int64 [B, S] and [B, capacity]; total int32 [1]: positions in use. Returns bias [B, H, S, total]."""
    end = g.op("Cast", total, to=7)
    keys = g.op("Slice", key_coordinates, g.constant([0]), end, g.constant([1]))
    return _gathered(g, table, query_coordinates, keys, [1, 0, 2, 3])


def cached_attention(g: Any, query: str, key: str, value: str, layer: int, bias: str, heads: int, scale: float) -> str:
    """query [B, S, H * D], key and value [B, S, D] -> [B, S, H * D]; appends to the cache of `layer`. bias may be "" for none."""
    output, *_ = g.op(
        "GroupQueryAttention",
        *(query, key, value, f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"),
        *("seqlens_k", "total_sequence_length", "", "", "", bias),
        outputs=[f"attention.{layer}", f"present.{layer}.key", f"present.{layer}.value"],
        domain=CONTRIB,
        num_heads=heads,
        kv_num_heads=1,
        scale=scale,
    )
    return output


def normalised(g: Any, x: str) -> str:
    """x [..., D] at length 1 over the last axis (Henry et al. 2020, arxiv.org/abs/2010.04245); zeros stay zeros."""
    length = g.op("ReduceL2", x, g.constant([-1]), keepdims=1)
    return g.op("Div", x, g.op("Max", length, g.constant(1e-12, np.float32)))


def masked_bias(g: Any, table: np.ndarray | None, heads: int, coordinates: tuple[str, str], lengths: str, capacity: int) -> str:
    """Bias [B, S * H, capacity], far below any score where a key is no query's yet.

    table [H, M + 1], or None; coordinates int64 [B, S] and [B, capacity]; lengths int64 [B, S]: positions up to a query, itself included.
    """
    keys = g.op("Range", g.constant(0), g.constant(capacity), g.constant(1))
    hidden = g.op("GreaterOrEqual", keys, g.op("Unsqueeze", lengths, g.constant([2, 3])))
    bias = g.constant(np.zeros((heads, 1)), np.float32)
    if table is not None:
        bias = _gathered(g, table, *coordinates, [1, 2, 0, 3])
    far = g.constant(-65504, np.float32)  # the lowest of fp16: infinities among scores are no numbers
    return g.op("Reshape", g.op("Where", hidden, far, bias), g.constant([0, -1, capacity]))


def scattered_attention(g: Any, query: str, key: str, value: str, layer: int, bias: str, first: str, D: int, scale: float) -> str:
    """As `cached_attention`, of heads of D; bias: of `masked_bias`, first: int64 [B], where the call's positions begin in the caches.

    Products as in `cross_attention`.
    """
    caches = []
    for part, new in (("key", key), ("value", value)):
        update, present = g.op("Unsqueeze", new, g.constant([1])), f"present.{layer}.{part}"
        g.op("TensorScatter", f"past_key_values.{layer}.{part}", update, first, outputs=[present], axis=2)
        caches.append(g.op("Squeeze", present, g.constant([1])))
    folded = g.op("Reshape", g.op("Mul", query, g.constant(scale, np.float32)), g.constant([0, -1, D]))
    scores = g.op("Add", g.op("MatMul", folded, g.op("Transpose", caches[0], perm=[0, 2, 1])), bias)
    output = g.op("MatMul", g.op("Softmax", scores, axis=-1), caches[1])
    S = g.op("Shape", key)
    return g.op("Reshape", output, g.op("Concat", g.op("Slice", S, g.constant([0]), g.constant([2])), g.constant([-1]), axis=0))


def cross_attention(g: Any, query: str, keys: str, values: str, heads: int, dim_head: int) -> str:
    """query [B, S, H * D], keys [B, D, C] already scaled, values [B, C, D] -> [B, S, H * D].

    One key head: the query heads fold into the sequence, so two plain products do all heads of all positions.
    """
    folded = g.op("Reshape", query, g.constant([0, -1, dim_head]))
    weights = g.op("Softmax", g.op("MatMul", folded, keys), axis=-1)
    return g.op("Reshape", g.op("MatMul", weights, values), g.constant([0, -1, heads * dim_head]))


def _gathered(g: Any, table: np.ndarray, query: str, keys: str, order: list[int]) -> str:
    """table[h, clip(query[b, i] - keys[b, j])] as [H, B, S, T], in this order of axes."""
    distance = g.op("Sub", g.op("Unsqueeze", query, g.constant([2])), g.op("Unsqueeze", keys, g.constant([1])))
    index = g.op("Clip", distance, g.constant(0), g.constant(table.shape[1] - 1))
    bias = g.op("Gather", g.weight("bias_table", table.astype(np.float32)), index, axis=1)
    return g.op("Transpose", bias, perm=order)
