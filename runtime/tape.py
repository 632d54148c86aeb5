"""Tokens as they grow: an array that is appended to, read by absolute place, and cut off at the front where nobody reads any more."""

from __future__ import annotations

import numpy as np


class Tape:
    """int64 tokens, numbered from the clip's first one on."""

    def __init__(self, tokens: np.ndarray | None = None) -> None:
        tokens = np.zeros(0, np.int64) if tokens is None else np.asarray(tokens, np.int64).ravel()
        self.first, self._count = 0, len(tokens)  # the number of the first one that is kept; how many are kept
        self._array = tokens.copy()

    def __len__(self) -> int:
        """Return the number of tokens so far, those that were cut off included."""
        return self.first + self._count

    def append(self, tokens: np.ndarray) -> None:
        needed = self._count + len(tokens)
        if needed > len(self._array):
            grown = np.empty(max(needed, 2 * len(self._array)), np.int64)
            grown[: self._count] = self._array[: self._count]
            self._array = grown
        self._array[self._count : needed] = tokens
        self._count = needed

    def read(self, start: int, stop: int | None = None) -> np.ndarray:
        """Return a copy of the tokens from number `start` to `stop`, by default the last, int64 [n]."""
        assert start >= self.first, (start, self.first)
        stop = len(self) if stop is None else min(stop, len(self))
        return self._array[start - self.first : max(stop, start) - self.first].copy()

    def forget(self, before: int) -> None:
        """Cut off the tokens before number `before`, once they are most of what is kept."""
        gone = min(before, len(self)) - self.first
        if 2 * gone > self._count:
            self._array = self._array[gone : self._count].copy()
            self.first, self._count = self.first + gone, self._count - gone
