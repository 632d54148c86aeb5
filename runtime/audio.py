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
_BLOCK = 1 << 14  # samples: libsndfile's Vorbis encoder keeps what one call writes on the stack, and minutes at once overflow it
SUFFIXES = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG"}


def resample(wave: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Windowed-sinc resampling with a Hann window (Smith, "Digital Audio Resampling"), as `torchaudio.functional.resample` does it.

    wave float32 [..., t] -> float32 [..., ceil(t * to_hz / from_hz)].
    """
    if from_hz <= 0 or to_hz <= 0:
        raise ValueError(f"sample rates must be positive, got {from_hz} and {to_hz} Hz.")
    divisor = math.gcd(int(from_hz), int(to_hz))
    source, target = int(from_hz) // divisor, int(to_hz) // divisor
    if source == target or wave.shape[-1] == 0:
        return wave
    cutoff = min(source, target) * _ROLLOFF
    width = math.ceil(_LOWPASS_WIDTH * source / cutoff)
    padded = np.pad(wave, [(0, 0)] * (wave.ndim - 1) + [(width - 1, width)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * width, axis=-1)  # [..., t, taps]
    out = np.empty((*wave.shape[:-1], math.ceil(target * wave.shape[-1] / source)), np.float32)
    # Every target-th sample has the same kernel. One at a time: all of them as a matrix would not fit in memory for rates without
    # a common divisor.
    for phase in range(min(target, out.shape[-1])):
        first = phase * source // target
        offsets = (first + np.arange(1 - width, width + 1)) / source - phase / target
        t = np.clip(offsets * cutoff, -_LOWPASS_WIDTH, _LOWPASS_WIDTH)
        kernel = np.sinc(t) * np.cos(t * np.pi / _LOWPASS_WIDTH / 2) ** 2 * cutoff / source
        out[..., phase::target] = windows[..., first::source, :] @ kernel.astype(np.float32)
    return out


def load_audio(path: Path) -> tuple[np.ndarray, int]:
    """A sound file as (wave float32 [t], rate in Hz), its channels mixed to one. ValueError for what libsndfile does not read."""
    import soundfile

    if not path.is_file():
        raise ValueError(f"{path}: there is no such file.")
    try:
        data, hz = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: not a sound file that can be read ({error.error_string})") from error
    return data.mean(axis=1), hz


def save_audio(path: Path, audio: np.ndarray, sample_hz: int, comment: str) -> None:
    """Write float32 [t] as wav (16-bit), flac or ogg by suffix, aside first, then renamed.

    A peak beyond 1 scales the whole clip down, with a warning: nothing clips silently.
    """
    import soundfile

    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"cannot write {path.name}: the suffix must be one of {', '.join(SUFFIXES)}.")
    peak = float(np.abs(audio).max(initial=0))
    if not math.isfinite(peak):
        raise ValueError(f"cannot write {path.name}: the audio holds NaN or infinite samples.")
    if peak > 1:
        _LOG.warning(
            "%s: the peak is %.2f, above full scale; the whole clip is scaled by %.3f so that nothing clips.", path.name, peak, 1 / peak
        )
        audio = audio / peak
    handle, aside = tempfile.mkstemp(suffix=suffix, prefix=".partial.", dir=path.parent)
    os.close(handle)
    try:
        with soundfile.SoundFile(aside, "w", samplerate=sample_hz, channels=1, format=SUFFIXES[suffix]) as file:
            file.comment = comment
            for start in range(0, len(audio), _BLOCK):
                file.write(audio[start : start + _BLOCK])
        os.chmod(aside, 0o666 & ~_umask())
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
