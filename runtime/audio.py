"""Waves: resampling, and reading them from files. In and out: float32 samples in [-1, 1] and a rate in Hz."""

from __future__ import annotations

import errno
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from .user_files import LFS_POINTER, is_lfs_pointer

if TYPE_CHECKING:
    import soundfile


@dataclass(frozen=True)
class Lowpass:
    """The filter of a resampling: a windowed sinc."""

    zero_crossings: int  # on each side of the sinc
    rolloff: float  # cutoff frequency, as a share of the lower rate's Nyquist frequency
    kaiser_beta: float | None = None  # shape of the Kaiser window; None takes a Hann window


# torchaudio's defaults, with which models are trained. A tone at 0.8 of the Nyquist frequency leaves an image 28 dB below it.
FOR_MODELS = Lowpass(6, 0.99)
# resampy's "kaiser_best". The same tone leaves an image more than 100 dB below it.
FOR_LISTENERS = Lowpass(64, 0.9475937167399596, 14.769656459379492)


def resample(wave: np.ndarray, from_hz: int, to_hz: int, lowpass: Lowpass = FOR_MODELS) -> np.ndarray:
    """Resample by a windowed sinc (Smith, "Digital Audio Resampling"), as `torchaudio.functional.resample` does.

    wave float32 [..., t] -> float32 [..., ceil(t * to_hz / from_hz)].
    """
    if from_hz <= 0 or to_hz <= 0:
        raise ValueError(f"sample rates must be positive, got {from_hz} and {to_hz} Hz.")
    divisor = math.gcd(int(from_hz), int(to_hz))
    source, target = int(from_hz) // divisor, int(to_hz) // divisor
    if source == target or wave.shape[-1] == 0:
        return wave
    cutoff, crossings = min(source, target) * lowpass.rolloff, lowpass.zero_crossings
    width = math.ceil(crossings * source / cutoff)
    padded = np.pad(wave, [(0, 0)] * (wave.ndim - 1) + [(width - 1, width)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * width, axis=-1)  # [..., t, taps]
    out = np.empty((*wave.shape[:-1], math.ceil(target * wave.shape[-1] / source)), np.float32)
    # Every target-th sample has the same kernel. One at a time: all of them as a matrix would not fit in memory for rates without
    # a common divisor.
    for phase in range(min(target, out.shape[-1])):
        first = phase * source // target
        offsets = (first + np.arange(1 - width, width + 1)) / source - phase / target
        t = np.clip(offsets * cutoff, -crossings, crossings)
        if lowpass.kaiser_beta is None:
            window = np.cos(t * np.pi / crossings / 2) ** 2
        else:
            window = np.i0(lowpass.kaiser_beta * np.sqrt(1 - (t / crossings) ** 2)) / np.i0(lowpass.kaiser_beta)
        kernel = np.sinc(t) * window * cutoff / source
        out[..., phase::target] = windows[..., first::source, :] @ kernel.astype(np.float32)
    return out


def load_audio(source: Path | BinaryIO) -> tuple[np.ndarray, int]:
    """Read a sound file as (wave float32 [t], rate in Hz), its channels mixed to one. Raises ValueError if libsndfile cannot read it."""
    import soundfile

    if isinstance(source, Path):
        check_readable(source)
    try:
        data, hz = soundfile.read(source, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, TypeError) as error:  # soundfile raises TypeError for .raw, whose rate no file says
        if isinstance(source, Path) and is_lfs_pointer(source):
            raise ValueError(f"{source}: {LFS_POINTER}") from error
        name = source if isinstance(source, Path) else "the bytes of a sound"
        reason = reason_of(error) if isinstance(error, soundfile.LibsndfileError) else "samples without a header"
        raise ValueError(f"{name}: not a sound file that can be read ({reason})") from error
    return data.mean(axis=1), hz


def reason_of(error: soundfile.LibsndfileError) -> str:
    """Return why libsndfile could not read a file that is there."""
    # Its code 7 says that there is no file, but it has that for an .mp3 without sound as well.
    return "Format not recognised." if error.code == 7 else error.error_string


def check_readable(path: Path) -> None:
    """Raise ValueError or PermissionError for a path that holds no file to read; a pipe is none, as a sound is read back and forth."""
    try:
        mode = path.stat().st_mode
    except PermissionError:
        raise
    except (OSError, ValueError) as error:  # ValueError: the name holds a null character
        too_long = isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG  # a text in place of a path
        raise ValueError(f"{path}: {'file name too long' if too_long else 'there is no such file'}.") from None
    if stat.S_ISDIR(mode):
        raise ValueError(f"{path}: it is a folder. Give a sound file.")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: it is a pipe or a device. Save the sound in a file.")
    if not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
