"""Sampling noise as data: the same seed gives the same noise on every machine, for every batch and window arrangement.

Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), the generator of the GPU libraries:

    key      (seed & 0xffffffff, seed >> 32)
    counter  (v // 4, step, stage, item)           entry v of the vocabulary takes output word v % 4
    uniform  u = ((bits >> 8) + 0.5) / 2**24       in (0, 1), never 0 or 1
    gumbel   -log(-log(u))                         in float64, rounded to float32

`step` is the token's index in its item's whole stage, over all windows of a long clip; `item` the candidate's number under its seed. A GPU
kernel follows the same lines.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import numpy as np

STAGE_IDS = {"semantic": 0, "coarse": 1, "fine": 2}
_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], np.uint64)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_ROUNDS = 10
STEPS_AHEAD = 32  # one vectorized call serves this many steps: numpy's cost is per call


class NoiseSource(Protocol):
    """What the decode loop asks for noise."""

    def gumbel(self, stage: str, step: int, batch: int, vocab: int) -> np.ndarray:
        """float32 [batch, vocab] for the token number `step` of every item, in the order of the request."""
        ...


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """counter uint32 [..., 4], key of two 32-bit words -> random uint32 [..., 4]."""
    a, b, c, d = (counter[..., word].astype(np.uint64) for word in range(4))
    first, second = np.empty_like(a), np.empty_like(a)
    k0, k1 = key
    for _ in range(_ROUNDS):  # in place: new arrays would take most of the time
        np.multiply(a, _MULTIPLIERS[0], out=first)
        np.multiply(c, _MULTIPLIERS[1], out=second)
        np.right_shift(second, np.uint64(32), out=a)
        np.right_shift(first, np.uint64(32), out=c)
        a ^= b
        a ^= np.uint64(k0)
        c ^= d
        c ^= np.uint64(k1)
        np.bitwise_and(second, _LOW, out=b)
        np.bitwise_and(first, _LOW, out=d)
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([a, b, c, d], axis=-1).astype(np.uint32)


class SeededNoise:
    """The default: the noise of one candidate in one stage, drawn some steps ahead."""

    def __init__(self, stage: int, seed: int, item: int, vocab: int) -> None:
        """stage: its number in `STAGE_IDS`; item: the candidate's number under its seed."""
        self._stage, self._seed, self._item, self._vocab = stage, seed, item, vocab
        self._first, self._block = 0, np.zeros((0, vocab), np.float32)

    def __call__(self, step: int) -> np.ndarray:
        """Return float32 [vocab] for token number `step` of the stage."""
        if not self._first <= step < self._first + len(self._block):
            self._first, self._block = step, gumbel(self._stage, self._seed, self._item, step, STEPS_AHEAD, self._vocab)
        return self._block[step - self._first]


def gumbel(stage: int, seed: int, item: int, first: int, steps: int, vocab: int) -> np.ndarray:
    """Return float32 [steps, vocab] for the tokens from number `first` on."""
    counter = np.zeros((steps, -(-vocab // 4), 4), np.uint32)
    counter[..., 0] = np.arange(counter.shape[1])
    counter[..., 1] = np.arange(first, first + steps)[:, None]
    counter[..., 2], counter[..., 3] = stage, item
    bits = philox(counter, (seed & 0xFFFFFFFF, seed >> 32)).reshape(steps, -1)[:, :vocab]
    uniform = ((bits >> np.uint32(8)) + 0.5) / 2**24
    return -np.log(-np.log(uniform, out=uniform), out=uniform).astype(np.float32)


class ItemNoise:
    """One item's rows of a caller's source, which gives whole batches."""

    def __init__(self, source: CallerNoise, item: int) -> None:
        self._source, self._item = source, item

    def of(self, stage: str, vocab: int) -> Callable[[int], np.ndarray]:
        """Return a stage's noise: number of a token -> float32 [vocab]."""
        return lambda step: self._source.at(stage, step, vocab)[self._item]


class CallerNoise:
    """A caller's source. The items of a request ask for the same steps, a few apart, so the batches of the last steps are kept."""

    def __init__(self, source: NoiseSource, batch: int) -> None:
        self._source, self._batch = source, batch
        self._kept: dict[tuple[str, int], np.ndarray] = {}
        self._lock = threading.Lock()

    def at(self, stage: str, step: int, vocab: int) -> np.ndarray:
        """Return float32 [batch, vocab] for the token number `step` of every item."""
        with self._lock:
            if (stage, step) not in self._kept:
                if len(self._kept) >= STEPS_AHEAD:
                    self._kept.pop(next(iter(self._kept)))
                self._kept[stage, step] = self._source.gumbel(stage, step, self._batch, vocab)
            return self._kept[stage, step]

    def items(self) -> list[ItemNoise]:
        """Return the noise of each item."""
        return [ItemNoise(self, item) for item in range(self._batch)]
