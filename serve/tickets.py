"""Promises to those who were refused: when each may come back, and how many do.

A ticket is for the same request of the same owner. Nothing is kept free for it; whoever counts places counts those that will be asked for.
"""

from __future__ import annotations

import asyncio

from .jobs import Job

_LATE_S = 2.0  # that a ticket is good for after its time, and before it: clients round as they like
_MOST = 10_000
_LAST = 0.05  # weight of the last ticket in the share of those that are used


def now() -> float:
    """Return the time of the event loop, in seconds."""
    return asyncio.get_running_loop().time()


class Tickets:
    """The tickets for one model."""

    def __init__(self) -> None:
        self._due: dict[tuple[str, str], tuple[float, float]] = {}  # owner and hash of the request -> when it may come, after what time
        self._used = 1.0  # share

    def give(self, job: Job, after_s: float) -> bool:
        """Promise a place. Return whether that can be kept in mind."""
        self._expire()
        if len(self._due) >= _MOST:
            return False
        self._due[job.owner, job.body_sha256] = now() + after_s, after_s
        return True

    def take(self, job: Job) -> float | None:
        """Return after how many seconds a job was promised a place, if that is about now; the ticket is used up."""
        self._expire()
        due, after_s = self._due.get((job.owner, job.body_sha256), (float("inf"), 0.0))
        if due > now() + _LATE_S:
            return None
        del self._due[job.owner, job.body_sha256]
        self._used += _LAST * (1 - self._used)
        return after_s

    def expected(self, within_s: float = float("inf")) -> float:
        """Return how many will come back within so many seconds, as far as can be told from those before them."""
        self._expire()
        end = now() + within_s
        return self._used * sum(due < end for due, _ in self._due.values())

    def _expire(self) -> None:
        past = now() - _LATE_S
        for key in [key for key, (due, _) in self._due.items() if due < past]:
            del self._due[key]
            self._used -= _LAST * self._used
