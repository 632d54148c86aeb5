"""The formats of sound files: the rates and lengths that each can hold, and encoding a wave in one.

In: float32 [t] in [-1, 1], a rate in Hz, a comment. Out: a file's bytes. Where they are written is in `runtime.outputs`.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .outputs import is_stream

_LOG = logging.getLogger(__name__)
_BLOCK = 1 << 14  # samples: libsndfile's Vorbis encoder keeps what one call writes on the stack, and minutes at once overflow it
_MOST_WAV_BYTES = (1 << 32) - (1 << 16)  # its length is a number of 32 bits; the rest is for the header and the comment
MOST_COMMENT_BYTES = 30_000  # with a longer comment libsndfile writes a wav without it, and opus that no reader opens


@dataclass(frozen=True)
class Format:
    """One kind of sound file, as libsndfile writes it, one channel each."""

    name: str  # libsndfile's
    subtype: str
    takes: Callable[[int], bool]  # whether it can have this rate, in Hz
    rates: str  # the same in words
    ascii_only: bool = False  # whether comments must be ASCII


def _listed(*rates_hz: int) -> tuple[Callable[[int], bool], str]:
    return rates_hz.__contains__, f"{', '.join(map(str, rates_hz[:-1]))} or {rates_hz[-1]} Hz"


# Rates are checked here and not left to libsndfile, whose Vorbis encoder ends the process above 200 kHz.
FORMATS = {
    ".wav": Format("WAV", "PCM_16", lambda hz: 0 < hz < 1 << 31, "any rate below 2^31 Hz"),
    ".flac": Format(
        "FLAC",
        "PCM_16",
        lambda hz: 0 < hz < 1 << 16 or (hz <= 655_350 and hz % 10 == 0),
        "any rate up to 65535 Hz, and multiples of 10 up to 655350 Hz",
    ),
    ".ogg": Format("OGG", "VORBIS", lambda hz: 0 < hz <= 200_000, "any rate up to 200000 Hz"),
    ".opus": Format("OGG", "OPUS", *_listed(8000, 12000, 16000, 24000, 48000)),
    ".mp3": Format("MP3", "MPEG_LAYER_III", *_listed(8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000), ascii_only=True),
}


def format_of(path: Path) -> Format:
    """Return the format that a path's suffix names, WAV for a pipe or a device without a suffix. Raises ValueError for another suffix."""
    suffix = path.suffix.lower()
    if not suffix and is_stream(path):
        suffix = ".wav"
    if suffix not in FORMATS:
        *most, last = FORMATS
        raise ValueError(f"cannot write {path}: the suffix must be {', '.join(most)} or {last}, got {suffix or 'none'}.")
    return FORMATS[suffix]


def check_sound(path: Path, form: Format, sample_hz: int, samples: int) -> None:
    """Raise ValueError for a rate or a length that the format cannot hold, or if this libsndfile does not have the format."""
    import soundfile

    kind = form.subtype if form.subtype == "OPUS" else form.name
    if not soundfile.check_format(form.name, form.subtype):
        raise ValueError(
            f"cannot write {path}: libsndfile {soundfile.__libsndfile_version__} here is without {kind}. Write another format."
        )
    if not form.takes(sample_hz):
        raise ValueError(
            f"cannot write {path}: {kind} takes {form.rates}, got {sample_hz} Hz. "
            "Ask for another rate with --sample-rate (sample_rate= in Python), or write another format."
        )
    if form.name == "WAV" and 2 * samples > _MOST_WAV_BYTES:
        raise ValueError(f"cannot write {path}: {samples} samples are more than the 4 GB of a WAV. Write .flac or .ogg.")


def encode(path: Path, form: Format, audio: np.ndarray, sample_hz: int, comment: str) -> memoryview:
    """Encode float32 [t] as the bytes of a file. path: the file's name in messages.

    A peak beyond 1 scales the whole clip down, with a warning: nothing clips silently. A comment longer than a file can hold is left out,
    also with a warning.
    """
    import soundfile

    check_sound(path, form, sample_hz, len(audio))
    peak = float(np.abs(audio).max(initial=0))
    if not math.isfinite(peak):
        raise ValueError(f"cannot write {path}: the audio holds NaN or infinite samples.")
    if peak > 1:
        _LOG.warning(
            "%s: the peak is %.2f, above full scale; the whole clip is scaled by %.3f so that nothing clips.", path.name, peak, 1 / peak
        )
        audio = audio / peak
    size = len(comment.encode())
    if size > MOST_COMMENT_BYTES:
        _LOG.warning("%s: a comment of %d bytes is more than a sound file holds; the file does not say how it was made.", path.name, size)
        comment = ""
    made = io.BytesIO()
    try:
        with soundfile.SoundFile(made, "w", samplerate=sample_hz, channels=1, format=form.name, subtype=form.subtype) as file:
            if comment:
                file.comment = comment
            for start in range(0, len(audio), _BLOCK):
                file.write(audio[start : start + _BLOCK])
    except soundfile.LibsndfileError as error:  # MP3 and Opus files without a sample raise it
        raise ValueError(f"cannot write {path}: {form.subtype} does not take these {len(audio)} samples ({error.error_string})") from error
    return made.getbuffer()
