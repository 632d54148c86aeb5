"""A transformer's weights as the launches of a step read them.

In: weights by the names of `Sizes.shapes()`. Out: arrays by the names of the buffers of launches.py, of their types.
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
    """The step's weight buffers, by name: from those of `Sizes.shapes()` at 32 bits, to which norms and heads may add biases.

    kind: of matrices and of the table, fp32, fp16 or bf16, as `narrow` has it; what else there is stays float32.
    """
    packed: dict[str, np.ndarray] = {name: weights[name] for name in ("rows",)}
    packed["bias_table"] = weights["bias_table"] if sizes.bias_entries else np.zeros((sizes.heads, 1), np.float32)
    norms = ["norm"]
    for layer in range(sizes.depth):
        name = f"layers.{layer}"
        attention, cross, feed = f"{name}.attention", f"{name}.cross_attention", f"{name}.feed_forward"
        joined = np.concatenate([weights[f"{attention}.w_q"], weights[f"{attention}.w_kv"]], axis=1)
        packed |= {f"{attention}.in.weight": joined.T, f"{attention}.out.weight": weights[f"{attention}.w_out"].T}
        packed |= {f"{feed}.{part}.weight": weights[f"{feed}.w_{part}"].T for part in ("in", "out")}
        norms += [f"{attention}.norm", f"{feed}.norm", f"{feed}.inner_norm"]
        if sizes.cross_attention:
            packed |= {f"{cross}.in.weight": weights[f"{cross}.w_q"].T, f"{cross}.out.weight": weights[f"{cross}.w_out"].T}
            norms.append(f"{cross}.norm")
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
        if name.endswith(".weight"):
            array = np.pad(array, ((0, 0), (0, pitch_of(array.shape[1]) - array.shape[1])))
        packed[name] = narrow(np.ascontiguousarray(array, np.float32), type_of(name, kind))
    return packed


def type_of(name: str, kind: str) -> str:
    """Of a packed buffer, where matrices and the table are of this kind."""
    return kind if name == "rows" or name.endswith(".weight") else "fp32"


def narrow(array: np.ndarray, kind: str) -> np.ndarray:
    """float32 as fp32, fp16 or bf16; bf16, which numpy has not, as uint16, rounded to the nearest, ties to even."""
    if kind == "bf16":
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        return (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)
    return array.astype(np.float16 if kind == "fp16" else np.float32)


def in_full(sizes: Sizes, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights by the same names, those of 8 and 4 bits as the numbers that they stand for, float32."""
    full, inputs = dict(weights), Sizes(**{**vars(sizes), "bits": 32}).shapes()
    for name in [name.removesuffix(".values") for name in weights if name.endswith(".values")]:
        full[name] = dequantize(full.pop(f"{name}.values"), full.pop(f"{name}.scales"), sizes.bits, inputs[name][0])
    return full
