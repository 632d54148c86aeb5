"""Clips of tiny bundles, for tests of the command line."""

from pathlib import Path

import numpy as np
import soundfile

WIDE = ["--filter-thres", "0.2"]  # at the default a tiny vocabulary keeps a single entry: nothing would be drawn


def same_samples(one: str | Path, other: str | Path) -> bool:
    """Return whether two sound files hold the same samples; their records may differ."""
    return np.array_equal(soundfile.read(one, dtype="int16")[0], soundfile.read(other, dtype="int16")[0])
