"""Long clips by windows: what each window of a stage reads, what it is told already, and what it makes.

In: a duration in frames and samples, the manifest's trained windows, the caller's own. Out: a `WindowPlan`. Pure arithmetic on counts: it
reads no tokens and no model. `runtime.clip` runs what is planned here.

Semantic and coarse windows come one after another, each told the tail of the one before; fine windows do not overlap. With
`unique_consecutive` semantic tokens carry no time: each coarse window has a semantic run of its own. Without it they come at a fixed rate,
in windows of their own, and each coarse window sees the slice that sounds with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Any

from .arguments import whole_number
from .bundle import STAGES, Manifest


@dataclass(frozen=True)
class Window:
    """How a stage goes over a clip that is longer than its trained window, in its own unit: semantic tokens, or frames (coarse, fine)."""

    length: int | None = None  # of a window, the overlap included; by default the trained window
    overlap: int | None = None  # how much of it is the tail of the window before; by default half of it, and always 0 in fine

    def __post_init__(self) -> None:
        for name, least in (("length", 1), ("overlap", 0)):
            given = getattr(self, name)
            value = whole_number(given)
            if given is not None and (value is None or value < least):
                raise ValueError(f"a window's {name} must be a whole number of at least {least}, got {given!r}.")
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Span:
    """One window of a stage, in tokens or frames of the clip."""

    start: int  # the first that it reads
    new: int  # the first that it makes: the ones before are known from the window before
    stop: int  # one past the last


class Spans(Sequence[Span]):
    """Windows of at most `length` over [0, total), or without end: computed when they are asked for."""

    def __init__(self, total: int | None, length: int, overlap: int = 0, first: Sequence[int] = ()) -> None:
        """overlap: how much each window but the first reads of the one before. first: where the windows at the beginning stop, in
        ascending order, by default `length`; with an overlap they all read from 0, and the last of them must be `length` long."""
        self.total, self.length, self.overlap = total, length, overlap
        self.first = tuple(first) or (length,)
        assert not overlap or self.first[-1] == length, (self.first, length)

    def _stop(self, index: int) -> int:
        beyond = index + 1 - len(self.first)
        return self.first[index] if beyond <= 0 else self.first[-1] + beyond * (self.length - self.overlap)

    def __len__(self) -> int:
        if self.total is None:
            raise TypeError("an endless clip has no last window")
        return self.window_of(max(self.total, 1) - 1) + 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        new = self._stop(index - 1) if index > 0 else 0
        if index < 0 or (self.total is not None and index > 0 and new >= self.total):
            raise IndexError(index)
        start = new if not self.overlap else 0 if index < len(self.first) else new - self.overlap
        stop = self._stop(index)
        return Span(start, new, stop if self.total is None else min(stop, self.total))

    def __repr__(self) -> str:
        return f"Spans({self.total}, {self.length}, {self.overlap}, {self.first})"

    def over(self, total: int) -> Spans:
        """Return the same windows over another length."""
        return Spans(total, self.length, self.overlap, self.first)

    def window_of(self, position: int) -> int:
        """Return the number of the window that makes a position."""
        index = next((index for index, stop in enumerate(self.first) if position < stop), None)
        return len(self.first) + (position - self.first[-1]) // (self.length - self.overlap) if index is None else index


@dataclass(frozen=True)
class WindowPlan:
    """The windows of a clip, the same for each candidate of a request; a candidate may end before its last one."""

    coarse: Spans  # frames
    fine: Spans  # frames
    semantic: Spans | None  # tokens, where they carry time; None: each coarse window has a run of its own
    runs: tuple[int, ...]  # the most semantic tokens that each run makes, the last number for all that follow; where they carry no time
    tokens_per_frame: Fraction  # semantic tokens in the time of a frame, before repeats are collapsed
    semantic_length: int  # most semantic tokens that a window sees
    semantic_overlap: int | None  # tokens told from the run before; None: the share that the coarse overlap has of its window
    most_read: int | None = None  # semantic tokens that a coarse window reads at most; None: all that sound with it

    @property
    def frames(self) -> int | None:
        """Frames of the clip; None: it is endless."""
        return self.coarse.total

    @property
    def timed(self) -> bool:
        """Whether semantic tokens carry time."""
        return self.semantic is not None

    @property
    def lead(self) -> int:
        """Coarse frames made before a clip sounds: of windows that grow two, as the third takes longer than the first one plays."""
        second = self.coarse.first[1] if len(self.coarse.first) > 1 else 0
        return second if self.frames is None else min(second, self.frames)

    @property
    def semantic_steps(self) -> int | None:
        """Most semantic tokens of a candidate."""
        if self.semantic is not None:
            return self.semantic.total
        return None if self.frames is None else sum(self.runs)

    def run(self, window: int) -> int:
        """Return how many semantic tokens the run of a coarse window makes at most, where they carry no time."""
        return self.runs[min(window, len(self.runs) - 1)]

    def semantic_prefix(self, window: int, before: int) -> int:
        """Return how many of the `before` semantic tokens of the last run the next one, of this coarse window, is told."""
        if window == 0:
            return 0
        if self.semantic_overlap is not None:
            return min(before, self.semantic_overlap)
        previous, span = self.coarse[window - 1], self.coarse[window]
        return before * (span.new - span.start) // (previous.stop - previous.start)

    def heard_prefix(self, heard: int) -> int:
        """Return how many of the `heard` semantic tokens of a prime the run that goes on from it is told: all, if room is left."""
        if self.semantic_overlap is not None:
            return min(heard, self.semantic_overlap)
        return heard if heard < self.semantic_length else self.semantic_length // 2

    def run_after_prime(self, window: int) -> int:
        """Return the most semantic tokens of the run in which a prime ends, the prime's included."""
        span = self.coarse[window]
        before = math.ceil((span.new - span.start) * self.tokens_per_frame)
        return min(before + self.run(window), self.semantic_length)

    def seen(self, window: int) -> slice:
        """Return the semantic tokens that a coarse window sees, where they carry time: all that sound with it."""
        if self.frames is not None and len(self.coarse) == 1:
            return slice(0, self.most_read or self.semantic_length)  # also what was asked for beyond its time
        return self.in_time(self.coarse[window])

    def in_time(self, span: Span) -> slice:
        """Return the semantic tokens in the time of a coarse window, before repeats are collapsed."""
        start, stop = math.floor(span.start * self.tokens_per_frame), math.ceil(span.stop * self.tokens_per_frame)
        return slice(start, stop if self.most_read is None else min(stop, start + self.most_read))

    def reached(self, window: int, tokens: int) -> bool:
        """Return whether so many semantic tokens go on to what this coarse window makes, where they carry time."""
        return tokens > math.floor(self.coarse[window].new * self.tokens_per_frame)


