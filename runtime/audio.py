"""Waves in and out: resampling, and files by suffix. In and out: float32 samples in [-1, 1] and a rate in Hz."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from pathlib import Path

import numpy as np

_LOG = logging.getLogger(__name__)
_LOWPASS_WIDTH, _ROLLOFF = 6, 0.99  # torchaudio's defaults, so that both resample alike
SUFFIXES = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG"}


def resample(wave: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Windowed-sinc resampling with a Hann window (Smith, "Digital Audio Resampling"), as `torchaudio.functional.resample` does it.

    wave float32 [..., t] -> float32 [..., ceil(t * to_hz / from_hz)].
    """
    if from_hz <= 0 or to_hz <= 0:
        raise ValueError(f"sample rates must be positive, got {from_hz} and {to_hz} Hz.")
    divisor = math.gcd(int(from_hz), int(to_hz))
    source, target = int(from_hz) // divisor, int(to_hz) // divisor
    if source == target:
        return wave
    cutoff = min(source, target) * _ROLLOFF
    width = math.ceil(_LOWPASS_WIDTH * source / cutoff)
    offsets = np.arange(-width, width + source)[None] / source
    t = np.clip((offsets - np.arange(target)[:, None] / target) * cutoff, -_LOWPASS_WIDTH, _LOWPASS_WIDTH)
    kernel = (np.sinc(t) * np.cos(t * np.pi / _LOWPASS_WIDTH / 2) ** 2 * cutoff / source).astype(np.float32)  # [target, taps]

    length = wave.shape[-1]
    padded = np.pad(wave, [(0, 0)] * (wave.ndim - 1) + [(width, width + source)])
    frames = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[1], axis=-1)[..., ::source, :]
    return (frames @ kernel.T).reshape(*wave.shape[:-1], -1)[..., : math.ceil(target * length / source)]


def save_audio(path: Path, audio: np.ndarray, sample_hz: int, comment: str) -> None:
    """Write float32 [t] as wav (16-bit), flac or ogg by suffix, aside first, then renamed.

    A peak beyond 1 scales the whole clip down, with a warning: nothing clips silently.
    """
    import soundfile

    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"cannot write {path.name}: the suffix must be one of {', '.join(SUFFIXES)}.")
    peak = float(np.abs(audio).max(initial=0))
    if peak > 1:
        _LOG.warning(
            "%s: the peak is %.2f, above full scale; the whole clip is scaled by %.3f so that nothing clips.", path.name, peak, 1 / peak
        )
        audio = audio / peak
    handle, aside = tempfile.mkstemp(suffix=suffix, prefix=f".{path.stem}.", dir=path.parent)
    os.close(handle)
    try:
        with soundfile.SoundFile(aside, "w", samplerate=sample_hz, channels=1, format=SUFFIXES[suffix]) as file:
            file.comment = comment
            file.write(audio)
        os.chmod(aside, 0o666 & ~_umask())
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
