"""The sizes of a transformer, and with them the name and shape of every weight that its step reads.

In: sizes, weights by name. Out: the same weights, checked. The names are those that `export/decoder.py` gives them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

MOST_BLOCK = 256  # kMostBlock in kernels.h


@dataclass(frozen=True)
class Sizes:
    """Of one transformer; `cache_head_size` is `dim_head` rounded up to a multiple of 8."""

    dim: int
    depth: int
    heads: int
    dim_head: int
    cache_head_size: int
    inner: int
    streams: int
    vocabulary: int
    outputs: int  # output projections
    table_rows: int
    bias_entries: int  # 0 without a bias table
    value_residual: bool
    cross_attention: bool
    bits: int = 32  # of the layers' matrices: 32, 8 or 4
    block: int = 32  # inputs that share a scale, at 8 and 4 bits
    normalised_attention: bool = False  # self-attention's queries and keys are divided by their lengths
    convolution: bool = False  # of three positions, in the feed-forward branch
    positions: int = 0  # rows of the table of absolute positions, 0 without one

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight that a step must have, as `export/decoder.py` names it; a norm's bias is there or not."""
        dim, s, wide, narrow = self.dim, self.streams, self.heads * self.cache_head_size, self.heads * self.dim_head
        shapes: dict[str, tuple[int, ...]] = {"rows": (self.table_rows, dim), "norm.gain": (dim,)}
        if self.bias_entries:
            shapes["bias_table"] = (self.heads, self.bias_entries)
        if self.positions:
            shapes["positions"] = (self.positions, dim)
        for layer in range(self.depth):
            if self.normalised_attention:
                shapes[f"layers.{layer}.attention.key_scale"] = (self.cache_head_size,)
            if self.convolution:
                shapes[f"layers.{layer}.feed_forward.taps"] = (3, 2 * self.inner)
            branches: list[tuple[str, dict[str, tuple[int, ...]]]] = [
                ("attention", {"norm.gain": (dim,), "w_q": (dim, wide), "w_kv": (dim, 2 * self.cache_head_size), "w_out": (wide, dim)}),
                ("cross_attention", {"norm.gain": (dim,), "w_q": (dim, narrow), "w_out": (narrow, dim)}),
                (
                    "feed_forward",
                    {
                        "norm.gain": (dim,),
                        "w_in": (dim, 2 * self.inner),
                        "inner_norm.gain": (self.inner,),
                        "w_out": (self.inner, dim),
                    },
                ),
            ]
            for index, (branch, weights) in enumerate(branches):
                if branch == "cross_attention" and not self.cross_attention:
                    continue
                for name, shape in weights.items():
                    shapes |= self._kept(f"layers.{layer}.{branch}.{name}", shape)
                if s > 1:
                    mixing = {"norm": (dim,), "dynamic": (dim, s + 2), "scale": (s + 2,), "static": (s, s + 2)}
                    shapes |= {f"layers.{layer}.{index}.connection.{name}": shape for name, shape in mixing.items()}
        heads = [f"head.{q}.weight" for q in range(self.outputs)]
        return shapes | dict.fromkeys(heads, (dim, self.vocabulary))

    def _kept(self, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """A weight, or the two parts of a matrix of 8 or 4 bits."""
        if self.bits == 32 or len(shape) == 1:
            return {name: shape}
        blocks = -(-shape[0] // self.block)
        return {f"{name}.values": (shape[1], blocks, self.block * self.bits // 8), f"{name}.scales": (shape[1], blocks)}

    def checked(self, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The weights that a step reads, contiguous. ValueError names one missing, of another type or shape, or that no step reads."""
        if self.bits < 32 and self.block not in range(32, MOST_BLOCK + 1, 32):
            raise ValueError(
                f"weights of {self.bits} bits in blocks of {self.block}: bits are 32, 8 or 4, a block a multiple of 32 up to {MOST_BLOCK}"
            )
        shapes = self.shapes()
        for name, shape in list(shapes.items()):
            if name.endswith(".gain") and name.removesuffix("gain") + "bias" in weights:
                shapes[name.removesuffix("gain") + "bias"] = shape
        if "head.bias" in weights:
            shapes["head.bias"] = (self.vocabulary,)
        for name, shape in shapes.items():
            dtype = np.uint8 if name.endswith(".values") else np.float32
            if name not in weights or weights[name].shape != shape or weights[name].dtype != dtype:
                found = f"{weights[name].dtype} {list(weights[name].shape)}" if name in weights else "none"
                raise ValueError(f"the weight {name!r} must be {np.dtype(dtype)} {list(shape)}, got {found}")
        if surplus := sorted(weights.keys() - shapes.keys()):
            raise ValueError(f"the weight {surplus[0]!r} is of another model than these sizes are")
        return {name: np.ascontiguousarray(weights[name]) for name in shapes}
