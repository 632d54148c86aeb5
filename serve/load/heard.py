"""What the listener of a clip hears: bytes of wav or PCM as seconds of audio, and the silence where they come too late."""

from __future__ import annotations

import struct


class Samples:
    """Counts the seconds of audio in bytes of mono or stereo PCM of 16 bits, behind a wav header or bare."""

    def __init__(self, hz: int | None, bare: bool) -> None:
        """hz: rate that the server has stated, for bare PCM."""
        self._header: bytearray | None = None if bare else bytearray()
        self._bytes_per_s = 2 * hz if bare and hz else None

    def seconds(self, data: bytes) -> float:
        """Return the seconds of audio in the next bytes. Raises ValueError for what is no wav of PCM."""
        if self._header is not None:
            self._header += data
            if (found := _wav_format(self._header)) is None:
                return 0.0
            start, self._bytes_per_s = found
            data, self._header = bytes(self._header[start:]), None
        return len(data) / self._bytes_per_s if self._bytes_per_s else 0.0


def _wav_format(header: bytearray) -> tuple[int, int] | None:
    """Return (where the samples begin, bytes per second) of the beginning of a wav; None if more of it is needed."""
    if len(header) >= 12 and (header[:4] != b"RIFF" or header[8:12] != b"WAVE"):
        raise ValueError("the answer is no wav.")
    at, bytes_per_s = 12, 0
    while len(header) >= at + 8:
        name, size = struct.unpack_from("<4sI", header, at)
        if name == b"data":
            return at + 8, bytes_per_s
        if name == b"fmt " and len(header) >= at + 20:
            bytes_per_s = struct.unpack_from("<I", header, at + 16)[0]
        at += 8 + size + size % 2
    return None


class Player:
    """A player that begins with the first audio, and plays on as soon as there is more where it had to wait."""

    def __init__(self) -> None:
        self.first: float | None = None  # when the first audio came
        self.audio_s = 0.0
        self.longest_s = 0.0  # of its silences
        self.dry = 0.0  # when everything that came will have been played

    def note(self, now: float, seconds: float) -> None:
        """Note that so many seconds of audio came."""
        if seconds <= 0:
            return
        if self.first is None:
            self.first = self.dry = now
        self.longest_s = max(self.longest_s, now - self.dry)
        self.dry = max(self.dry, now) + seconds
        self.audio_s += seconds
