"""The clips of one request in the scheduler, and where what is made of them goes: the one end for the scheduler, the other for the caller.

In: chunks, errors and counts from the scheduler's thread. Out: the same in the caller's thread, who waits for them.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from .bundle import STAGES
from .track import Chunk, Track

EVENLY = 0.6  # of a chunk's length: how long after one chunk the next is made, unless there is nothing else to do


class Playback:
    """What a listener hears when: chunks play without a gap from when the first one is made, or with one if they come late."""

    def __init__(self) -> None:
        self._asked = time.perf_counter()
        self._last = self._dry = 0.0  # when the last chunk was made; when everything that was made has been played
        self._length = self._cost = self._spent = 0.0  # seconds: of the last chunk; that its last stages took; that they took since
        self.first_audio_s: float | None = None  # to the first chunk, from when the prompt has been read
        self.gaps: deque[float] = deque(maxlen=4096)  # seconds between two chunks, over the seconds that the second one plays
        self.underruns = 0

    @property
    def sounds(self) -> bool:
        """Whether a chunk has been made."""
        return self.first_audio_s is not None

    @property
    def due(self) -> float:
        """When the last stages of the next chunk must begin, so that chunks come evenly and before the listener runs dry."""
        return min(self._last + EVENLY * self._length, self._dry) - self._cost

    @property
    def in_hand_s(self) -> float:
        """Seconds that were made and have not been played yet."""
        return self._dry - time.perf_counter()

    def spend(self, seconds: float) -> None:
        """Note that the last stages of a chunk took so long."""
        self._spent += seconds

    def note(self, chunk: Chunk) -> None:
        """Note that a chunk has been made."""
        now, length = time.perf_counter(), len(chunk.audio) / chunk.sample_rate
        if self.first_audio_s is None:
            self.first_audio_s, self._dry = now - self._asked, now
        else:
            self.gaps.append((now - self._last) / length)
            self.underruns += now > self._dry
            self._dry = max(self._dry, now)
        self._last, self._length = now, length
        self._cost, self._spent = self._spent, 0.0
        self._dry += length


class Task:
    """The clips of one request."""

    def __init__(
        self, tracks: Sequence[Track], live: bool = False, ahead_s: float = 0.0, reports: bool = False, kept_s: float | None = None
    ) -> None:
        """live: whether someone listens, to the one clip there is; ahead_s: seconds that such a clip may be ahead of its listener.

        reports: whether the caller wants counts; kept_s: seconds of tokens that are kept behind the listener, None for all.
        """
        self.tracks, self.live, self.ahead_s, self.reports, self.kept_s = list(tracks), live, ahead_s, reports, kept_s
        self.timings: dict[str, float] = {}  # stage -> seconds
        self.came = time.perf_counter()
        self.playback = Playback()
        self.chunks: list[list[Chunk]] = [[] for _ in tracks]  # of clips that are collected
        self.waiters: set[Callable[[], object]] = set()  # called in the scheduler's thread when there is something to take
        self._changed = threading.Condition()
        self._reported = ("", 0, 0)  # what was reported last
        self._events: deque[Chunk | tuple[str, int, int]] = deque()
        self._ended = False
        self._error: BaseException | None = None
        self.taken_s = 0.0  # of the clip, that the listener has taken

    # --- the scheduler's end

    @property
    def frames(self) -> float:
        """Frames that are made for it at most."""
        return sum(math.inf if (frames := track.clip.plan.frames) is None else frames for track in self.tracks)

    @property
    def in_hand_s(self) -> float:
        """Seconds before its listener runs dry: who has not taken what is there, as one that pauses, plays nothing yet."""
        return max(self.playback.in_hand_s, sum(len(one.audio) / one.sample_rate for one in list(self._events) if isinstance(one, Chunk)))

    def may_begin(self, track: Track, stage: str) -> bool:
        """Return whether a clip's next window of a stage may begin now."""
        if not track.clip.ready(stage):
            return False
        return not self.live or track.sounds_until_s(stage) < self.taken_s + self.ahead_s or self._is_awaited(track)

    def _is_awaited(self, track: Track) -> bool:
        """Return whether the listener has taken all there is, and more comes only if a window begins, however little `ahead_s` is."""
        return not self._events and not self.stages() and not track.can_decode

    def next_stages(self) -> Sequence[str]:
        """Return the stages of which windows may begin, the latest one first; those of clips that are collected follow one another."""
        if self.live:
            return STAGES[::-1]
        return next(((stage,) for stage in STAGES if any(track.running[stage] or track.clip.ready(stage) for track in self.tracks)), ())

    def stages(self) -> list[str]:
        """Return the stages of which sequences run, in their order."""
        return [stage for stage in STAGES if any(track.running[stage] for track in self.tracks)]

    def spend(self, stage: str, seconds: float) -> None:
        """Note how long a stage took."""
        self.timings[stage] = self.timings.get(stage, 0.0) + seconds
        if stage in ("fine", "codec"):
            self.playback.spend(seconds)

    def put(self, track: Track, chunk: Chunk) -> None:
        """Hand a chunk over."""
        self.playback.note(chunk)
        if self.live:
            self._post(chunk)
        else:
            self.chunks[self.tracks.index(track)].append(chunk)

    def report(self, stage: str) -> None:
        """Hand over how much of a stage is done."""
        if self.reports:
            done, total = map(sum, zip(*(track.clip.progress(stage) for track in self.tracks), strict=True))
            if (stage, done, total) != self._reported:  # an end token makes nothing
                self._reported = stage, done, total
                self._post(self._reported)

    def report_decoded(self) -> None:
        """Hand over how many frames have been decoded."""
        if self.reports:
            self._post(("codec", sum(track.decoded for track in self.tracks), sum(track.clip.frames("fine") for track in self.tracks)))

    def end(self, error: BaseException | None) -> None:
        """Note that nothing more comes."""
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
        self._wake()

    def _post(self, event: Chunk | tuple[str, int, int]) -> None:
        with self._changed:
            self._events.append(event)
        self._wake()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
            waiters = list(self.waiters)
        for wake in waiters:
            wake()

    # --- the caller's end

    @property
    def ended(self) -> bool:
        """Whether nothing more comes; something may be left to be taken."""
        return self._ended

    def take(self, timeout: float | None = None) -> Chunk | tuple[str, int, int] | None:
        """Return the next chunk, or (stage, done, total), waiting for it. None: there is nothing after `timeout` seconds, or at the end.

        Raises the error that ended the task, once what came before it has been taken.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._events or self._ended, timeout):
                return None
            if self._events:
                event = self._events.popleft()
                if isinstance(event, Chunk):
                    self.taken_s = event.start_s + len(event.audio) / event.sample_rate
                return event
        error = self._error
        if not self.live:  # nobody asks again, and the error's traceback would keep what failed, and whatever that refers to
            self._error = None
        if error is not None:
            try:
                raise error
            finally:
                del error
        return None
