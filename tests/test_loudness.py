"""Loudness against the standard's published values, scipy's recursive filter and the test signals of EBU Tech 3341."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
from scipy.signal import lfilter

from musiclm_deploy.runtime.loudness import k_weighted, k_weighting, loudness
from musiclm_deploy.runtime.mastering import Mastering

RATES = (8000, 16000, 24000, 44100, 48000, 96000)


def tone(level_db: float, seconds: float, sample_hz: int, hz: float = 997.0) -> np.ndarray:
    time = np.arange(round(seconds * sample_hz)) / sample_hz
    return (10 ** (level_db / 20) * np.sin(2 * np.pi * hz * time)).astype(np.float32)


def music(seconds: float, sample_hz: int) -> np.ndarray:
    """Return noise that swells and fades."""
    noise = np.random.default_rng(0).normal(size=round(seconds * sample_hz)).astype(np.float32)
    return 0.05 * noise * np.sin(np.pi * np.linspace(0, 3, len(noise), dtype=np.float32)) ** 2


def test_the_weighting_is_the_standards() -> None:
    """Fault: a coefficient is wrong. BS.1770-4, tables 1 and 2, for 48 kHz; they are printed to 14 digits."""
    (shelf, shelf_poles), (high_pass, poles) = k_weighting(48000)
    np.testing.assert_allclose(shelf, [1.53512485958697, -2.69169618940638, 1.19839281085285], rtol=0, atol=1e-12)
    np.testing.assert_allclose(shelf_poles, [1, -1.69065929318241, 0.73248077421585], rtol=0, atol=1e-12)
    np.testing.assert_allclose(high_pass, [1, -2, 1], rtol=0, atol=0)
    np.testing.assert_allclose(poles, [1, -1.99004745483398, 0.99007225036621], rtol=0, atol=1e-12)


@pytest.mark.parametrize("hz", RATES)
def test_the_fft_is_the_recursive_filter(hz: int) -> None:
    """Fault: the tail of the impulse response is cut or wraps round. Float64: 1e-9 of the peak."""
    wave = music(0.7, hz)
    expected = wave.astype(np.float64)
    for b, a in k_weighting(hz):
        expected = lfilter(b, a, expected)
    np.testing.assert_allclose(k_weighted(wave, hz), expected, rtol=0, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("hz", RATES)
def test_a_sine_at_full_scale(hz: int) -> None:
    """Fault: an offset, a channel weight or a rate is wrong. BS.1770: 997 Hz at 0 dBFS in one channel is at -3.01 LKFS."""
    assert abs(loudness(tone(0, 3, hz), hz) + 3.01) < (0.15 if hz < 24000 else 0.05)  # the shelf is squeezed near the Nyquist frequency


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([(-23, 20)], -23),
        ([(-33, 20)], -33),
        ([(-36, 10), (-23, 60), (-36, 10)], -23),
        ([(-72, 10), (-36, 10), (-23, 60), (-36, 10), (-72, 10)], -23),
        ([(-26, 20), (-20, 20.1), (-26, 20)], -23),
    ],
    ids=["1", "2", "3", "4", "5"],
)
def test_the_signals_of_ebu_tech_3341(levels: list[tuple[float, float]], expected: float) -> None:
    """Fault: a gate is wrong. Cases 1 to 5, whose tolerance is 0.1 LU; two equal channels there are 3.01 dB louder than one here."""
    wave = np.concatenate([tone(level + 10 * np.log10(2), seconds, 48000, 1000) for level, seconds in levels])
    assert abs(loudness(wave, 48000) - expected) < 0.1


def test_pieces_are_one_wave() -> None:
    """Fault: a filter starts anew in each piece of ten seconds; here every gate lets everything pass."""
    wave, hz = 0.1 * np.random.default_rng(1).normal(size=24000 * 23).astype(np.float32), 24000
    energy = np.square(k_weighted(wave, hz))
    blocks = [energy[start : start + 9600].mean() for start in range(0, len(wave) - 9600 + 1, 2400)]
    assert abs(loudness(wave, hz) - (-0.691 + 10 * np.log10(np.mean(blocks)))) < 1e-9


@pytest.mark.parametrize("samples", [0, 1, 4799, 9599, 9600, 9601])
def test_short_and_silent(samples: int) -> None:
    """Fault: a clip of less than a block, or of silence, divides by zero or takes the logarithm of it."""
    assert loudness(np.zeros(samples, np.float32), 24000) == -np.inf
    if samples > 4000:
        assert abs(loudness(tone(-20, samples / 24000, 24000), 24000) + 23.01) < 0.3


def test_rates_without_a_weighting_are_refused() -> None:
    """Fault: tan() has passed its pole, and the filter amplifies without end."""
    with pytest.raises(ValueError, match="measured from 4000 Hz on, got 3000 Hz"):
        loudness(np.ones(3000, np.float32), 3000)


@pytest.mark.parametrize("hz", [None, 48000])
@pytest.mark.parametrize("target", [-14.0, -23, -30])
def test_normalized(tmp_path, caplog, hz: int | None, target: float) -> None:
    """Fault: the loudness is measured before the rate is changed, or by another meter than the standard's; or something clips."""
    wave = music(3, 24000)
    made, rate = Mastering(hz, target).apply(tmp_path / "a.wav", wave, 24000)
    assert rate == (hz or 24000) and made.dtype == np.float32 and len(made) == 3 * rate
    assert np.abs(made).max() <= 1
    if not caplog.records:
        assert abs(loudness(made, rate) - target) < 0.01 and target < -14
        return
    assert target == -14 and np.abs(made).max() > 0.99999
    words = (
        r"a\.wav: at -14 LUFS the peak would be [\d.]+ dB above full scale; the clip is at (-[\d.]+) LUFS instead, so that nothing clips"
    )
    found = re.search(words, caplog.text)
    assert found and abs(float(found[1]) - loudness(made, rate)) < 0.06


def test_silence_stays_silent(tmp_path, caplog) -> None:
    """Fault: silence is amplified to noise, or fails when minutes were spent on it."""
    with caplog.at_level(logging.WARNING):
        made, _ = Mastering(None, -14).apply(tmp_path / "a.wav", np.zeros(24000, np.float32), 24000)
    assert not made.any() and "a.wav: the clip is silent; no gain brings it to -14 LUFS." in caplog.text


@pytest.mark.parametrize("hz", [0, 3999, 384_001, 44100.0, True, "44100"])
def test_rates_that_make_no_sense(hz) -> None:
    """Fault: gigabytes of samples for a typing error, found when the music is done."""
    with pytest.raises(ValueError, match="must be a whole number from 4000 to 384000 Hz, got"):
        Mastering(hz)


@pytest.mark.parametrize("lufs", [14, 0.1, -70, float("nan"), float("-inf"), True, "-14"])
def test_loudness_that_makes_no_sense(lufs) -> None:
    """Fault: 14 for -14 makes a clip of full scale; NaN makes a file of zeros."""
    with pytest.raises(ValueError, match="must be above -70 and at most 0 LUFS, got"):
        Mastering(None, lufs)
