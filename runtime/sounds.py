"""The one place that reads a sound which a caller gives, for every method that takes one and for the command line.

In: a path, the bytes of a file, samples and a rate, or another library's object with both. Out: `Sound`: one channel, scaled, checked.
"""

from __future__ import annotations

import array
import io
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from reprlib import repr as short_repr
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from .arguments import items_of, number
from .audio import load_audio, resample
from .user_files import expanded

_LOG = logging.getLogger(__name__)
_MOST_CHANNELS = 8  # of a wave [t, channels] or [channels, t]: 7.1 surround has as many
_MOST_HZ = (1 << 31) - 1  # a sound file's rate has 32 bits with a sign
# The keys under which datasets and pipelines of Hugging Face, and pyannote, have samples and their rate.
_WAVE_KEYS, _RATE_KEYS = ("array", "raw", "audio", "waveform"), ("sampling_rate", "sample_rate")
FORMS = (
    'A sound is a path, (wave, rate in Hz) with a wave of [t], [t, channels] or [channels, t] samples, or a dict with "array" and '
    '"sampling_rate".'
)

# The types of one sound; a list is of several. Objects with `get_all_samples()`, such as torchcodec's decoders, are read as well.
SoundInput = str | os.PathLike[str] | bytes | BinaryIO | tuple[Any, Any] | Mapping[str, Any]


