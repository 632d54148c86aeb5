"""Resampling, against torchaudio's."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from musiclm_deploy.model.upstream import load_upstream
from musiclm_deploy.runtime.audio import FOR_LISTENERS, load_audio, resample

load_upstream()
import torchaudio  # noqa: E402 (imports only after load_upstream)

FP32 = 1e-6  # waves in [-1, 1], kernels of up to 80 taps whose absolute values sum to less than 2: some ten roundings


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def sine(samples: int, sample_hz: int, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz / sample_hz * np.arange(samples))).astype(np.float32)


@pytest.mark.parametrize("rates", [(44100, 16000), (16000, 24000), (24000, 16000), (48000, 44100), (96000, 16000), (997, 1009), (3, 3)])
@pytest.mark.parametrize("shape", [(1,), (2,), (101,), (4799,), (2, 331), (1, 1)], ids=str)
def test_resample_is_torchaudios(rates: tuple[int, int], shape: tuple[int, ...]) -> None:
    """Fault: MuLaN hears another wave than in training; a length is off by one; the ends are treated otherwise; rows mix.

    Exact against torchaudio in float64. In float32 it rounds the kernel's arguments too, which costs it up to 1e-4 for rates with a small
    common divisor; ours stays within that of it.
    """
    wave = noise(*shape)
    exact = torchaudio.functional.resample(torch.from_numpy(wave).double(), *rates).numpy()
    out = resample(wave, *rates)
    assert out.dtype == np.float32 and out.shape == exact.shape
    np.testing.assert_allclose(out, exact, rtol=0, atol=FP32)
    np.testing.assert_allclose(out, torchaudio.functional.resample(torch.from_numpy(wave), *rates).numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("rates", [(44100, 44101), (44101, 44100), (44056, 16001)])
def test_resample_between_rates_without_a_common_divisor(rates: tuple[int, int]) -> None:
    """Fault: memory for one kernel per output sample of a second, gigabytes here. A sine stays a sine: the filter passes it within 1e-3."""
    wave = sine(3001, rates[0])
    tracemalloc.start()
    out = resample(wave, *rates)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1e6
    inner = slice(50, -50)  # beyond the ends the wave is taken as zero
    np.testing.assert_allclose(out[inner], sine(len(out), rates[1])[inner], rtol=0, atol=1e-3)


def test_resample_takes_memory_like_its_waves() -> None:
    """Fault: windows are copied for every output sample; half a minute then takes a gigabyte."""
    wave = noise(1, 30 * 44100)
    tracemalloc.start()
    out = resample(wave, 44100, 16000)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert out.shape == (1, 30 * 16000)
    assert peak_bytes < 2 * (wave.nbytes + out.nbytes)


def test_resample_at_its_limits() -> None:
    """Fault: an empty wave fails deep inside numpy, before anyone can say that it is too short; a rate of zero divides by zero."""
    assert resample(noise(2, 0), 3, 2).shape == (2, 0)
    for rates in ((0, 16000), (16000, 0), (-1, 16000)):
        with pytest.raises(ValueError, match=f"must be positive, got {rates[0]} and {rates[1]} Hz"):
            resample(noise(4), *rates)


@pytest.mark.parametrize("rates", [(24000, 44100), (24000, 48000), (48000, 24000)])
def test_what_people_hear_is_resampled_without_images(rates: tuple[int, int]) -> None:
    """Fault: files are resampled with the short filter of MuLaN's training, which leaves images of high tones 28 dB below them.

    Exact against torchaudio's Kaiser window in float64. A tone at 0.8 of the lower Nyquist frequency keeps its level within 0.1 dB, and
    everything else in the file is 110 dB below it, where float32 begins to count.
    """
    wave, best = noise(2, 331), {"lowpass_filter_width": 64, "rolloff": 0.9475937167399596, "beta": 14.769656459379492}
    exact = torchaudio.functional.resample(torch.from_numpy(wave).double(), *rates, resampling_method="sinc_interp_kaiser", **best).numpy()
    np.testing.assert_allclose(resample(wave, *rates, FOR_LISTENERS), exact, rtol=0, atol=FP32)
    hz = 0.4 * min(rates)
    out = resample(sine(rates[0] * 6 // 5, rates[0], hz), *rates, FOR_LISTENERS)[2000 : 2000 + rates[1]]  # whole periods
    levels, at = np.abs(np.fft.rfft(out * np.blackman(len(out)))), round(hz)
    level_db = 20 * np.log10(levels / (0.5 * np.blackman(len(out)).sum() / 2))
    assert abs(level_db[at - 3 : at + 4].max()) < 0.1
    assert np.delete(level_db, np.arange(at - 200, at + 200)).max() < -110


def test_what_is_no_sound_file(tmp_path: Path) -> None:
    """Fault: a pipe is waited for, or told as missing; libsndfile's "System error"."""
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "text.wav").write_text("calm piano")
    (tmp_path / "samples.raw").write_bytes(bytes(99))
    for name, message in (
        ("pipe.wav", "it is a pipe or a device. Save the sound in a file."),
        ("", "it is a folder. Give a sound file."),
        ("none.wav", "there is no such file."),
        ("text.wav", "not a sound file that can be read (Format not recognised.)"),
        ("samples.raw", "not a sound file that can be read (samples without a header)"),
        ("la " * 100, "file name too long."),
    ):
        with pytest.raises(ValueError) as error:
            load_audio(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name}: {message}"