def one_window(manifest: Manifest, frames: int, semantic_steps: int) -> WindowPlan:
    """Plan a clip of one window of each stage, as upstream makes it."""
    rate, length = tokens_per_frame(manifest), manifest.semantic.max_length
    whole = Spans(frames, frames)
    semantic = Spans(semantic_steps, max(semantic_steps, 1))
    return WindowPlan(whole, whole, semantic, (), rate, length, None, manifest.coarse.semantic_window)


def plan_windows(
    manifest: Manifest,
    frames: int | None,
    samples: int,
    most_semantic: int | None,
    windows: Mapping[str, Window],
    first_frames: int | None = None,
    growth: float = 2.0,
) -> WindowPlan:
    """Plan the windows of a clip of `frames`, of which `samples` are heard; None: it is endless.

    most_semantic: tokens over the whole clip. first_frames: of the first window of every stage; each later one goes `growth` times as far
    until windows have their full length, which all have by default. Raises ValueError for windows that are larger than the trained ones,
    or that overlap whole.
    """
    semantic, coarse, (fine_length, _) = _checked(manifest, windows)
    over_coarse = Spans(frames, *coarse, _growing(first_frames, growth, coarse[0]))
    over_fine = Spans(frames, fine_length, 0, _growing(first_frames, growth, fine_length, reads_all=False))
    rate, overlap = tokens_per_frame(manifest), windows.get("semantic", Window()).overlap
    if not manifest.unique_consecutive:
        steps = most_semantic if frames is not None else None
        if frames is not None and steps is None:
            steps = _semantic_tokens(manifest, samples)
        # a semantic window that begins a clip ends with what its coarse window sees
        ends = [math.ceil(stop * rate) for stop in _growing(first_frames, growth, coarse[0])]
        ends = [*(end for end in ends if end < semantic[0]), semantic[0]] if ends else []
        over_semantic = Spans(steps, *semantic, ends)
        length = manifest.semantic.max_length
        return WindowPlan(over_coarse, over_fine, over_semantic, (), rate, length, None, manifest.coarse.semantic_window)
    runs: list[int] = []
    hop = manifest.codec.samples_per_frame
    few = over_coarse if frames is not None else islice(over_coarse, 32)  # of an endless clip they are all alike by then
    for span in few:
        heard = (span.stop * hop if frames is None else min(span.stop * hop, samples)) - span.new * hop
        steps = min(_semantic_tokens(manifest, max(heard, 0)), semantic[0])
        if most_semantic is not None:
            alone = frames is not None and len(over_coarse) == 1
            steps = min(most_semantic, semantic[0]) if alone else min(steps, most_semantic - sum(runs))
        runs.append(steps)
    return WindowPlan(over_coarse, over_fine, None, tuple(runs), rate, semantic[0], overlap)


