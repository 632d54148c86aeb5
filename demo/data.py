"""The rendered clips as arrays: what the training draws from.

In: a folder that `render` filled. Out: pieces int16 in memory, and batches of parts of them, each a function of a seed and a step's number.
It does not know models.
"""

from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.utils.data import Dataset

from demo.captions import caption
from demo.compose import SECONDS, Piece, compose
from demo.render import SAMPLE_HZ, SPLITS

_VARIANTS = 4096  # captions per piece that a generator can be asked for; far more than differ


class Clips:
    """All pieces of a split, in the order of their seeds."""

    def __init__(self, folder: Path, split: str) -> None:
        shards = sorted(folder.glob(f"{split}-*.flac"))
        if not shards:
            raise FileNotFoundError(f"{folder} has no {split}-*.flac: python -m demo.render {folder}")
        length = round(SECONDS * SAMPLE_HZ)
        self.split = split
        self.waves = np.concatenate([soundfile.read(path, dtype="int16")[0].reshape(-1, length) for path in shards])
        self.pieces: list[Piece] = [compose(SPLITS[split] + number) for number in range(len(self.waves))]

    def __len__(self) -> int:
        return len(self.waves)

    def part(self, piece: int, start: int, samples: int) -> Tensor:
        """float32 [samples]"""
        return torch.from_numpy(self.waves[piece, start : start + samples].astype(np.float32) / 32768)

    def batch(self, rng: np.random.Generator, size: int, samples: int) -> Tensor:
        """float32 [size, samples]: parts of pieces, drawn with replacement."""
        pieces = rng.integers(len(self), size=size)
        starts = rng.integers(self.waves.shape[1] - samples + 1, size=size)
        return torch.stack([self.part(piece, start, samples) for piece, start in zip(pieces, starts, strict=True)])

    def windows(self, samples: int) -> Tensor:
        """float32 [pieces * windows, samples]: every piece cut into windows, piece by piece."""
        count = self.waves.shape[1] // samples
        return torch.from_numpy(self.waves[:, : count * samples].reshape(-1, samples).astype(np.float32) / 32768)

    def caption(self, piece: int, variant: int) -> str:
        return caption(self.pieces[piece], np.random.default_rng([piece, variant]), self.split)


class Captioned(Dataset):
    """(wave float32 [samples], caption) of every piece, for `MuLaNTrainer`: part and caption are drawn from torch's global generator."""

    def __init__(self, clips: Clips, seconds: float) -> None:
        self.clips, self.samples = clips, round(seconds * SAMPLE_HZ)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        start = int(torch.randint(self.clips.waves.shape[1] - self.samples + 1, (1,)))
        return self.clips.part(index, start, self.samples), self.clips.caption(index, int(torch.randint(_VARIANTS, (1,))))
