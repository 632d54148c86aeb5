"""A transformer's weights as the launches of a step read them.

In: weights by the names of `Sizes.shapes()`. Out: arrays by the names of the buffers of kernel_lists.py, of their types.
"""

from collections.abc import Mapping

import numpy as np

from .decoder_step.sizes import Sizes
from .quantized_product.reference import dequantize

PITCH = 16  # weights: rows of 32 bytes or more


def pitch_of(inputs: int) -> int:
    """Elements from one output of a matrix to the next."""
    return -(-inputs // PITCH) * PITCH


def pack_weights(sizes: Sizes, weights: Mapping[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """The step's weight buffers, by name: from those of `Sizes.shapes()`, to which norms and heads may add biases.

    kind: of the layers' matrices: fp32, fp16, bf16, or int8 of a transformer of 8 bits, whose numbers they then are, with scales, and of no
    other, which is a ValueError; of output projections and the table as `cache_dtype` has it; what else there is stays float32.
    """
    if kind == "int8" and sizes.bits != 8:
        raise ValueError(f"weights of int8 are those of a bundle of 8 bits, this has {sizes.bits}: export it with --precision int8")
    stored, weights = weights, dequantize_all(sizes, weights)
    packed: dict[str, np.ndarray] = {name: weights[name] for name in ("rows",)}
    packed["bias_table"] = weights["bias_table"] if sizes.bias_entries else np.zeros((sizes.heads, 1), np.float32)
    norms = ["norm"]
    for layer in range(sizes.depth):
        name = f"layers.{layer}"
        attention, cross, feed = f"{name}.attention", f"{name}.cross_attention", f"{name}.feed_forward"
        matrices = {f"{attention}.in": ("w_q", "w_kv"), f"{attention}.out": ("w_out",), f"{feed}.in": ("w_in",), f"{feed}.out": ("w_out",)}
        norms += [f"{attention}.norm", f"{feed}.norm", f"{feed}.inner_norm"]
        if sizes.cross_attention:
            matrices |= {f"{cross}.in": ("w_q",), f"{cross}.out": ("w_out",)}
            norms.append(f"{cross}.norm")
        for product, parts in matrices.items():
            names = [f"{product.rpartition('.')[0]}.{part}" for part in parts]
            if kind == "int8":
                values = np.concatenate([stored[f"{one}.values"] for one in names])
                inputs = len(weights[names[0]])
                packed[f"{product}.weight"] = values.reshape(len(values), -1)[:, :inputs].astype(np.int16) - 128
                packed[f"{product}.scales"] = np.concatenate([stored[f"{one}.scales"] for one in names])
            else:
                packed[f"{product}.weight"] = np.concatenate([weights[one] for one in names], axis=1).T
        for branch in range(3):
            at = f"{name}.{branch}.connection"
            if f"{at}.norm" in weights:
                packed[f"{at}.dynamic"] = (weights[f"{at}.dynamic"] * weights[f"{at}.norm"][:, None]).T
                packed |= {f"{at}.{part}": weights[f"{at}.{part}"] for part in ("scale", "static")}
    for name in norms:
        gain = packed[f"{name}.gain"] = weights[f"{name}.gain"]
        packed[f"{name}.bias"] = weights.get(f"{name}.bias", np.zeros_like(gain))
    packed |= {f"head.{q}.weight": weights[f"head.{q}.weight"].T for q in range(sizes.outputs)}
    packed["head.bias"] = weights.get("head.bias", np.zeros(sizes.vocabulary, np.float32))
    for name, array in packed.items():
        own = type_of(name, kind)
        if name.endswith(".weight"):
            array = np.pad(array, ((0, 0), (0, pitch_of(array.shape[1]) - array.shape[1])))
        packed[name] = array.astype(np.int8) if own == "int8" else cast(np.ascontiguousarray(array, np.float32), own)
    return packed


def cache_dtype(kind: str) -> str:
    """The type of caches, table and output projections where matrices are of this kind."""
    return "fp16" if kind == "int8" else kind


def type_of(name: str, kind: str) -> str:
    """Of a packed buffer, where the layers' matrices are of this kind."""
    if name == "rows" or (name.startswith("head.") and name.endswith(".weight")):
        return cache_dtype(kind)
    return kind if name.endswith(".weight") else "fp32"


def cast(array: np.ndarray, kind: str) -> np.ndarray:
    """float32 as fp32, fp16 or bf16; bf16, which numpy has not, as uint16, rounded to the nearest, ties to even."""
    if kind == "bf16":
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        return (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)
    return array.astype(np.float16 if kind == "fp16" else np.float32)


def dequantize_all(sizes: Sizes, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights by the same names, those of 8 and 4 bits as the numbers that they stand for, float32."""
    full, inputs = dict(weights), Sizes(**{**vars(sizes), "bits": 32}).shapes()
    for name in [name.removesuffix(".values") for name in weights if name.endswith(".values")]:
        full[name] = dequantize(full.pop(f"{name}.values"), full.pop(f"{name}.scales"), sizes.bits, inputs[name][0])
    return full
