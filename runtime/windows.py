"""Long clips by windows: what each window of a stage reads, what it is told already, and what it makes.

In: a duration in frames and samples, the manifest's trained windows, the caller's own. Out: lists of `Span`. Pure arithmetic on counts: it
reads no tokens and no model. `runtime.token_stages` runs what is planned here.

Semantic and coarse windows come one after another, each told the tail of the one before; fine windows do not overlap. With
`unique_consecutive` semantic tokens carry no time: each coarse window has a semantic run of its own. Without it they come at a fixed rate:
the semantic windows of the whole clip come first, and each coarse window sees the slice that sounds with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

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


@dataclass(frozen=True)
class Clip:
    """The windows of a clip, the same for each item of a request; an item may end before its last one."""

    coarse: list[Span]  # frames
    semantic: list[Span]  # tokens at most; where they carry no time one per coarse window, whose start is known when it runs
    tokens_per_frame: Fraction | None  # semantic tokens in the time of a frame; None: they carry no time
    semantic_length: int  # most semantic tokens that a window sees
    semantic_overlap: int | None  # tokens told from the window before; None: the share that the coarse overlap has of its window
    fine_length: int  # frames

    @property
    def semantic_steps(self) -> int:
        """Most semantic tokens of an item."""
        return self.semantic[-1].stop

    @property
    def frames(self) -> int:
        return self.coarse[-1].stop

    def semantic_prime(self, window: int, before: int) -> int:
        """How many of the `before` semantic tokens of the last window the next one, number `window`, is told: where they carry no time."""
        if window == 0:
            return 0
        if self.semantic_overlap is not None:
            return min(before, self.semantic_overlap)
        previous, span = self.coarse[window - 1], self.coarse[window]
        return before * (span.new - span.start) // (previous.stop - previous.start)

    def seen(self, window: int) -> slice:
        """The semantic tokens that a coarse window sees, where they carry time: all that sound with it."""
        if len(self.coarse) == 1:
            return slice(0, self.semantic_length)  # also what was asked for beyond its time
        assert self.tokens_per_frame is not None
        return _in_time(self.coarse[window], self.tokens_per_frame)

    def reached(self, window: int, tokens: int) -> bool:
        """Whether so many semantic tokens go on to what this coarse window makes, where they carry time."""
        assert self.tokens_per_frame is not None
        return tokens > math.floor(self.coarse[window].new * self.tokens_per_frame)

    def semantic_heard(self, heard: int) -> int:
        """How many of the `heard` semantic tokens of a prime its window is told: all that leave room for others; as above."""
        if self.semantic_overlap is not None:
            return min(heard, self.semantic_overlap)
        return heard if heard < self.semantic_length else self.semantic_length // 2

    def joins(self, primed: int) -> int:
        """The first coarse window that an item makes something of, whose first `primed` frames are known."""
        return next(window for window, span in enumerate(self.coarse) if primed < span.stop)

    def semantic_sizes(self) -> list[tuple[int, int]]:
        """(tokens told, tokens in all) of each semantic window at most."""
        if self.tokens_per_frame is not None:
            return [(span.new - span.start, span.stop - span.start) for span in self.semantic]
        sizes, before = [], 0
        for window, span in enumerate(self.semantic):
            primed = self.semantic_prime(window, before)
            before = min(primed + span.stop - span.new, self.semantic_length)
            sizes.append((primed, before))
        return sizes


def spans(total: int, length: int, overlap: int) -> list[Span]:
    """Windows of at most `length` over [0, total), each but the first starting `overlap` before its first new one."""
    windows, new = [], 0
    while new < total or not windows:
        start = max(new - overlap, 0)
        windows.append(Span(start, new, min(start + length, total)))
        new = windows[-1].stop
    return windows


def one_window(manifest: Manifest, frames: int, semantic_steps: int) -> Clip:
    """A clip without windows, as upstream makes it."""
    rate, length = tokens_per_frame(manifest), manifest.semantic.max_length
    return Clip([Span(0, 0, frames)], [Span(0, 0, semantic_steps)], rate, length, None, frames)


def plan_clip(manifest: Manifest, frames: int, samples: int, most_semantic: int | None, windows: Mapping[str, Window]) -> Clip:
    """The windows of a clip of `frames`, of which `samples` are heard. most_semantic: tokens over the whole clip.

    Raises ValueError for windows that are larger than the trained ones, or that overlap whole.
    """
    semantic, coarse, (fine_length, _) = _checked(manifest, windows)
    over_coarse = spans(frames, *coarse)
    if not manifest.unique_consecutive:
        steps = _semantic_tokens(manifest, samples) if most_semantic is None else most_semantic
        rate, length = tokens_per_frame(manifest), manifest.semantic.max_length
        return Clip(over_coarse, spans(steps, *semantic), rate, length, None, fine_length)
    over_semantic, planned, hop = [], 0, manifest.codec.samples_per_frame
    for span in over_coarse:
        heard = min(span.stop * hop, samples) - span.new * hop
        steps = min(_semantic_tokens(manifest, max(heard, 0)), semantic[0])
        if most_semantic is not None:
            steps = min(most_semantic, semantic[0]) if len(over_coarse) == 1 else min(steps, most_semantic - planned)
        over_semantic.append(Span(planned, planned, planned + steps))
        planned += steps
    return Clip(over_coarse, over_semantic, None, semantic[0], windows.get("semantic", Window()).overlap, fine_length)


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


def semantic_in(manifest: Manifest, span: Span) -> slice:
    """The semantic tokens of a sound in the time of a coarse window, before repeats are collapsed."""
    return _in_time(span, tokens_per_frame(manifest))


def semantic_with_prime(manifest: Manifest, clip: Clip, window: int) -> int:
    """Tokens at most of the semantic window in which a prime ends, the prime's included, where they carry no time."""
    span, own = clip.coarse[window], clip.semantic[window]
    before = math.ceil((span.new - span.start) * tokens_per_frame(manifest))
    return min(before + own.stop - own.new, clip.semantic_length)


def equal_parts(total: int, most: int) -> list[slice]:
    """[0, total) in as few parts as have at most `most` each, equally long but for one."""
    count = max(-(-total // most), 1)
    return [slice(total * part // count, total * (part + 1) // count) for part in range(count)]


def _in_time(span: Span, rate: Fraction) -> slice:
    return slice(math.floor(span.start * rate), math.ceil(span.stop * rate))


def _semantic_tokens(manifest: Manifest, samples: int) -> int:
    return math.ceil(samples / manifest.codec.sample_hz * manifest.semantic_tokens_per_second)


def _checked(manifest: Manifest, windows: Mapping[str, Window]) -> list[tuple[int, int]]:
    """(length, overlap) per stage."""
    if not isinstance(windows, Mapping) or not all(isinstance(window, Window) for window in windows.values()):
        raise ValueError(f"windows must map a stage to a Window, got {windows!r}.")
    unknown = [repr(stage) for stage in windows if stage not in STAGES]
    if unknown:
        raise ValueError(f"windows has the stages {', '.join(STAGES)}, got {', '.join(unknown)}.")
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