def _growing(first: int | None, growth: float, length: int, reads_all: bool = True) -> list[int]:
    """Return where windows stop that begin with `first` and grow up to `length`, or none.

    reads_all: whether each reads from 0 on, or goes on where the one before has stopped; the places are the same, so that a later stage
    waits for no more than it reads.
    """
    stops: list[int] = []
    start = before = 0
    while first is not None and (not stops or before - start < length):
        start = 0 if reads_all else before
        before = min(max(round(first * growth ** len(stops)), before + 1), start + length)
        stops.append(before)
    return stops


def frames_covered(manifest: Manifest, semantic: list[list[slice]], windows: Mapping[str, Window]) -> int:
    """The longest clip that semantic tokens of these windows, a list per item, are enough for; one window if they are of one."""
    _, (length, overlap), _ = _checked(manifest, windows)
    if manifest.unique_consecutive:
        return length + (min(map(len, semantic)) - 1) * (length - overlap)
    return max(length, int(min(own[-1].stop for own in semantic) / tokens_per_frame(manifest)))


def longest_window(manifest: Manifest, stage: str) -> int:
    """Return the tokens (semantic) or frames (coarse, fine) of a stage's longest window."""
    return most_coarse_frames(manifest) if stage == "coarse" else getattr(manifest, stage).max_length


def most_coarse_frames(manifest: Manifest) -> int:
    """Frames of the longest coarse window: those trained, and no more than a semantic window's tokens cover where they carry time."""
    most = manifest.coarse.max_length
    if not manifest.unique_consecutive:
        rate = tokens_per_frame(manifest)
        # at a rate that is no whole number a slice may hold one token more
        most = min(most, int((manifest.semantic.max_length - (rate.denominator > 1)) / rate))
    return max(most, 1)


def tokens_per_frame(manifest: Manifest) -> Fraction:
    """Semantic tokens in the time of one codec frame."""
    return Fraction(manifest.semantic_tokens_per_second) * manifest.codec.samples_per_frame / manifest.codec.sample_hz


def ranked_at_once(manifest: Manifest) -> int:
    """Return the samples of a wave that MuLaN takes whole; parts are at least half as long, which must be enough for MuLaN. CLAP takes
    a window whole, to which it repeats what is shorter."""
    codec, mulan = manifest.codec, manifest.mulan
    least, window = (math.ceil(samples * codec.sample_hz / mulan.sample_hz) for samples in (mulan.min_samples, mulan.window_samples or 0))
    return max(manifest.coarse.max_length * codec.samples_per_frame, 2 * least, window)


def equal_parts(total: int, most: int) -> list[slice]:
    """[0, total) in as few parts as have at most `most` each, equally long but for one."""
    count = max(-(-total // most), 1)
    return [slice(total * part // count, total * (part + 1) // count) for part in range(count)]


def _semantic_tokens(manifest: Manifest, samples: int) -> int:
    return math.ceil(samples / manifest.codec.sample_hz * manifest.semantic_tokens_per_second)


def _checked(manifest: Manifest, windows: Mapping[str, Window]) -> list[tuple[int, int]]:
    """(length, overlap) per stage."""
    resolved = []
    for stage in STAGES:
        window, unit = windows.get(stage, Window()), "tokens" if stage == "semantic" else "frames"
        most = longest_window(manifest, stage)
        length = most if window.length is None else window.length
        if length > most:
            raise ValueError(f"a {stage} window of {length} {unit} is longer than the model's, which has {most}.")
        if stage == "fine" and window.overlap:
            raise ValueError(f"fine windows do not overlap, got an overlap of {window.overlap}. Leave it out.")
        overlap = window.overlap if window.overlap is not None else 0 if stage == "fine" else length // 2
        if overlap >= length:
            raise ValueError(f"{stage} windows of {length} {unit} cannot overlap by {overlap}: a window must have something new.")
        resolved.append((length, overlap))
    return resolved
