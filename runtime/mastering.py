"""The sample rate and the loudness that a wave is given before it is written.

In: float32 [t] at the codec's rate. Out: the same sound at the rate and loudness that were asked for.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .arguments import number, whole_number
from .audio import FOR_LISTENERS, resample
from .loudness import LEAST_HZ, loudness

_LOG = logging.getLogger(__name__)
_MOST_HZ = 384_000
_LEAST_LUFS = -70.0  # BS.1770 leaves quieter blocks out


@dataclass(frozen=True)
class Mastering:
    """The rate and loudness that were asked for. Raises ValueError for values that no file can have."""

    sample_rate: int | None = None  # in Hz, by default the codec's
    normalize: float | None = None  # integrated loudness in LUFS (ITU-R BS.1770), by default as generated

    def __post_init__(self) -> None:
        hz, lufs = whole_number(self.sample_rate), number(self.normalize)
        if self.sample_rate is not None and (hz is None or not LEAST_HZ <= hz <= _MOST_HZ):
            raise ValueError(
                f"the sample rate of a file must be a whole number from {LEAST_HZ} to {_MOST_HZ} Hz, got {self.sample_rate!r}."
            )
        if self.normalize is not None and (lufs is None or not _LEAST_LUFS < lufs <= 0):
            raise ValueError(
                f"the loudness to normalize to must be above {_LEAST_LUFS:g} and at most 0 LUFS, got {self.normalize!r}. "
                "Streaming services play at -14, broadcasters at -23."
            )
        object.__setattr__(self, "sample_rate", hz)
        object.__setattr__(self, "normalize", lufs)

    def apply(self, path: Path, wave: np.ndarray, hz: int) -> tuple[np.ndarray, int]:
        """Convert float32 [t] at `hz`; return float32 [t'] and its rate. path: the file's name in messages.

        If the gain for the loudness would lift the peak above full scale, a smaller gain is used, and a warning says how loud the clip is.
        """
        if self.sample_rate is not None:
            wave, hz = resample(wave, hz, self.sample_rate, FOR_LISTENERS), self.sample_rate
        if self.normalize is None:
            return wave, hz
        before, peak = loudness(wave, hz), float(np.abs(wave).max(initial=0))
        if before == -math.inf:
            _LOG.warning("%s: the clip is silent; no gain brings it to %g LUFS.", path.name, self.normalize)
            return wave, hz
        gain, most = 10 ** ((self.normalize - before) / 20), (1 - 1e-6) / peak
        if gain > most:
            _LOG.warning(
                "%s: at %g LUFS the peak would be %.1f dB above full scale; the clip is at %.1f LUFS instead, so that nothing clips.",
                path.name,
                self.normalize,
                20 * math.log10(gain * peak),
                before + 20 * math.log10(most),
            )
        return wave * np.float32(min(gain, most)), hz
