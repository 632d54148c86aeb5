"""The noise of a seed, bit by bit: anybody's Philox, our layout of keys and counters, our formula from bits to Gumbel."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from musiclm_deploy.runtime import noise
from musiclm_deploy.runtime.noise import STAGE_IDS, STEPS_AHEAD, CallerNoise, SeededNoise, gumbel, philox


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_known_answers(counter: str, key: str, expected: str) -> None:
    """Fault: another generator than the paper's. The vectors are those of Random123 for philox4x32 with 10 rounds."""
    words = [np.array([int(word, 16) for word in text.split()], np.uint32) for text in (counter, key, expected)]
    tiled = np.broadcast_to(words[0], (2, 3, 4))
    assert (philox(tiled, (int(words[1][0]), int(words[1][1]))) == words[2]).all()


@pytest.mark.parametrize(
    ("seed", "item", "stage", "step", "expected"),
    [
        (0, 0, "semantic", 0, [0.0848202, 2.06166124, 1.18118298, 0.68969172, 3.57015944, -0.01573501]),
        (2**32 + 5, 3, "coarse", 33, [0.73779851, 2.54655027, 0.62644982, 0.49636158, -0.36311615, -0.3052034]),
        (2**64 - 1, 1, "fine", 47, [0.29243019, -0.18516544, 0.23734903, 1.11011696, 0.50576425, 0.36691839]),
    ],
)
def test_golden_values(seed: int, item: int, stage: str, step: int, expected: list[float]) -> None:
    """Fault: a release changes what a seed sounds like.

    The values come from another Philox (randomgen 2.5.1, number=4, width=32) by the formulas in `runtime/noise.py`, in Python's own
    floats. A logarithm may differ in its last bit between machines: 1e-6, while one bit more or less in the input is 1e-4.
    """
    values = gumbel(STAGE_IDS[stage], seed, item, step, 1, 6)
    assert values.dtype == np.float32 and values.shape == (1, 6)
    np.testing.assert_allclose(values[0], expected, rtol=0, atol=1e-6)


def test_steps_and_vocabularies_do_not_touch_each_other() -> None:
    """Fault: the same seed gives other music when steps are asked in another order, near the edge of a block, or for other entries."""
    seed, item, vocab, coarse = 2**40, 2, 13, STAGE_IDS["coarse"]
    whole = gumbel(coarse, seed, item, 0, 3 * STEPS_AHEAD, vocab)
    for order in ((0, 31, 32, 33, 64), (33, 31, 64, 32, 0), (95, 94, 93)):
        drawn = SeededNoise(coarse, seed, item, vocab)
        for step in order:
            np.testing.assert_array_equal(drawn(step), whole[step])
    for size in (1, 4, 6, 12):  # entry v does not depend on how many there are
        np.testing.assert_array_equal(gumbel(coarse, seed, item, 5, 2, size), whole[5:7, :size])


class _Counting:
    """A caller's noise that counts how often each step is asked for."""

    def __init__(self) -> None:
        self.asked: dict[tuple[str, int], int] = {}

    def gumbel(self, stage: str, step: int, batch: int, vocab: int) -> np.ndarray:
        self.asked[stage, step] = self.asked.get((stage, step), 0) + 1
        return np.random.default_rng([len(stage), step, self.asked[stage, step]]).standard_normal((batch, vocab)).astype(np.float32)


def test_a_callers_noise_is_asked_once_for_all_items() -> None:
    """Fault: an item that draws from another's row, or a source that gives other numbers each time it is asked: one item would get the
    first ones, the next item others. Batches of steps that nobody asks for any more are not kept."""
    source = _Counting()
    items = [item.of("coarse", 7) for item in CallerNoise(source, 3).items()]
    rows = [[item(step) for item in items] for step in range(3 * STEPS_AHEAD)]
    assert set(source.asked.values()) == {1} and len(source.asked) == 3 * STEPS_AHEAD
    for step, drawn in enumerate(rows):
        expected = np.random.default_rng([len("coarse"), step, 1]).standard_normal((3, 7)).astype(np.float32)
        np.testing.assert_array_equal(drawn, expected)
    items[0](0)
    assert source.asked["coarse", 0] == 2, "every step is kept for ever"


def test_every_coordinate_counts() -> None:
    """Fault: two seeds, candidates, stages or steps share their noise; above all seeds that differ above 32 bits only."""
    seeds, items, stages, steps = (0, 1, 2**32, 2**32 + 1, 2**63), (0, 1, 2), ("semantic", "coarse", "fine"), (0, 1, 31, 32, 64, 1000)
    drawn = {
        gumbel(STAGE_IDS[stage], seed, item, step, 1, 8).tobytes()
        for seed, item, stage, step in itertools.product(seeds, items, stages, steps)
    }
    assert len(drawn) == len(seeds) * len(items) * len(stages) * len(steps)


def test_distribution() -> None:
    """Fault: the bits are right and the formula is not. Bounds are four standard errors; the Kolmogorov distance's is its 0.1 % point."""
    values = np.concatenate([gumbel(STAGE_IDS["semantic"], 1234, item, 0, 32, 2048).ravel() for item in range(4)]).astype(np.float64)
    n = values.size
    variance = math.pi**2 / 6
    assert abs(values.mean() - np.euler_gamma) < 4 * math.sqrt(variance / n)
    assert abs(values.var() - variance) < 4 * variance * math.sqrt((5.4 - 1) / n)  # 5.4: the fourth standardized moment of a Gumbel
    empirical = (np.arange(n) + 0.5) / n
    assert np.abs(np.exp(-np.exp(-np.sort(values))) - empirical).max() < 1.95 / math.sqrt(n)


@pytest.mark.parametrize(("bits", "expected"), [(0, -math.log(25 * math.log(2))), (0xFFFFFFFF, 25 * math.log(2))])
def test_extreme_bits_give_finite_noise(monkeypatch, bits: int, expected: float) -> None:
    """Fault: a uniform of 0 or 1 makes the noise infinite, about once in 16 million draws: u must stop at 2**-25 from both ends."""
    monkeypatch.setattr(noise, "philox", lambda counter, key: np.full(counter.shape, bits, np.uint32))
    np.testing.assert_allclose(gumbel(STAGE_IDS["fine"], 0, 0, 0, 1, 3), expected, rtol=1e-6)
