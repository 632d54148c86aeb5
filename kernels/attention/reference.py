"""Cached multi-query attention with table bias in numpy float64, the way the formula reads."""

import numpy as np


def table_bias(table: np.ndarray, query_coordinates: np.ndarray, key_coordinates: np.ndarray) -> np.ndarray:
    """table [H, M + 1], query_coordinates [B, S], key_coordinates [B, T] -> bias [B, H, S, T]."""
    distance = query_coordinates[:, :, None] - key_coordinates[:, None, :]
    return table[:, np.clip(distance, 0, table.shape[1] - 1)].transpose(1, 0, 2, 3)


def attention(
    query: np.ndarray, keys: np.ndarray, values: np.ndarray, lengths: np.ndarray, scale: float, bias: np.ndarray | None = None
) -> np.ndarray:
    """Causal attention of the last S positions of each row.

    query [B, S, H, D]; keys, values [B, T, D] including those of the queries; lengths [B]: valid keys of each row, the last S of them
    being the queries' own; bias [B, H, S, T] or None. Returns float64 [B, S, H, D].
    """
    B, S, H, D = query.shape
    out = np.zeros((B, S, H, D))
    for b, n in enumerate(lengths):
        for s in range(S):
            visible = n - S + s + 1
            scores = query[b, s].astype(np.float64) @ keys[b, :visible].T.astype(np.float64) * scale
            if bias is not None:
                scores += bias[b, :, s, :visible]
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            out[b, s] = weights / weights.sum(axis=-1, keepdims=True) @ values[b, :visible].astype(np.float64)
    return out
