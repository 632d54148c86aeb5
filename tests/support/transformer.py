"""A token transformer in float64, position by position, and random weights for it: what the native step is compared with.

Written after the formulas, on its own: one residual stream, no cross-attention. Where the weights have 8 or 4 bits, the inputs of their
products are rounded to whole numbers of 8 bits with a scale for each block, as the native step's are.
"""

from __future__ import annotations

import math

import numpy as np

from musiclm_deploy.kernels.decoder_step import Sizes
from musiclm_deploy.kernels.quantized_product.reference import dequantize, quantize

_erf = np.vectorize(math.erf, otypes=[float])


def random_weights(sizes: Sizes, seed: int = 0) -> dict[str, np.ndarray]:
    """Return float32 weights by the names of `Sizes.shapes()`, zero where a head is padded; matrices of 8 and 4 bits are quantized."""
    rng, weights = np.random.default_rng(seed), {}
    plain = Sizes(**{**vars(sizes), "bits": 32})
    for name, shape in plain.shapes().items():
        values = rng.standard_normal(shape, np.float32)
        kind = name.rsplit(".", 1)[-1]
        if kind == "gain":
            values = 1 + 0.2 * values
            weights[name.removesuffix("gain") + "bias"] = 0.2 * rng.standard_normal(shape, np.float32)
        elif kind == "key_scale":
            values = 8 * (1 + 0.3 * values)
            values[sizes.dim_head :] = 0
        elif kind.startswith("w_") or kind == "weight":
            values *= 1.5 / math.sqrt(shape[0])
        if kind in ("w_q", "w_kv") and "attention.w" in name:
            values.reshape(shape[0], -1, sizes.cache_head_size)[:, :, sizes.dim_head :] = 0
        quantized = f"{name}.values" in sizes.shapes()
        weights |= (
            dict(zip((f"{name}.values", f"{name}.scales"), quantize(values, sizes.bits, sizes.block), strict=True))
            if quantized
            else {name: values}
        )
    weights["head.bias"] = rng.standard_normal(sizes.vocabulary, np.float32)
    return weights


class Transformer:
    """The caches of one sequence; `feed` appends a position and returns its logits."""

    def __init__(self, sizes: Sizes, weights: dict[str, np.ndarray]) -> None:
        self.sizes = sizes
        self.weights = {name: array.astype(np.float64) for name, array in weights.items() if not name.endswith((".values", ".scales"))}
        for name in weights:
            if name.endswith(".values"):
                matrix = name.removesuffix(".values")
                inputs = Sizes(**{**vars(sizes), "bits": 32}).shapes()[matrix][0]
                self.weights[matrix] = dequantize(weights[name], weights[f"{matrix}.scales"], sizes.bits, inputs).astype(np.float64)
        self._keys: list[list[np.ndarray]] = [[] for _ in range(sizes.depth)]
        self._values: list[list[np.ndarray]] = [[] for _ in range(sizes.depth)]
        self._wide: list[list[np.ndarray]] = [[] for _ in range(sizes.depth)]  # inputs of the convolution at every position
        self._coordinates: list[int] = []

    def feed(self, row: int, query: int, key: int, position: int) -> np.ndarray:
        """Return the logits [outputs, V] of a new position: its row of the embeddings, its coordinates, its row of the positions."""
        sizes, w = self.sizes, self.weights
        x = w["rows"][row] + (w["positions"][position] if sizes.positions else 0)
        self._coordinates.append(key)
        for layer in range(sizes.depth):
            x = x + self._attention(layer, x, query)
            x = x + self._feed_forward(layer, x)
        x = self._norm("norm", x)
        return np.array([x @ w[f"head.{output}.weight"] + w["head.bias"] for output in range(sizes.outputs)])

    def _attention(self, layer: int, x: np.ndarray, query: int) -> np.ndarray:
        sizes, w, name = self.sizes, self.weights, f"layers.{layer}.attention"
        D = sizes.cache_head_size
        q = self._product(self._norm(f"{name}.norm", x), f"{name}.w_q").reshape(sizes.heads, D)
        key, value = self._product(x, f"{name}.w_kv").reshape(2, D)
        scale = sizes.dim_head**-0.5
        if sizes.normalised_attention:
            q = q / np.maximum(np.sqrt(np.square(q).sum(1, keepdims=True)), 1e-12)
            key = key / max(math.sqrt(np.square(key).sum()), 1e-12) * w[f"{name}.key_scale"]
            scale = 1.0
        self._keys[layer].append(key)
        self._values[layer].append(value)
        scores = q @ np.array(self._keys[layer]).T * scale
        if sizes.bias_entries:
            distances = np.clip(query - np.array(self._coordinates), 0, sizes.bias_entries - 1)
            scores = scores + w["bias_table"][:, distances]
        shares = np.exp(scores - scores.max(1, keepdims=True))
        attended = shares / shares.sum(1, keepdims=True) @ np.array(self._values[layer])
        return self._product(attended.ravel(), f"{name}.w_out")

    def _feed_forward(self, layer: int, x: np.ndarray) -> np.ndarray:
        name = f"layers.{layer}.feed_forward"
        u = self._product(self._norm(f"{name}.norm", x), f"{name}.w_in")
        if self.sizes.convolution:
            past, taps = self._wide[layer], self.weights[f"{name}.taps"]
            past.append(u)
            u = sum(taps[2 - ago] * past[-1 - ago] for ago in range(min(3, len(past))))
        value, gate = np.split(np.asarray(u), 2)
        y = 0.5 * gate * (1 + _erf(gate / math.sqrt(2))) * value
        return self._product(self._norm(f"{name}.inner_norm", y), f"{name}.w_out")

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        x = x - x.mean()
        return x / math.sqrt(np.square(x).mean() + 1e-5) * self.weights[f"{name}.gain"] + self.weights[f"{name}.bias"]

    def _product(self, x: np.ndarray, name: str) -> np.ndarray:
        if self.sizes.bits < 32:
            block = self.sizes.block
            blocks = np.pad(x, (0, -len(x) % block)).reshape(-1, block)
            scales = np.abs(blocks).max(1, keepdims=True) / 127
            x = (np.rint(blocks / np.where(scales, scales, 1)) * scales).ravel()[: len(x)]
        return x @ self.weights[name]
