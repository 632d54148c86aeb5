"""Sampling noise as data: the same seed gives the same noise on every machine, for every batch and window arrangement.

Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), the generator of the GPU libraries:

    key      (seed & 0xffffffff, seed >> 32)
    counter  (v // 4, step, stage, item)           entry v of the vocabulary takes output word v % 4
    uniform  u = ((bits >> 8) + 0.5) / 2**24       in (0, 1), never 0 or 1
    gumbel   -log(-log(u))                         in float64, rounded to float32

`step` is the token's index in its item's whole stage, over all windows of a long clip; `item` the candidate's number under its seed. A GPU
kernel follows the same lines.
"""

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


class PhiloxNoise:
    """The default source: item i of a request draws from (seed, candidate) = items[i]."""

    def __init__(self, items: list[tuple[int, int]]) -> None:
        self.items = items
        self._blocks: dict[tuple[str, int, int, int], np.ndarray] = {}  # (stage, item, block, vocab) -> [steps of a block, vocab]

    def gumbel(self, stage: str, step: int, batch: int, vocab: int) -> np.ndarray:
        assert batch == len(self.items), (batch, len(self.items))
        return self.rows(stage, np.arange(batch), np.full(batch, step), vocab)

    def rows(self, stage: str, items: np.ndarray, steps: np.ndarray, vocab: int) -> np.ndarray:
        """float32 [rows, vocab]: for row r the token number steps[r] of item items[r]."""
        rows = list(zip(items.tolist(), steps.tolist(), strict=True))
        keys = [(stage, item, step // STEPS_AHEAD, vocab) for item, step in rows]
        if any(key not in self._blocks for key in keys):
            # what this call does not need is dropped, so that the memory is that of the rows, however long the clip
            self._blocks = {key: self._blocks[key] if key in self._blocks else self._block(key) for key in keys}
        noise = np.empty((len(rows), vocab), np.float32)
        for row, (key, (_, step)) in enumerate(zip(keys, rows, strict=True)):
            noise[row] = self._blocks[key][step % STEPS_AHEAD]
        return noise

    def _block(self, key: tuple[str, int, int, int]) -> np.ndarray:
        stage, item, block, vocab = key
        return self._gumbel(stage, block * STEPS_AHEAD, *self.items[item], vocab)

    @staticmethod
    def _gumbel(stage: str, first: int, seed: int, item: int, vocab: int) -> np.ndarray:
        counter = np.zeros((STEPS_AHEAD, -(-vocab // 4), 4), np.uint32)
        counter[..., 0] = np.arange(counter.shape[1])
        counter[..., 1] = np.arange(first, first + STEPS_AHEAD)[:, None]
        counter[..., 2], counter[..., 3] = STAGE_IDS[stage], item
        bits = philox(counter, (seed & 0xFFFFFFFF, seed >> 32)).reshape(STEPS_AHEAD, -1)[:, :vocab]
        uniform = ((bits >> np.uint32(8)) + 0.5) / 2**24
        return -np.log(-np.log(uniform, out=uniform), out=uniform).astype(np.float32)


class GivenNoise:
    """Rows at steps of their own from a caller's source, which gives whole batches."""

    def __init__(self, source: NoiseSource, batch: int) -> None:
        self._source, self._batch = source, batch

    def rows(self, stage: str, items: np.ndarray, steps: np.ndarray, vocab: int) -> np.ndarray:
        """As `PhiloxNoise.rows`."""
        given = {step: self._source.gumbel(stage, step, self._batch, vocab) for step in set(steps.tolist())}
        return np.stack([given[step][item] for item, step in zip(items.tolist(), steps.tolist(), strict=True)])
