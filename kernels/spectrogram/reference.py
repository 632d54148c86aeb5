"""The patches of a power or log-mel spectrogram in numpy float64, by numpy's own FFT."""

import numpy as np

from .constants import FLOOR


def edges(n_fft: int, win_length: int, center: bool) -> tuple[int, int]:
    """(left, before): samples of a frame ahead of its window, and how far the first window begins before the wave."""
    left = (n_fft - win_length) // 2
    return left, (n_fft // 2 if center else 0) - left


def windowed_dft(n_fft: int, win_length: int) -> np.ndarray:
    """float64 [2, n_fft // 2 + 1, win_length]: cosines and sines times the periodic Hann window."""
    left, _ = edges(n_fft, win_length, True)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win_length) / win_length)
    turns = np.arange(n_fft // 2 + 1)[:, None] * np.arange(left, left + win_length) % n_fft
    angles = turns * (2 * np.pi / n_fft)
    return np.stack([np.cos(angles), np.sin(angles)]) * window


def count_frames(samples: int, n_fft: int, hop: int, center: bool) -> int:
    return (samples - (0 if center else n_fft)) // hop + 1


def patches(
    wave: np.ndarray, n_fft: int, win_length: int, hop: int, center: bool, patch: tuple[int, int], filters: np.ndarray | None = None
) -> np.ndarray:
    """wave [B, t] -> float64 [B, rows, columns, bins * frames]: patches of (bins, frames), those of the lowest bins first.

    filters: [bands, n_fft // 2 + 1], of a log-mel spectrogram, whose bands then take the place of bins.
    """
    left, _ = edges(n_fft, win_length, center)
    window = np.zeros(n_fft)
    window[left : left + win_length] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win_length) / win_length)
    padded = np.pad(wave.astype(np.float64), ((0, 0), (n_fft // 2,) * 2), mode="reflect") if center else wave.astype(np.float64)
    starts = np.arange(count_frames(wave.shape[1], n_fft, hop, center)) * hop
    framed = padded[:, starts[:, None] + np.arange(n_fft)] * window
    heights = np.abs(np.fft.rfft(framed, axis=-1)).transpose(0, 2, 1) ** 2
    if filters is not None:
        heights = np.log(np.maximum(filters.astype(np.float64) @ heights, FLOOR))
    bins, frames = patch
    rows, columns = heights.shape[1] // bins, heights.shape[2] // frames
    cropped = heights[:, : rows * bins, : columns * frames].reshape(len(wave), rows, bins, columns, frames)
    return cropped.transpose(0, 1, 3, 2, 4).reshape(len(wave), rows, columns, bins * frames)
