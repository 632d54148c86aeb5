"""Products with weights of 8 or 4 bits, as ONNX Runtime's `MatMulNBits` and kernels/decoder_step compute them from the same numbers.

    w[k, n] ~ scale[n, k / block] * (q[n, k] - zero),   q whole in [0, 2 zero),   zero = 128 (8 bits) or 8 (4 bits)

A block of inputs of one output shares a scale. Scales are float32 that bfloat16 holds exactly, which is how the native step keeps them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """How the large matrices of a transformer are kept."""

    bits: int = 32  # 32: as they are
    block: int = 32  # inputs that share a scale


# Blocks of 32: at 4 bits blocks of 128 diverge by 30 to 40 % more (docs/export.md) and make a file a seventh smaller.
PRECISIONS = {"fp32": Form(), "int8": Form(8), "int4": Form(4)}
