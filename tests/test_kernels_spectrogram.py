"""The spectrogram kernel in Triton's interpreter, against numpy's FFT in float64 and against the entrance of MuLaN's audio tower.

fp32: a power is the square of a sum of up to 40 products; 1e-5 of the largest power is some forty roundings, a frame that is one sample off
moves powers by about their size. The kernel loses at most three times what the plain version does, the tower's own convolution in fp32.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from interpreted import empty, floats, run_step

from musiclm_deploy.kernels.patches import build_patches
from musiclm_deploy.kernels.spectrogram import reference
from musiclm_deploy.model.spectrogram import Spectrogram


def kernel(wave: np.ndarray, n_fft: int, win_length: int, hop: int, center: bool, patch: tuple[int, int]) -> np.ndarray:
    step = build_patches(*wave.shape, n_fft, win_length, hop, center, patch)
    buffers = {"wave": floats(wave), "dft": floats(reference.windowed_dft(n_fft, win_length))}
    buffers["patches"] = empty(*step.buffers["patches"][1])
    assert all(list(buffers[name].shape) == list(shape) for name, (_, shape) in step.buffers.items())
    run_step(step.launches, buffers)
    return buffers["patches"].numpy()


@pytest.mark.parametrize(
    ("B", "t", "n_fft", "win_length", "hop", "center", "patch"),
    [
        (1, 250, 40, 24, 12, True, (5, 7)),
        (2, 301, 32, 32, 10, True, (16, 16)),
        (3, 190, 37, 20, 7, False, (9, 4)),
        (1, 21, 40, 25, 3, True, (4, 3)),  # the shortest wave that can be reflected
    ],
)
def test_patches_are_the_towers(B: int, t: int, n_fft: int, win_length: int, hop: int, center: bool, patch: tuple[int, int]) -> None:
    """Fault: a frame that begins a sample early, a window in another place of its frame, an edge that repeats, bins and frames of a patch
    the wrong way round, patches in another order, a crop at the wrong end."""
    wave = np.random.default_rng(t).standard_normal((B, t)).astype(np.float32)
    out = kernel(wave, n_fft, win_length, hop, center, patch)
    exact = reference.patches(wave, n_fft, win_length, hop, center, patch)
    assert out.shape == exact.shape and exact.size
    np.testing.assert_allclose(out, exact, rtol=0, atol=1e-5 * exact.max())
    module = Spectrogram(n_fft, 2, win_length, hop, 0, center, "reflect")
    theirs, (bins, frames) = module(torch.from_numpy(wave)), patch
    rows, columns = theirs.shape[1] // bins, theirs.shape[2] // frames
    theirs = theirs[:, : rows * bins, : columns * frames].unflatten(2, (columns, frames)).unflatten(1, (rows, bins)).transpose(2, 3)
    theirs = theirs.flatten(3).flatten(1, 2).numpy()
    np.testing.assert_allclose(theirs, exact, rtol=0, atol=1e-5 * exact.max())
    assert np.abs(out - exact).max() <= 3 * np.abs(theirs - exact).max()
