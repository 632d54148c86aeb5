"""What this machine can carry, measured while it works: audio per second by how many clips run together, and the time to a first audio.

A stream plays one second a second. So many play without a gap as are made that fast together, by a margin. A newcomer goes first until it
sounds: whoever plays must have as much in hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..runtime.scheduler import Activity

MARGIN = 1.15  # how much faster than they play clips must be made
_WINDOW_S = 3.0  # busy seconds of one measurement: work is done long before the audio that it is for
_KEPT_S = 30.0  # busy seconds of measurements by which a pace is known: older ones are forgotten
_OTHERS = 4.0  # times less a measurement says of other numbers of clips
_MOST_AT_ONCE = 4.0  # times faster or slower than known that one measurement may be
_LATE = 3.0  # times the average error that a first audio may be late, and nobody runs dry
_KEPT = 0.9  # of the weight of a first audio, when the next one is noted


@dataclass
class _Pace:
    pace: float  # audio seconds per busy second
    busy_s: float = 0.0  # by which it is known


class Capacity:
    """The pace of one loaded bundle."""

    def __init__(self) -> None:
        self._paces: dict[int, _Pace] = {}  # by the clips that run together
        self._began: Activity | None = None  # when the measurement that is under way began
        self._seen: Activity | None = None
        self._clips_s = 0.0  # busy seconds of it, times the clips that ran
        self._firsts = _Line()
        self._off_s = 0.0  # that first audios come sooner or later than thought, on average
        self._slots = math.inf

    # --- measuring

    def look(self, activity: Activity) -> None:
        """Note what was done since the last look. A measurement ends after some work, or when nothing is left to do."""
        before, self._seen, self._slots = self._seen, activity, activity.slots
        if before is None or self._began is None:
            self._began = activity
            return
        self._clips_s += max(before.tasks, activity.tasks, 1) * (activity.busy_s - before.busy_s)
        busy_s, audio_s = activity.busy_s - self._began.busy_s, activity.audio_s - self._began.audio_s
        if busy_s > 0 and (not activity.tasks or (busy_s >= _WINDOW_S and audio_s)):
            if audio_s:
                self._note(round(self._clips_s / busy_s), audio_s / busy_s, busy_s)
            self._began, self._clips_s = activity, 0.0

    def _note(self, clips: int, pace: float, busy_s: float) -> None:
        """Note a pace. It says something of other numbers of clips too, though less: of a machine that has become slower or faster, and
        that more clips are not slower together. What was measured while the machine had something else to do would otherwise be believed
        for ever, since it is by that that so many clips do not run again."""
        known = self._paces.setdefault(clips, _Pace(self.pace(clips) or pace))
        times = min(max(pace / known.pace, 1 / _MOST_AT_ONCE), _MOST_AT_ONCE)
        for one in self._paces.values():
            one.pace *= times ** (busy_s / (busy_s + one.busy_s * (1 if one is known else _OTHERS)))
        for count, one in self._paces.items():
            if count > clips and one.pace < known.pace:
                one.pace *= (known.pace / one.pace) ** (busy_s / (busy_s + _KEPT_S * _OTHERS))
        known.busy_s = min(known.busy_s + busy_s, _KEPT_S)

    def note_first(self, seconds: float, playing: int, silent: int) -> None:
        """Note how long a stream took to its first audio, from when it was admitted beside so many others."""
        known = self.first_s(playing, silent)
        self._off_s = _KEPT * self._off_s + (1 - _KEPT) * abs(seconds - known) if known else seconds  # the first one may be off by as much
        self._firsts.note(playing + silent, seconds / (silent + 1))

    # --- what follows from it

    @property
    def paces(self) -> dict[int, float]:
        """Return what was measured: clips -> audio seconds per second."""
        return {clips: one.pace for clips, one in self._paces.items()}

    def pace(self, clips: int) -> float | None:
        """Return the audio seconds made in a second while so many clips run; None if nothing was measured.

        Between numbers that were measured it lies on a line; of more than ever ran the pace of the most that did is taken.
        """
        known = sorted(self._paces)
        return float(np.interp(clips, known, [self._paces[count].pace for count in known])) if known else None

    @property
    def streams(self) -> int:
        """How many streams play without a gap: at least one, at most as many as there are slots."""
        count = 1
        while count < self._slots and (self.pace(count + 1) or 0.0) >= MARGIN * (count + 1):
            count += 1
        return count

    def first_s(self, playing: int, silent: int) -> float:
        """Return in how many seconds a stream will sound that is admitted beside so many that sound, and after so many that do not."""
        return (silent + 1) * self._firsts.at(playing + silent)

    def admits(self, playing: int, silent: int, in_hand_s: float) -> bool:
        """Return whether one more stream would let nobody run dry. in_hand_s: of who plays and has least."""
        if playing + silent == 0:
            return True
        return playing + silent + 1 <= self.streams and in_hand_s > self.first_s(playing, silent) + _LATE * self._off_s


class _Line:
    """A straight line through what was measured last: least squares, older points with less weight."""

    def __init__(self) -> None:
        self._sums = [0.0] * 5  # of weights, x, y, x², xy

    def note(self, x: float, y: float) -> None:
        self._sums = [_KEPT * kept + new for kept, new in zip(self._sums, (1.0, x, y, x * x, x * y), strict=True)]

    def at(self, x: float) -> float:
        """Return y, 0 if nothing is known; it never falls as x grows, and is never below 0."""
        count, of_x, of_y, of_xx, of_xy = self._sums
        if not count:
            return 0.0
        variance = of_xx / count - (of_x / count) ** 2
        slope = (of_xy / count - of_x * of_y / count**2) / variance if variance > 1e-6 else 0.0
        return of_y / count + min(max(slope, 0.0), of_y / of_x if of_x else 0.0) * (x - of_x / count)
