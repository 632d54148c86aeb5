"""A clip on its way through the scheduler: its windows that run, and what the codec has made of its frames.

In: a clip, the codec's graph, the samples that are wanted. Out: chunks. The scheduler's thread alone calls it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .batch import Made
from .bundle import STAGES, Codec
from .clip import Clip
from .codec import CodecStream, Graph, chunk_frames
from .sequence import Sequence


@dataclass(frozen=True)
class Chunk:
    """A piece of the music."""

    audio: np.ndarray  # float32 [t]
    start_s: float  # of its first sample, in the clip
    sample_rate: int  # Hz


class Track:
    """One clip, its codec, and its samples so far."""

    def __init__(self, clip: Clip, codec: Codec, graph: Graph, first: int, last: int | None) -> None:
        """first, last: the samples that are wanted, the last one excluded; None: all that come."""
        self.clip, self._codec = clip, codec
        self._stream, self.decoded = CodecStream(codec, graph), 0  # frames that the codec has been given
        self._first, self._last = first, last
        self._position = 0  # samples of the clip that were decoded
        self.running: dict[str, set[Sequence]] = {stage: set() for stage in STAGES}
        self.done = False

    @property
    def can_decode(self) -> bool:
        """Whether the codec has frames for another chunk, or for the last one."""
        if self.done:
            return False
        ready = self.clip.frames("coarse") >= self.clip.plan.lead and self.clip.frames("fine") - self.decoded >= self._stream.missing
        return ready or self.clip.done

    def frames_until_next(self, stage: str) -> int:
        """Return after how many frames of a stage, a batch's, the next stage has something new to do; at least 1."""
        to_chunk = self.decoded + self._stream.missing - self.clip.frames("fine")
        missing = to_chunk if stage == "fine" else self.clip.frames_until_next(stage)
        return max(missing * (1 if stage == "semantic" else self._codec.groups), 1)

    def sounds_until_s(self, stage: str) -> float:
        """Return the second to which the clip can be decoded, at least, before the stage's next window has begun."""
        frames = self.clip.needed_at_frame(stage) - self._codec.lookahead_frames - chunk_frames(self._codec) + 1
        return frames * self._codec.samples_per_frame / self._codec.sample_hz

    def begin(self, stage: str) -> Sequence:
        """Begin the stage's next window."""
        sequence = self.clip.begin(stage)
        self.running[stage].add(sequence)
        return sequence

    def take(self, stage: str, made: Made) -> None:
        """Take the tokens of a sequence."""
        self.clip.take(made.sequence, made.tokens, made.done)
        if made.done:
            self.running[stage].discard(made.sequence)

    def decode(self) -> Chunk | None:
        """Decode the next chunk. None: none of its samples is wanted."""
        stop = min(self.decoded + self._stream.missing, self.clip.frames("fine"))
        wave = self._stream.feed(self.clip.codes(self.decoded, stop))
        self.decoded = stop
        if self.clip.done and stop == self.clip.frames("fine"):
            wave = np.concatenate([wave, self._stream.finish()])
            self.done = True
        start = self._position
        self._position += len(wave)
        first, last = max(self._first, start), self._position if self._last is None else min(self._last, self._position)
        if last <= first:
            return None
        return Chunk(wave[first - start : last - start], first / self._codec.sample_hz, self._codec.sample_hz)

    def forget(self, kept_s: float) -> None:
        """Let go of tokens that are more than so many seconds older than what was decoded last."""
        kept = int(kept_s * self._codec.sample_hz / self._codec.samples_per_frame)
        if self.decoded > kept:
            self.clip.forget(self.decoded - kept)
