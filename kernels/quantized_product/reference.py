"""Weights to whole numbers with a scale for each block, and back, in numpy.

In: float32 [K, N], K inputs, N outputs. Out: bytes [N, blocks, block * bits / 8] in the layout of `MatMulNBits` (at 4 bits input 2i is
the low half of byte i), scales float32 [N, blocks]. The last block is filled up with zeros.
"""

import numpy as np

# Scales that are tried, as shares of the one that makes the largest weight of a block the most negative number: a smaller scale clips that
# weight and is finer for all others; a larger one need not clip a weight of the other sign that is as large.
_SHARES = {8: (1.0, 0.995, 1.005), 4: (1.0, 0.8, 0.85, 0.9, 0.95, 1.05, 1.1, 1.15)}
_LEAST_SCALE = 1e-30  # of a block that is not all zeros for our purposes; its inverse is finite


def quantize(w: np.ndarray, bits: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """w float32 [K, N] -> (bytes uint8 [N, blocks, block * bits / 8], scales float32 [N, blocks]), of each block the least squared error
    among some scales. Raises ValueError for another number of bits, and for weights that are not finite."""
    if bits not in _SHARES:
        raise ValueError(f"weights have 8 or 4 bits, got {bits}")
    if not np.isfinite(w).all():
        raise ValueError("the weights hold NaN or infinite numbers")
    K, N = w.shape
    blocks, zero = -(-K // block), 1 << (bits - 1)
    tiles = np.zeros((N, blocks * block), np.float32)
    tiles[:, :K] = w.T
    tiles = tiles.reshape(N, blocks, block)
    extreme = np.take_along_axis(tiles, np.abs(tiles).argmax(-1)[..., None], -1)
    best = np.full((N, blocks, 1), np.inf, np.float32)
    scales, whole = np.zeros((N, blocks, 1), np.float32), np.zeros(tiles.shape, np.int8)
    for share in _SHARES[bits]:
        scale = _to_bfloat16(extreme * np.float32(-share / zero))
        usable = np.abs(scale) > _LEAST_SCALE
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=usable)
        numbers = np.clip(np.rint(tiles * inverse), -zero, zero - 1)
        error = np.square(numbers * scale - tiles).sum(-1, keepdims=True)
        better = error < best
        best = np.where(better, error, best)
        scales = np.where(better & usable, scale, scales)
        np.copyto(whole, numbers.astype(np.int8), where=better)
    values = (whole.astype(np.int16) + zero).astype(np.uint8)
    if bits == 4:
        values = values[..., ::2] | values[..., 1::2] << 4
    return values, scales[..., 0]


def dequantize(values: np.ndarray, scales: np.ndarray, bits: int, inputs: int) -> np.ndarray:
    """The float32 weights [inputs, N] that `values` and `scales` stand for."""
    N, blocks, _ = values.shape
    if bits == 4:
        values = np.stack([values & 15, values >> 4], -1).reshape(N, blocks, -1)
    numbers = values.astype(np.float32) - (1 << (bits - 1))
    return np.ascontiguousarray((numbers * scales[..., None]).reshape(N, -1)[:, :inputs].T)


def _to_bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest that bfloat16 holds, ties to even."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
