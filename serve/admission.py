"""Who streams now, who waits for a moment, and who is told when to come back.

In: jobs whose clients listen. Out: a place for each, or a refusal. A stream gets a place if nobody runs dry by it (`Capacity`). One that
will get it soon waits for it: of those that wait, the owner with the fewest places is first. All others are told after how many seconds
there will be a place. Who comes back then goes before newcomers, to whom such promises count as a queue: otherwise a server that is asked
for twice what it can make would tell most of those who come back to come back again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ..runtime.stream import Stream
from .capacity import Capacity
from .errors import MOST_RETRY_S, Refusal
from .jobs import Job
from .metrics import Metrics
from .models import Loaded
from .settings import Limits
from .tickets import Tickets, now

_LOOK_S = 0.01
_PATIENCE = 0.25  # of the time that somebody was told: so much longer it waits for the place it was promised, and is not refused again


@dataclass(eq=False)
class Place:
    """A stream that is made."""

    job: Job
    capacity: Capacity
    playing: int  # that sounded when it was admitted
    silent: int  # that did not
    promised_s: float  # to its first audio, from the request
    admitted: float
    stream: Stream | None = None  # once it has begun
    sounds: bool = False
    taken_s: float = 0.0  # of the clip, that was handed over

    @property
    def made(self) -> bool:
        """Whether it needs nothing any more, even if its client has not read all of it."""
        return self.stream is not None and self.stream.made

    @property
    def left_s(self) -> float:
        """Seconds of audio that are still to be made."""
        if self.job.asked.arguments["seconds"] is None:  # without end: as long as the server lets it
            return self.job.asked.seconds - self.taken_s
        shares = [] if self.stream is None else [done / total for done, total in self.stream.progress.values() if total]
        return self.job.asked.seconds * (1 - min(shares, default=0.0))

    def reached(self, taken_s: float, measured: bool) -> None:
        """Note how many seconds of the clip have been handed over. measured: whether its time to the first of them says something."""
        self.taken_s, first, self.sounds = taken_s, not self.sounds, True
        if first and measured:
            self.capacity.note_first(now() - self.admitted, self.playing, self.silent)


class Admission:
    """The places of one model."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits, self._metrics = limits, metrics
        self.places: list[Place] = []
        self._waiting: list[tuple[Job, bool]] = []  # and whether it was promised a place
        self._tickets = Tickets()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def place(self, job: Job, loaded: Loaded) -> AsyncIterator[Place]:
        """Hold a place for a job, waiting for it for a moment. Raises Refusal (429)."""
        asked = now()
        await self._until_admitted(job, loaded)
        admitted, (playing, silent) = now(), self._count()
        place = Place(job, loaded.capacity, playing, silent, admitted - asked + loaded.capacity.first_s(playing, silent), admitted)
        self.places.append(place)
        try:
            yield place
        finally:
            self.places.remove(place)

    async def _until_admitted(self, job: Job, loaded: Loaded) -> None:
        told_s = self._tickets.take(job)
        promised = told_s is not None
        if not self._waiting and self._admits(job, loaded, promised):
            return
        ahead = len(self._waiting) + (0 if promised else self._tickets.expected())
        if not promised and (wait_s := self._free_in(ahead, loaded)) > self._limits.wait_s:
            raise self._refusal(job, loaded, wait_s)
        end = now() + 2 * self._limits.wait_s + _PATIENCE * (told_s or 0.0)
        self._waiting.append((job, promised))
        try:
            while self._first() is not job or not self._admits(job, loaded, True):
                if now() > end:
                    raise self._refusal(job, loaded, self._free_in(ahead, loaded))
                await asyncio.sleep(_LOOK_S)
        finally:
            self._waiting.remove((job, promised))

    def _refusal(self, job: Job, loaded: Loaded, wait_s: float) -> Refusal:
        self._metrics.refused("capacity")
        said = f"{sum(self._count())} streams are playing, and this machine makes {loaded.capacity.streams} as fast as they play"
        if wait_s > MOST_RETRY_S or not self._tickets.give(job, math.ceil(wait_s)):
            return Refusal(429, f"{said}; all that it makes in {MOST_RETRY_S} s is promised to others.", code="rate_limit_exceeded")
        return Refusal(429, f"{said}: ask again later.", code="rate_limit_exceeded", retry_s=wait_s)

    @property
    def _making(self) -> list[Place]:
        return [one for one in self.places if not one.made]

    def _count(self) -> tuple[int, int]:
        """Return how many streams that are made sound, and how many do not yet."""
        sounding = [one.sounds for one in self._making]
        return sum(sounding), len(sounding) - sum(sounding)

    def _first(self) -> Job:
        """Return who of those that wait is first."""
        owners = [one.job.owner for one in self._making]
        return min(self._waiting, key=lambda one: (owners.count(one[0].owner), not one[1]))[0]

    def _admits(self, job: Job, loaded: Loaded, promised: bool) -> bool:
        """Return whether a job can have a place now. promised: whether it goes before those who were told to come back."""
        owners, streams = [one.job.owner for one in self._making], loaded.capacity.streams
        own = owners.count(job.owner)
        if len(owners) + 1 >= streams and len(owners) > own > 0:  # the last place is for who has none
            return False
        held = 0 if promised else self._tickets.expected(self._hold_s(loaded))
        if owners and len(owners) + 1 + held > streams:
            return False
        return loaded.capacity.admits(*self._count(), loaded.model.activity.in_hand_s)

    def _hold_s(self, loaded: Loaded) -> float:
        """Return for how long a stream that gets a place now has it, about."""
        left = [one.left_s for one in self._making]
        return sum(left) / max(len(left), 1) / self._each(loaded)

    def _each(self, loaded: Loaded) -> float:
        """Return the audio seconds that each stream makes in a second, while there are as many as there can be."""
        streams = loaded.capacity.streams
        return (loaded.capacity.pace(streams) or 1.0) / streams

    def _free_in(self, ahead: float, loaded: Loaded) -> float:
        """Return in how many seconds there will be a place for one more, behind so many that wait for theirs."""
        making, each = self._making, self._each(loaded)
        turns = len(making) + ahead + 1 - loaded.capacity.streams  # streams that must end before
        if turns <= 0 or not making:
            return 0.0
        # a clip of which much was made and not read is made as it plays, all others as fast as can be
        ends = sorted(
            one.left_s / (1.0 if one.job.asked.seconds - one.left_s - one.taken_s > self._limits.ahead_s / 2 else each) for one in making
        )
        rounds, over = divmod(max(turns - 1, 0), len(making))  # each place is taken again by a clip as long as these are
        return ends[int(over)] + rounds * sum(one.job.asked.seconds for one in making) / len(making) / each
