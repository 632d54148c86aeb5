"""The last samples of a session, to be sent, sent again after a cut, and recorded."""

from __future__ import annotations

from collections import deque

import numpy as np


class Kept:
    """Samples by their number in the session, float32; the oldest are let go."""

    def __init__(self, seconds: float, rate: int) -> None:
        self._most = round(seconds * rate)  # that are kept of those that were sent
        self._parts: deque[np.ndarray] = deque()
        self.start = self.stop = 0  # the first that is kept, and one past the last

    def append(self, audio: np.ndarray) -> None:
        """Add the samples that follow, float32 [t]."""
        self._parts.append(audio)
        self.stop += len(audio)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return samples float32 [stop - start], all of which are kept."""
        assert self.start <= start <= stop <= self.stop, (self.start, start, stop, self.stop)
        found, at = [np.zeros(0, np.float32)], self.start
        for part in self._parts:
            found.append(part[max(start - at, 0) : max(stop - at, 0)])
            at += len(part)
        return np.concatenate(found)

    def sent(self, sample: int) -> None:
        """Let go of what is older than is kept, once everything before a sample was sent."""
        while self._parts and self.start + len(self._parts[0]) <= sample - self._most:
            self.start += len(self._parts.popleft())

    def cut(self, sample: int) -> None:
        """Forget everything from a sample on: it is not heard any more."""
        whole = self.read(self.start, max(sample, self.start))
        self._parts = deque([whole])
        self.stop = self.start + len(whole)
