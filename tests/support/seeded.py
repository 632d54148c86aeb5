"""The noise of seeds as a caller gives it to `generate`."""

import numpy as np

from musiclm_deploy.runtime.noise import STAGE_IDS, gumbel


class Seeded:
    """A `NoiseSource` with the seeded noise of the request's items."""

    def __init__(self, items: list[tuple[int, int]]) -> None:
        """items: (seed, the candidate's number under it)."""
        self._items = items

    def gumbel(self, stage: str, step: int, batch: int, vocab: int) -> np.ndarray:
        assert batch == len(self._items)
        return np.concatenate([gumbel(STAGE_IDS[stage], seed, item, step, 1, vocab) for seed, item in self._items])
