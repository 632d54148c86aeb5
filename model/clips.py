"""A data set of (wave, text) from a folder of sound files with captions, the one that MuLaN is trained on.

In: a folder with a table of captions (`captions.py`). Out: clips of one rate and at most one length. It does not know batches or models.
"""

import logging
import math
import os
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..runtime.audio import reason_of, resample
from ..runtime.user_files import LFS_POINTER, expanded, is_lfs_pointer
from .captions import read_captions

_log = logging.getLogger(__name__)
_MOST_FAULTS = 20  # listed in one message


class ClipDataset(Dataset):
    """(wave float32 [t], text) of every captioned file of `folder`, mono at `sample_hz`.

    A file longer than `seconds` gives a part of it, a file with several captions (rows, or a list as `text` in JSON lines) one of them,
    both drawn from torch's global generator. corrupt: what becomes of files that cannot be read, hold NaN, or are shorter than
    `min_seconds`: "refuse" raises ValueError (all that the files' headers tell at once, the rest when a clip is read), "skip" leaves them
    out with a warning; a clip that turns out bad when it is read is then None, which the trainer leaves out of its batch.
    A fault of the table, such as a row without a caption, is always refused.
    """

    def __init__(
        self, folder: str | Path, *, sample_hz: int, seconds: float = 10.0, min_seconds: float = 1.0, corrupt: str = "refuse"
    ) -> None:
        if corrupt not in ("refuse", "skip"):
            raise ValueError(f"corrupt must be 'refuse' or 'skip', got {corrupt!r}")
        if sample_hz < 1 or not 0 < min_seconds <= seconds:
            raise ValueError(f"expected a rate and 0 < min_seconds <= seconds, got {sample_hz} Hz, {min_seconds} and {seconds}")
        self.folder, self.sample_hz, self.corrupt = expanded(folder), sample_hz, corrupt
        self.seconds, self.min_seconds = seconds, min_seconds
        captions, faults = read_captions(self.folder)
        _refuse(self.folder, faults)
        found = {name: self._fault(name) for name in captions}
        bad = [f"{name}: {fault}" for name, fault in found.items() if fault]
        if corrupt == "refuse":
            _refuse(self.folder, bad)
        for line in bad:
            _log.warning("%s is left out: %s", self.folder, line)
        self.clips = [(name, texts) for name, texts in captions.items() if not found[name]]
        if not self.clips:
            raise ValueError(f"{self.folder}: none of its {len(captions)} files can be used")

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Tensor, str] | None:
        name, texts = self.clips[index]
        try:
            wave = self._read(name)
        except ValueError as error:
            if self.corrupt == "refuse":
                raise ValueError(f"{self.folder / name}: {error}") from error
            _log.warning("%s is left out: %s", self.folder / name, error)
            return None
        return torch.from_numpy(wave), texts[int(torch.randint(len(texts), (1,)))]

    def _fault(self, name: str) -> str | None:
        """What the header of a file tells against it."""
        if not os.path.isfile(self.folder / name):  # Path.is_file raises an error for what is too long to be a name
            return "there is no such file"
        try:
            info = soundfile.info(str(self.folder / name))
        except soundfile.LibsndfileError as error:
            if is_lfs_pointer(self.folder / name):
                return LFS_POINTER
            return f"not a sound file that libsndfile reads ({reason_of(error)})"
        if info.frames < self.min_seconds * info.samplerate:
            return f"{info.frames / info.samplerate:.2f} s, shorter than min_seconds = {self.min_seconds:g}"
        return None

    def _read(self, name: str) -> np.ndarray:
        try:
            with soundfile.SoundFile(str(self.folder / name)) as file:
                frames = min(file.frames, math.ceil(self.seconds * file.samplerate))
                file.seek(int(torch.randint(file.frames - frames + 1, (1,))))
                wave, hz = file.read(frames, dtype="float32", always_2d=True).mean(axis=1), file.samplerate
        except soundfile.LibsndfileError as error:
            raise ValueError(f"the file is damaged ({reason_of(error)})") from error
        if len(wave) < frames:
            raise ValueError(f"the file is damaged: it ends {frames - len(wave)} samples before its header says")
        if not np.isfinite(wave).all():
            raise ValueError("the wave holds NaN or infinite samples")
        return resample(wave, hz, self.sample_hz)[: round(self.seconds * self.sample_hz)]


def _refuse(folder: Path, faults: list[str]) -> None:
    if faults:
        shown = faults[:_MOST_FAULTS] + ([f"and {len(faults) - _MOST_FAULTS} more"] if len(faults) > _MOST_FAULTS else [])
        raise ValueError(f"{folder} cannot be used:\n" + "\n".join(f"  - {fault}" for fault in shown))
