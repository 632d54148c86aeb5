"""The clock of a client: how far it has played what it was sent."""

from __future__ import annotations

import time

_TRUST_S = 1.0  # after a report of the client: it may have stopped to play since, or sleeps


class Clock:
    """Plays sample after sample from when the first is sent, as fast as its client's clock goes; where nothing more was sent it waits.

    A client may say how far it is. Between two reports, and for one that says nothing, the time that passes counts.
    """

    def __init__(self, rate: int) -> None:
        """rate: samples a second, in Hz."""
        self._rate, self._at, self._since = rate, 0, time.monotonic()
        self._runs = self._reports = self._dry = False
        self.underruns = 0  # how often it has waited for more

    def start(self, sample: int) -> None:
        """Play from a sample on, once it is sent."""
        self._at, self._reports, self._dry = sample, False, True
        self.resume()

    def pause(self, sent: int) -> None:
        """Play nothing until `resume`. sent: see `played`."""
        self._at, self._runs = self.played(sent, more=False), False

    def resume(self) -> None:
        """Go on."""
        self._since, self._runs = time.monotonic(), True

    def report(self, sample: int, sent: int) -> None:
        """Note what the client says: it has played all before a sample. sent: one past the last that it was sent."""
        self._at, self._since, self._reports = min(max(sample, self._at), sent), time.monotonic(), True

    def played(self, sent: int, more: bool = True) -> int:
        """Return the sample that is played next. sent: one past the last that was sent; more: whether there is to be more."""
        now = time.monotonic()
        seconds = now - self._since if self._runs else 0.0
        at = self._at + int(min(seconds, _TRUST_S if self._reports else seconds) * self._rate)
        if at < sent:
            self._dry = False
            return at
        if not self._dry and more and self._runs:
            self.underruns += 1
        self._at, self._since, self._dry = sent, now, True
        return sent
