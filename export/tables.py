"""The two tables that make three transformers one graph: rows (every input embedding) and biases (every attention bias).

In: a checkpoint and its settings. Out: `rows` float32 [R, dim] with the first row of each kind of token, and `bias` float32 [H, M + 1].
The runtime turns tokens into row numbers and positions into coordinates; `runtime.sequence` is the other side of this file.
"""

import numpy as np

from .checkpoint import Checkpoint
from .settings import Settings


def build_rows(stage: str, checkpoint: Checkpoint, settings: Settings) -> tuple[np.ndarray, dict[str, int]]:
    """Row 0 is zero, for padding and for upstream's embedding of -1. Codes have their offset and quantizer embedding added."""
    dim = settings["dim"]
    parts: list[tuple[str, np.ndarray]] = [("padding", np.zeros((1, dim), np.float32))]
    if stage == "semantic":
        parts += [
            ("start", _start(checkpoint, "start_token", dim)),
            ("semantic", checkpoint.array("semantic_embedding.weight", settings["num_semantic_tokens"] + 1, dim)),
        ]
    elif stage == "coarse":
        Q, V = settings["num_coarse_quantizers"], settings["codebook_size"]
        parts += [
            ("semantic_start", _start(checkpoint, "semantic_start_token", dim)),
            ("coarse_start", _start(checkpoint, "coarse_start_token", dim)),
            ("semantic", checkpoint.array("semantic_embedding.weight", settings["num_semantic_tokens"] + 1, dim)),
            ("coarse", _codes(checkpoint, "coarse", Q, V, dim, table_stride=V + 1)),
        ]
    else:
        V = settings["codebook_size"]
        parts += [
            ("coarse_start", _start(checkpoint, "coarse_start_token", dim)),
            ("fine_start", _start(checkpoint, "fine_start_token", dim)),
            ("coarse", _codes(checkpoint, "coarse", settings["num_coarse_quantizers"], V, dim, table_stride=V)),
            ("fine", _codes(checkpoint, "fine", settings["num_fine_quantizers"], V, dim, table_stride=V)),
        ]
    offsets = np.cumsum([0] + [len(rows) for _, rows in parts])
    return np.concatenate([rows for _, rows in parts]), {name: int(offset) for (name, _), offset in zip(parts, offsets, strict=False)}


def _start(checkpoint: Checkpoint, name: str, dim: int) -> np.ndarray:
    return checkpoint.array(name, dim)[None]


def _codes(checkpoint: Checkpoint, kind: str, Q: int, V: int, dim: int, table_stride: int) -> np.ndarray:
    """[Q * V, dim]: code c of quantizer q at q * V + c.

    Upstream's coarse table has room for an end token per quantizer (stride V + 1) but looks codes up at q * V + c all the same.
    """
    table = checkpoint.array(f"{kind}_embedding.weight", Q * table_stride, dim)
    quantizer = checkpoint.array(f"{kind}_quantize_embedding.weight", Q, dim)
    return (table[: Q * V].reshape(Q, V, -1) + quantizer[:, None]).reshape(Q * V, -1)


def build_bias(stage: str, checkpoint: Checkpoint, settings: Settings, positions: int) -> np.ndarray | None:
    """[H, M + 1]: entry 0 is no bias, the last entry is the bias across segments (coarse) or with a start token (fine).

    semantic, coarse: entry 1 + d is the bias at distance d, for d < `positions`.
    fine: entry f * (2 * Q - 1) + o is the MLP at (f, o), f < 2 * `positions` - 1; Q counts coarse and fine quantizers, positions frames.
    Upstream feeds its MLP `distance + N - 1`, so the same table serves every number of frames N: the runtime shifts the query coordinate.
    """
    if not settings["rel_pos_bias"]:
        return None
    if stage == "fine":
        Q = settings["num_coarse_quantizers"] + settings["num_fine_quantizers"]
        frames, quantizers = np.meshgrid(np.arange(2 * positions - 1), np.arange(2 * Q - 1), indexing="ij")
        grid = np.stack([frames.ravel(), quantizers.ravel()], axis=-1)
        bias = mlp(checkpoint, [f"pos_bias_mlp.{i}" for i in (0, 2, 4)], grid, settings["heads"]).T
        bias[:, 0] = 0  # (0, 0): a query N - 1 frames before its key, at the first quantizer against the last: never causal
        far = checkpoint.array("null_pos_bias", settings["heads"], 1, 1)
    else:
        layers = ["transformer.rel_pos_bias.net.0.0", "transformer.rel_pos_bias.net.1.0", "transformer.rel_pos_bias.net.2.0"]
        bias = mlp(checkpoint, [*layers, "transformer.rel_pos_bias.net.3"], np.arange(positions)[:, None], settings["heads"]).T
        bias = np.concatenate([np.zeros((settings["heads"], 1)), bias], axis=1)
        far = checkpoint.array("cross_attn_bias", settings["heads"], 1, 1) if stage == "coarse" else np.zeros((settings["heads"], 1, 1))
    return np.concatenate([bias, far.reshape(-1, 1)], axis=1).astype(np.float32)


def mlp(checkpoint: Checkpoint, layers: list[str], x: np.ndarray, heads: int) -> np.ndarray:
    """Linear layers with SiLU between them, in float64. x [n, in] -> [n, heads]."""
    x = x.astype(np.float64)
    for index, layer in enumerate(layers):
        width = checkpoint.shape(f"{layer}.weight", 2)[0] if layer != layers[-1] else heads
        weight = checkpoint.array(f"{layer}.weight", width, x.shape[1])
        x = x @ weight.T.astype(np.float64) + checkpoint.array(f"{layer}.bias", width)
        if index < len(layers) - 1:
            x = x * 0.5 * (1 + np.tanh(x / 2))  # x * sigmoid(x) without overflow
    return x
