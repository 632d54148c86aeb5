"""A product with a weight of any precision as ONNX nodes: `MatMul`, or ONNX Runtime's `MatMulNBits`.

`g` is the graph under construction: `g.op`, `g.weight`.
"""

from typing import Any

import numpy as np

from . import Form
from .reference import quantize

CONTRIB = "com.microsoft"


def product(g: Any, name: str, x: str, w: np.ndarray, form: Form) -> str:
    """x [..., K], w float32 [K, N] -> [..., N]; the weight is `name`, or `name`.values and `name`.scales.

    accuracy_level 4: activations are quantized to int8 by block as well; level 0 is several times slower at 8 bits.
    """
    if form.bits == 32:
        return g.op("MatMul", x, g.weight(name, w))
    values, scales = quantize(w, form.bits, form.block)
    weights = g.weight(f"{name}.values", values), g.weight(f"{name}.scales", scales)
    sizes = {"K": w.shape[0], "N": w.shape[1], "bits": form.bits, "block_size": form.block}
    return g.op("MatMulNBits", x, *weights, domain=CONTRIB, accuracy_level=4, **sizes)