class Sound(NamedTuple):
    """A sound that was read and checked."""

    wave: np.ndarray  # float32 [t], finite, at least one sample; full scale is 1
    hz: int

    @property
    def seconds(self) -> float:
        return len(self.wave) / self.hz

    def samples_at(self, hz: int) -> int:
        """Return how many samples `resample` makes of the sound."""
        return -(-len(self.wave) * hz // self.hz)


def read_sound(value: Any) -> Sound:
    """Read a sound of any form that `FORMS` names; a `Sound` is returned as it is.

    Channels are mixed to one. Integers are scaled by their type, as libsndfile does, and floats are taken as they are, with a warning for a
    peak above 1. Raises ValueError, also for a file that cannot be read, and PermissionError for one that may not be.
    """
    if isinstance(value, Sound):
        return value
    if isinstance(value, str | os.PathLike):
        return _read_path(os.fsdecode(value))
    if isinstance(value, bytes | bytearray | memoryview) or hasattr(value, "read"):
        return _read_file(value)
    if isinstance(value, Mapping):
        return _read_mapping(value)
    if callable(getattr(value, "get_all_samples", None)):
        value = _all_samples(value)
    if _has_samples_and_rate(value):
        return _checked(value.data, value.sample_rate)
    if _is_pair(value):
        first, second = value
        return _checked(second, first) if _is_rate_first(first, second) else _checked(first, second)
    if _is_samples(value):
        raise ValueError(f"a wave alone has no rate: give (wave, rate in Hz). {FORMS}")
    raise ValueError(f"got {'None' if value is None else type(value).__name__} in place of a sound. {FORMS}")


def read_sounds(value: Any) -> tuple[list[Sound | None], bool]:
    """Read one sound or a list of sounds. Return them, None where an item is None, and whether the value is one sound and no list."""
    items = None if is_sound(value) else items_of(value, "sounds")
    if items is None:
        return [read_sound(value)], True
    sounds: list[Sound | None] = []
    for index, item in enumerate(items):
        try:
            sounds.append(None if item is None else read_sound(item))
        except ValueError as error:
            raise ValueError(f"sound {index + 1} of {len(items)}: {error}") from error
    return sounds, False


def read_waves(audio: Any, sample_hz: int, min_samples: int, who: str, check: Callable[[int, int], None]) -> np.ndarray:
    """Read a sound or a list of sounds; return float32 [B, t] at `sample_hz`, finite.

    who: what takes the waves, with its verb, for messages. check: raises an error for B waves of t samples, before they are resampled.
    """
    read, _ = read_sounds(audio)
    sounds = [sound for sound in read if sound is not None]
    if len(sounds) < len(read) or not sounds:
        raise ValueError("one of the sounds is None." if read else "no sound: the list is empty.")
    lengths = {sound.samples_at(sample_hz) for sound in sounds}
    if len(lengths) > 1:
        raise ValueError(f"{who} sounds of one length in one call, got {min(lengths)} to {max(lengths)} samples: give them one by one.")
    shape = len(sounds), lengths.pop()
    if shape[1] < min_samples:
        raise ValueError(f"{who} waves [B, t] of at least {min_samples} samples at {sample_hz} Hz, got {list(shape)}.")
    check(*shape)
    wave = np.stack([resample(sound.wave, sound.hz, sample_hz) for sound in sounds])
    if not np.isfinite(wave).all():  # a model whose weights went wrong makes such waves too
        raise ValueError("the wave holds NaN or infinite samples.")
    return wave


def is_sound(value: Any) -> bool:
    """Return whether a value has the form of one sound, be it right or wrong, and not that of a list of sounds."""
    return (
        isinstance(value, str | os.PathLike | bytes | bytearray | memoryview | Mapping)
        or hasattr(value, "read")
        or callable(getattr(value, "get_all_samples", None))
        or _has_samples_and_rate(value)
        or _is_pair(value)
        or _is_samples(value)
    )


def _read_path(given: str) -> Sound:
    if not given:
        raise ValueError(f"got an empty path in place of a sound. {FORMS}")
    path = expanded(given)
    wave, hz = load_audio(path)
    try:
        return _checked(wave, hz)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_file(value: Any) -> Sound:
    """Read the bytes of a sound file, or a binary file open for reading."""
    data = value if isinstance(value, bytes | bytearray | memoryview) else value.read()
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ValueError(f'a file with a sound must be open for reading bytes ("rb"), got {type(value).__name__}. {FORMS}')
    if not data:
        raise ValueError("no bytes in place of a sound: a file is read from where it stands. Call seek(0) after it was written.")
    return _checked(*load_audio(io.BytesIO(data)))


def _read_mapping(value: Mapping[str, Any]) -> Sound:
    wave = next((value[key] for key in _WAVE_KEYS if value.get(key) is not None), None)
    rates = [value[key] for key in _RATE_KEYS if key in value]
    if wave is not None and len(rates) == 1:
        return _checked(wave, rates[0])
    for key in ("bytes", "path"):  # an undecoded sound of Hugging Face's datasets has both, one of them perhaps None
        if wave is None and value.get(key) is not None:
            return read_sound(value[key])
    raise ValueError(f"a dict with the keys {short_repr(list(value))} is no sound. {FORMS}")


def _all_samples(decoder: Any) -> Any:
    try:
        return decoder.get_all_samples()
    except Exception as error:  # each library of decoders raises its own
        raise ValueError(f"the sound could not be decoded by {type(decoder).__name__}: {error}") from error


def _has_samples_and_rate(value: Any) -> bool:
    """Return whether a value is like torchcodec's AudioSamples."""
    return hasattr(value, "data") and hasattr(value, "sample_rate")


def _is_pair(value: Any) -> bool:
    """Return whether a value is samples and their rate, or was meant as such; two sounds are a list."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    first, second = value
    numbers = [number(item) is not None for item in (first, second)]
    return any(numbers) or _is_samples(first) != _is_samples(second)


def _is_rate_first(first: Any, second: Any) -> bool:
    """Return whether a pair is in the order of scipy.io.wavfile.read."""
    return not _is_samples(first) and (_is_samples(second) or number(first) is not None)


def _is_samples(value: Any) -> bool:
    """Return whether a value is an array or a list of numbers, right or wrong, and not a number or a list of other things."""
    if isinstance(value, list | tuple):
        rows = _ends(value) if all(isinstance(item, list | tuple) for item in _ends(value)) else [value]
        return len(value) > 0 and all(len(row) > 0 and all(number(item) is not None for item in _ends(row)) for row in rows)
    if hasattr(value, "__array__") or hasattr(value, "detach"):
        # An array of strings or of other objects, such as a column of a table, is a list of sounds.
        return getattr(value, "shape", None) != () and getattr(getattr(value, "dtype", None), "kind", None) not in ("O", "S", "U")
    return isinstance(value, array.array)


def _ends(items: Sequence[Any]) -> Sequence[Any]:
    """Return the first and the last item: a list of a million numbers is not looked through."""
    return items[:: max(len(items) - 1, 1)]


def _checked(samples: Any, rate: Any) -> Sound:
    """Return the sound of samples and a rate, or raise ValueError."""
    hz = number(rate)
    if hz is None or not 1 <= hz <= _MOST_HZ or hz != int(hz):
        raise ValueError(f"a sound's rate must be a whole number of Hz from 1 to {_MOST_HZ}, got {short_repr(rate)}.")
    if isinstance(samples, str | os.PathLike):
        raise ValueError(f"a sound file has a rate of its own: give it alone, without {int(hz)}. {FORMS}")
    if isinstance(samples, bytes | bytearray) or (isinstance(samples, memoryview) and samples.format in ("B", "b", "c")):
        raise ValueError(
            "bytes do not tell the type of their samples: give numpy.frombuffer(data, numpy.int16), or another type that they have; the "
            f"contents of a sound file alone, without {int(hz)}. {FORMS}"
        )
    wave = _mono(_scaled(_array(samples)))
    if not wave.size:
        raise ValueError("the wave is empty: a sound has at least one sample.")
    if not np.isfinite(wave).all():
        raise ValueError("the wave holds NaN or infinite samples.")
    peak = float(np.abs(wave).max())
    if peak > 1:
        _LOG.warning("a sound's peak is %.6g, and full scale is 1 where samples are floats: scale the sound if that was not meant.", peak)
    return Sound(wave, int(hz))


def _array(samples: Any) -> np.ndarray:
    """Return samples of any library as a numpy array. A tensor of PyTorch may be on a GPU or need a gradient."""
    try:
        if hasattr(samples, "detach"):
            # numpy has no bfloat16
            found = (samples.detach().float() if samples.is_floating_point() else samples).numpy(force=True)
        else:
            found = samples if isinstance(samples, np.ndarray) else np.asarray(samples)
    except Exception as error:  # each library of arrays raises its own
        raise ValueError(f"the samples of a sound cannot be read as an array: {error}") from error
    if np.ma.is_masked(found):
        raise ValueError("the wave has masked samples: fill them first.")
    return np.asarray(found)


def _scaled(samples: np.ndarray) -> np.ndarray:
    """Return samples of any type as float32, integers so that their type's range is [-1, 1)."""
    kind, size = samples.dtype.kind, samples.dtype.itemsize
    if kind == "f" or samples.dtype.name == "bfloat16":
        with np.errstate(over="ignore"):  # numbers beyond float32 become infinite, and are refused as such
            return samples.astype(np.float32)
    if kind not in "iu" or size > 4:
        advice = "64 bits have no full scale: give int16, int32 or floats" if kind in "iu" else "give floats in [-1, 1], or integers"
        raise ValueError(f"the samples of a sound cannot be {samples.dtype}: {advice}. {FORMS}")
    full_scale = 1 << (8 * size - 1)
    wave = samples.astype(np.float32 if size < 4 else np.float64)
    return ((wave - (full_scale if kind == "u" else 0)) / full_scale).astype(np.float32)


def _mono(wave: np.ndarray) -> np.ndarray:
    """Mix float32 [t], [t, channels] or [channels, t] to float32 [t]."""
    if wave.ndim == 1:
        return wave
    if wave.ndim == 2 and 1 <= min(wave.shape) <= _MOST_CHANNELS:
        if 1 in wave.shape:
            return wave.reshape(-1)
        if max(wave.shape) > _MOST_CHANNELS:
            return wave.mean(axis=int(wave.shape[1] < wave.shape[0]), dtype=np.float32)
    if 0 in wave.shape:
        return wave.reshape(-1)
    raise ValueError(
        f"a wave of shape {list(wave.shape)} is not one sound of at most {_MOST_CHANNELS} channels. {FORMS} Several sounds are a list."
    )
