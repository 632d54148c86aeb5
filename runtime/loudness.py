"""Loudness of a mono wave, as ITU-R BS.1770 measures it, in LUFS.

In: float32 [t] and its rate. Out: one number. The K-weighting is applied by FFT, since a recursive filter is a slow loop in Python; its
impulse response has faded to nothing after a quarter of a second, so pieces of the wave are weighted one after another.
"""

from __future__ import annotations

import math

import numpy as np

_PARTS = 10  # in a second
_BLOCK = 4  # parts; the next block begins one part later
_ABSOLUTE_GATE, _RELATIVE_GATE = -70.0, -10.0  # in LUFS; in LU, from the mean of the blocks that pass the first gate
_OFFSET = -0.691  # so that the gain of the K-weighting at 997 Hz cancels
_PARTS_AT_ONCE = 100
LEAST_HZ = 4000  # the K-weighting begins to rise at 1.7 kHz, which must lie below the Nyquist frequency


def loudness(wave: np.ndarray, hz: int) -> float:
    """Return the integrated loudness of float32 [t] in LUFS; -inf for silence.

    A wave shorter than a block of 400 ms is measured as one block, without gates. Raises ValueError below 4000 Hz.
    """
    if hz < LEAST_HZ:
        raise ValueError(f"loudness is measured from {LEAST_HZ} Hz on, got {hz} Hz.")
    edges = np.round(np.arange(len(wave) * _PARTS // hz + 1) * hz / _PARTS).astype(int)
    if len(edges) <= _BLOCK:
        blocks = np.array([np.square(k_weighted(wave, hz)).mean()]) if len(wave) else np.zeros(1)
        return _lufs(blocks)
    energies = np.concatenate(
        [_energies(wave, hz, edges[first : first + _PARTS_AT_ONCE + 1]) for first in range(0, len(edges) - 1, _PARTS_AT_ONCE)]
    )
    spans = edges[_BLOCK:] - edges[:-_BLOCK]
    blocks = np.convolve(energies, np.ones(_BLOCK), "valid") / spans
    for gate in (lambda _: _ABSOLUTE_GATE, lambda kept: _lufs(kept) + _RELATIVE_GATE):
        blocks = blocks[blocks > 10 ** ((gate(blocks) - _OFFSET) / 10)]
        if not len(blocks):
            return -math.inf
    return _lufs(blocks)


def k_weighted(wave: np.ndarray, hz: int) -> np.ndarray:
    """Apply both filters of the K-weighting: [t] -> float64 [t]."""
    size = len(wave) + hz // 4
    z = np.exp(-2j * np.pi * np.arange(size // 2 + 1) / size)
    response = np.ones_like(z)
    for b, a in k_weighting(hz):
        response *= np.polyval(b[::-1], z) / np.polyval(a[::-1], z)
    return np.fft.irfft(np.fft.rfft(wave.astype(np.float64), size) * response, size)[: len(wave)]


def k_weighting(hz: int) -> list[tuple[list[float], list[float]]]:
    """Return the coefficients (b, a) of the two second-order filters at any rate: the high shelf for the head, then the high-pass.

    BS.1770 gives them for 48 kHz only. They are bilinear transforms of analogue filters, whose frequencies and qualities follow from those
    numbers (as in libebur128, `ebur128_init_filter`).
    """
    k, q = math.tan(math.pi * 1681.974450955533 / hz), 0.7071752369554196
    high = 10 ** (3.999843853973347 / 20)
    band, a0 = high**0.4996667741545416, 1 + k / q + k * k
    shelf = [(high + band * k / q + k * k) / a0, 2 * (k * k - high) / a0, (high - band * k / q + k * k) / a0]
    filters = [(shelf, [1.0, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0])]
    k, q = math.tan(math.pi * 38.13547087602444 / hz), 0.5003270373238773
    a0 = 1 + k / q + k * k
    return [*filters, ([1.0, -2.0, 1.0], [1.0, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0])]


def _energies(wave: np.ndarray, hz: int, edges: np.ndarray) -> np.ndarray:
    """Return the weighted wave's sums of squares between the edges. The filters begin a quarter of a second before the first edge."""
    first, before = edges[0], min(edges[0], hz // 4)
    weighted = k_weighted(wave[first - before : edges[-1]], hz)[before:]
    return np.add.reduceat(np.square(weighted), edges[:-1] - first)


def _lufs(blocks: np.ndarray) -> float:
    mean = float(blocks.mean())
    return _OFFSET + 10 * math.log10(mean) if mean > 0 else -math.inf
