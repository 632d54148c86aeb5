"""The spectrogram kernels in Triton's interpreter, against numpy's FFT in float64 and against the entrance of MuLaN's audio tower.

fp32: a power is the square of a sum of up to 40 products; 1e-5 of the largest power is some forty roundings, a frame that is one sample off
moves powers by about their size. A logarithm moves by what its energy does in proportion, and the smallest here are 1e-3 of the largest.
The kernel loses at most three times what the plain version does, the tower's own convolution in fp32.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.interpreted import empty, floats, run_step

from musiclm_deploy.kernels.patches import build_patches, constants_of
from musiclm_deploy.kernels.spectrogram import reference
from musiclm_deploy.model.spectrogram import Spectrogram


def kernel(wave: np.ndarray, n_fft: int, win_length: int, hop: int, center: bool, patch: tuple[int, int], filters=None) -> np.ndarray:
    step = build_patches(*wave.shape, n_fft, win_length, hop, center, patch, None if filters is None else len(filters))
    made = constants_of(n_fft, win_length, patch[0], filters)
    buffers = {"wave": floats(wave)} | {name: torch.from_numpy(array) for name, array in made.items()}
    buffers["patches"] = empty(*step.buffers["patches"][1])
    assert {name: tuple(buffer.shape) for name, buffer in buffers.items()} == {name: shape for name, (_, shape) in step.buffers.items()}
    run_step(step.launches, buffers)
    return buffers["patches"].numpy()


def tower(wave: np.ndarray, module: Spectrogram, patch: tuple[int, int]) -> np.ndarray:
    """The patches that the model cuts."""
    theirs, (bins, frames) = module(torch.from_numpy(wave)), patch
    rows, columns = theirs.shape[1] // bins, theirs.shape[2] // frames
    theirs = theirs[:, : rows * bins, : columns * frames].unflatten(2, (columns, frames)).unflatten(1, (rows, bins)).transpose(2, 3)
    return theirs.flatten(3).numpy()


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
    theirs = tower(wave, Spectrogram(n_fft, 2, win_length, hop, 0, center, "reflect"), patch)
    np.testing.assert_allclose(theirs, exact, rtol=0, atol=1e-5 * exact.max())
    assert np.abs(out - exact).max() <= 3 * np.abs(theirs - exact).max()


@pytest.mark.parametrize(
    ("B", "t", "n_fft", "win_length", "hop", "bands", "patch"),
    [
        (2, 700, 256, 100, 40, 20, (8, 5)),  # bands of the highest rows reach over more bins than are summed at a time
        (1, 431, 140, 51, 17, 6, (3, 16)),
    ],
)
def test_log_mel_patches_are_the_towers(B: int, t: int, n_fft: int, win_length: int, hop: int, bands: int, patch: tuple[int, int]) -> None:
    """Fault: bins under a band that are left out, bands of the row below, the logarithm before the sum, silence that is minus infinity."""
    wave = np.random.default_rng(t).standard_normal((B, t)).astype(np.float32)
    wave[:, : t // 3] = 0
    module = Spectrogram(n_fft, 2, win_length, hop, 0, True, "reflect", n_mels=bands, sample_hz=8000)
    assert module.mel is not None
    filters = module.mel.numpy()
    out = kernel(wave, n_fft, win_length, hop, True, patch, filters)
    exact = reference.patches(wave, n_fft, win_length, hop, True, patch, filters)
    assert exact.min() == np.log(1e-5) and np.ptp(exact) > 10
    np.testing.assert_allclose(out, exact, rtol=0, atol=1e-4)
    theirs = tower(wave, module, patch)
    np.testing.assert_allclose(theirs, exact, rtol=0, atol=1e-4)
    assert np.abs(out - exact).max() <= 3 * np.abs(theirs - exact).max()


def test_a_filter_may_take_nothing() -> None:
    """Fault: bands of a row that are all empty reach over bins that are not there."""
    filters = np.zeros((4, 21), np.float32)
    filters[0, 20] = filters[1, 3] = 1
    reach = constants_of(40, 24, 2, filters)["reach"]
    assert reach.tolist() == [[3, 21], [0, 0]]
    wave = np.ones((1, 90), np.float32)
    out = kernel(wave, 40, 24, 12, True, (2, 3), filters)
    np.testing.assert_allclose(out, reference.patches(wave, 40, 24, 12, True, (2, 3), filters), rtol=0, atol=1e-4)
