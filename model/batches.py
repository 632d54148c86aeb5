"""Which items make up which batch, and the seed that each is drawn with: functions of one seed and a place in the run alone.

In: a data set of (wave, text), a seed, this process's rank. Out: batches that a run takes up again at any step, with any number of workers,
as if it had never stopped. It does not know the model.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler


def mix_seeds(*parts: int) -> int:
    """One seed of 63 bits from several, each change of any of them another one."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


class Batches(Sampler[list[tuple[int, int]]]):
    """Batches of (place, seed) without end, from batch number `first` on: each epoch in a new order, its last part batch left out."""

    def __init__(self, size: int, batch: int, *, seed: int, first: int = 0, rank: int = 0, ranks: int = 1) -> None:
        """size: of the data set; batch: items per process; rank: of this one among `ranks`."""
        self.size, self.batch, self.seed, self.first, self.rank, self.ranks = size, batch, seed, first, rank, ranks
        self.per_epoch = size // (batch * ranks)
        if self.per_epoch < 1:
            raise ValueError(f"a training set of {size} clips is smaller than one batch of {batch} on each of {ranks} processes")

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        number = self.first
        while True:
            epoch, done = divmod(number, self.per_epoch)
            order = torch.randperm(self.size, generator=torch.Generator().manual_seed(mix_seeds(self.seed, epoch)))
            for place in range(done, self.per_epoch):
                start = (place * self.ranks + self.rank) * self.batch
                items = order[start : start + self.batch].tolist()
                yield [(index, mix_seeds(self.seed, number, index)) for index in items]
                number += 1


class Drawn(Dataset):
    """Items of a part of a data set by (place in the part, seed): what the data set draws from torch's global generator depends on the
    seed alone."""

    def __init__(self, dataset: Any, part: Sequence[int], ndim: int, shortest: int) -> None:
        """ndim: of an item's wave; shortest: samples or frames of the shortest wave that can be used."""
        self.dataset, self.part, self.ndim, self.shortest = dataset, part, ndim, shortest

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, str | Tensor] | None:
        place, seed = key
        index = self.part[place]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            item = self.dataset[index]
        if item is None:
            return None
        fault = self._fault(item)
        if fault:
            raise ValueError(f"item {index} of the data set: {fault}")
        return item

    def _fault(self, item: Any) -> str | None:
        if not isinstance(item, Sequence) or len(item) != 2 or not isinstance(item[0], Tensor) or not isinstance(item[1], str | Tensor):
            return "expected (wave, text), with the wave a tensor and the text a str or its token ids"
        wave, text = item
        if wave.ndim != self.ndim or not wave.is_floating_point():
            return f"the wave must be floating point of {self.ndim} dimension(s), got {wave.dtype} {list(wave.shape)}"
        if len(wave) < self.shortest:
            return f"{len(wave)} samples are shorter than the {self.shortest} that fill one patch of the audio transformer"
        if not wave.isfinite().all():
            return "the wave holds NaN or infinite samples"
        if not (text.strip() if isinstance(text, str) else text.any()):
            return "the caption is empty"
        return None


def collate(items: Sequence[tuple[Tensor, str | Tensor] | None]) -> dict[str, Any]:
    """{"wavs": [B, t] cut to the shortest, "raw_texts": B texts, or "texts": token ids [B, n] padded with 0}; None is left out."""
    pairs = [item for item in items if item is not None]
    if not pairs:
        raise ValueError(f"none of the {len(items)} clips of a batch could be read")
    waves, texts = zip(*pairs, strict=True)
    shortest = min(map(len, waves))
    batch: dict[str, Any] = {"wavs": torch.stack([wave[:shortest] for wave in waves])}
    if isinstance(texts[0], str):
        return batch | {"raw_texts": list(texts)}
    return batch | {"texts": pad_sequence(list(texts), batch_first=True)}


def validation_batches(size: int, batch: int, rank: int, ranks: int) -> list[list[tuple[int, int]]]:
    """Each process's part of every item of a validation set, always the same: about `batch` items a time, never none."""
    parts = np.array_split(np.arange(size), max(1, size // (batch * ranks)))
    return [[(int(index), int(index)) for index in np.array_split(part, ranks)[rank]] for part in parts]


def split(size: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices for training and validation, upstream's own split of the same seed."""
    train = size if fraction == 0 else math.floor((1 - fraction) * size)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
    return order[:train], order[train:]
