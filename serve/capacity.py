"""What this machine can carry: audio seconds made in a second, by how many clips run together, measured while it works.

A stream plays one second a second. One more is admitted while the clips that then run together are made faster than that, by a margin; so
the promise to those who listen already is kept, and whoever comes too late is told when a place will be free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..runtime.scheduler import Activity

MARGIN = 1.15  # how much faster than they play clips must be made
_FORGET_S = 60.0  # busy seconds in which a measurement loses half of its weight
_LEAST_S = 0.5  # busy seconds that say something


@dataclass
class _Measured:
    audio_s: float = 0.0
    busy_s: float = 0.0

    @property
    def pace(self) -> float | None:
        """Audio seconds per busy second."""
        return self.audio_s / self.busy_s if self.busy_s >= _LEAST_S and self.audio_s else None

    def note(self, audio_s: float, busy_s: float) -> None:
        kept = 0.5 ** (busy_s / _FORGET_S)
        self.audio_s, self.busy_s = self.audio_s * kept + audio_s, self.busy_s * kept + busy_s


class Capacity:
    """The pace of one loaded bundle."""

    def __init__(self) -> None:
        self._of: dict[int, _Measured] = {}  # by the number of clips that run
        self._seen: Activity | None = None
        self._first_s: float | None = None  # to the first audio of a stream, as the last ones took

    def look(self, activity: Activity) -> None:
        """Note what was done since the last look, if as many clips ran then as now."""
        before, self._seen = self._seen, activity
        if before is not None and activity.tasks and before.tasks == activity.tasks and activity.busy_s > before.busy_s:
            measured = self._of.setdefault(activity.tasks, _Measured())
            measured.note(activity.audio_s - before.audio_s, activity.busy_s - before.busy_s)

    def note_first(self, seconds: float) -> None:
        """Note how long a stream took to its first audio."""
        self._first_s = seconds if self._first_s is None else 0.7 * self._first_s + 0.3 * seconds

    @property
    def paces(self) -> dict[int, float]:
        """Return what was measured: clips -> audio seconds per second."""
        return {count: pace for count, one in self._of.items() if (pace := one.pace) is not None}

    @property
    def first_s(self) -> float:
        """Return in how many seconds a stream that is admitted now will sound."""
        return self._first_s or 0.0

    def pace(self, clips: int) -> float | None:
        """Return the audio seconds made in a second while so many clips run; None if nothing was measured yet.

        Of more clips than ever ran the pace of the most that did is taken: together they are not slower.
        """
        known = self.paces
        if not known:
            return None
        return max((pace for count, pace in known.items() if count <= clips), default=min(known.values()))

    @property
    def streams(self) -> float:
        """How many streams play without a gap, at least one; inf if nothing was measured yet."""
        count = 1
        while (pace := self.pace(count + 1)) is not None and pace >= MARGIN * (count + 1):
            count += 1
        return count if self.pace(1) is not None else math.inf

    def admits(self, playing: int, activity: Activity) -> bool:
        """Return whether one more stream would let nobody run dry. playing: streams that are being made."""
        if playing == 0:
            return True
        if playing + 1 > self.streams:
            return False
        # a newcomer goes first until it sounds: whoever plays must have as much in hand
        return activity.silent == 0 or activity.in_hand_s > (activity.silent + 1) * self.first_s
