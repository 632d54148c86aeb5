"""One clip on its way: which window of which stage can run now, what it reads, and what it has made.

In: a manifest, a plan of windows, conditioning, tokens that are known already (a prime's, saved ones). Out: a `Sequence` for each window
when what it reads is there, and in the end tokens. It runs nothing and does not know what else runs: a scheduler takes its sequences to
batches and brings their tokens back, in any order between sequences. The tokens depend on the clip alone.

With `unique_consecutive` each coarse window reads a semantic run of its own. Without it the semantic windows follow one another, and each
coarse window reads the slice that sounds with it. A fine window reads its own coarse frames and may begin when these are there, in the
middle of a coarse window.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .bundle import STAGES, Manifest, Sampling
from .music import Tokens
from .noise import ItemNoise
from .resume import Known
from .sequence import Context, Draw, Sequence, coarse_sequence, fine_sequence, semantic_sequence, unguided, unique_consecutive
from .tape import Tape
from .windows import Span, Spans, WindowPlan

Contexts = Mapping[str, Context]  # by stage
Samplings = Mapping[str, Sampling]


class Clip:
    """One candidate of one prompt."""

    def __init__(
        self,
        manifest: Manifest,
        plan: WindowPlan,
        sampling: Samplings,
        seed: int,
        item: int,
        contexts: Contexts,
        ends: bool = False,
        known: Known | None = None,
        noise: ItemNoise | None = None,
    ) -> None:
        """item: the candidate's number under its seed; ends: whether it may end before its length; noise: in place of the seed's."""
        self.manifest, self.plan, self.ends = manifest, plan, ends
        self._seed, self._item, self._noise = seed, item, noise
        self._conditions = [(0, 0, contexts, sampling)]  # from which semantic window, and from which frame on
        self.columns = {stage: manifest.columns(stage) for stage in ("coarse", "fine")}
        self.semantic, self.coarse, self.fine = Tape(), Tape(), Tape()
        self.runs: dict[int, slice] = {}  # of the semantic tokens, where they carry no time: what each coarse window reads
        self._running: dict[Sequence, tuple[str, int, int]] = {}  # stage, number of the window, its first token of the stage
        self._next: dict[str, int] = dict.fromkeys(STAGES, 0)  # number of the next window of each stage
        self._open = 0  # number of the fine window whose tokens come next; those of later ones wait
        self._early: dict[int, list[np.ndarray]] = {}  # by window
        self._whole: set[int] = set()  # numbers of complete fine windows that wait
        self._complete = set(known.stages if known else ())  # stages that make nothing more
        self._prime = known.tokens if known and known.is_sound else None
        if known:
            self._begin_with(known)
        self._next["coarse"] = self._window_at(self.frames("coarse"), plan.coarse)
        self._next["fine"] = self._open = self._window_at(self.frames("fine"), plan.fine)
        self._next["semantic"] = len(self.runs) if plan.semantic is None else self._window_at(len(self.semantic), plan.semantic)
        self._settle()

    def _begin_with(self, known: Known) -> None:
        tokens = known.tokens
        for stage in ("coarse", "fine"):
            frames = getattr(tokens, stage)
            if frames is not None:
                getattr(self, stage).append(frames.ravel())
        if not known.is_sound:
            self.semantic.append(tokens.semantic)
            if "semantic" in known.stages or len(tokens.semantic):
                self.runs = dict(enumerate(tokens.windows))
        elif self.plan.timed:
            self.semantic.append(self._collapsed(tokens.semantic))
        else:  # the runs of the coarse windows that the prime fills
            for window, span in enumerate(self.plan.coarse):
                if span.stop > self.frames("coarse"):
                    break
                start = len(self.semantic)
                self.semantic.append(self._heard(window))
                self.runs[window] = slice(start, len(self.semantic))

    @staticmethod
    def _window_at(position: int, spans: Spans) -> int:
        """Return the number of the window that makes a position, or of the one after the last."""
        return len(spans) if spans.total is not None and position >= spans.total else spans.window_of(position)

    # --- what there is

    def frames(self, stage: str) -> int:
        """Return the complete frames of "coarse" or "fine" so far."""
        return len(getattr(self, stage)) // self.columns[stage]

    @property
    def total(self) -> int | None:
        """Frames of the whole clip once they are certain: as planned, or fewer if it has ended. None until then, or without end."""
        if "coarse" in self._complete:
            return self.frames("coarse")
        return None if self.ends else self.plan.frames

    @property
    def done(self) -> bool:
        """Whether all tokens are made."""
        return self._complete.issuperset(STAGES)

    @property
    def tokens(self) -> Tokens:
        """The tokens that another clip can go on from: complete semantic runs, and whole frames; without those that were forgotten."""
        runs = list(self.runs.values())
        last = len(self.semantic) if self.plan.timed else runs[-1].stop if runs else 0
        bounds = np.array([[run.start, run.stop] for run in runs]) if len(runs) > 1 else None
        whole: list[np.ndarray] = []
        for stage, columns in self.columns.items():
            line: Tape = getattr(self, stage)
            whole.append(line.read(line.first, len(line) // columns * columns).reshape(-1, columns))
        return Tokens(self.semantic.read(self.semantic.first, last), whole[0], whole[1], bounds)

    def codes(self, start: int, stop: int) -> np.ndarray:
        """Return codes int64 [frames, Q] for the codec; both stages have them."""
        parts = [getattr(self, stage).read(start * columns, stop * columns).reshape(-1, columns) for stage, columns in self.columns.items()]
        return np.concatenate(parts, axis=1)

    def made(self, stage: str) -> int:
        """Return how many tokens a stage has made so far, in all its windows."""
        line: Tape = getattr(self, stage)
        return len(line) + sum(len(tokens) for parts in self._early.values() for tokens in parts) * (stage == "fine")

    def progress(self, stage: str) -> tuple[int, int]:
        """Return (tokens made, tokens in all) of a stage: as planned, or as there are once it is complete."""
        made, frames = self.made(stage), self.plan.frames
        if stage in self._complete or frames is None:
            return made, made
        return made, max(made, (self.plan.semantic_steps or 0) if stage == "semantic" else frames * self.columns[stage])

    # --- what runs

    def ready(self, stage: str) -> bool:
        """Return whether the stage's next window can begin."""
        if stage in self._complete:
            return False
        window = self._next[stage]
        if stage == "semantic":
            return not self._runs("semantic") and (self.plan.timed or self._wants_run(window))
        if stage == "coarse":
            return not self._runs("coarse") and self._can_read(window)
        span = self._fine_span(window)
        return span is not None and self.frames("coarse") >= span.stop

    def begin(self, stage: str) -> Sequence:
        """Return the sequence of the stage's next window; it counts as running until its tokens have come."""
        window = self._next[stage]
        make = {"semantic": self._semantic_window, "coarse": self._coarse_window, "fine": self._fine_window}[stage]
        sequence, first = make(window)
        self._running[sequence] = stage, window, first
        self._next[stage] = window + 1
        return sequence

    def needed_at_frame(self, stage: str) -> int:
        """Return the first frame that is not made before the stage's next window has begun."""
        plan, window = self.plan, self._next[stage]
        if stage == "semantic" and plan.semantic is not None:
            window = self._reader_of(plan.semantic[window].new)
        if stage != "fine":  # a fine window begins when all its coarse frames are made, the last of which may be another coarse window's
            window = plan.fine.window_of(plan.coarse[window].new)
        return plan.fine[window].new

    def _reader_of(self, token: int) -> int:
        """Return the next coarse window that reads semantic tokens from this one on; the one after the last if none does."""
        plan, window = self.plan, self._next["coarse"]
        while (plan.frames is None or window < len(plan.coarse)) and plan.seen(window).stop <= token:
            window += 1
        return window

    def frames_until_next(self, stage: str) -> int:
        """Return how many frames of "coarse", or semantic tokens, are missing before a window of the next stage can begin; 0: it can."""
        if stage == "coarse":
            span = self.plan.fine[self._next["fine"]] if self.plan.frames is None or self._next["fine"] < len(self.plan.fine) else None
            return 0 if span is None else span.stop - self.frames("coarse")
        window = self._next["coarse"]
        if self.plan.semantic is None or (self.plan.frames is not None and window >= len(self.plan.coarse)):
            return 1 << 10  # the run itself ends when the next stage can begin
        return self.plan.seen(window).stop - len(self.semantic)

    def take(self, sequence: Sequence, tokens: np.ndarray, done: bool) -> None:
        """Take tokens that a sequence has got; done: whether it gets no more."""
        stage, window, first = self._running[sequence]
        if stage == "fine":
            self._early.setdefault(window, []).append(tokens)
            if done:
                self._whole.add(window)
            self._pass_on_fine()
        else:
            getattr(self, stage).append(tokens)
        if done:
            del self._running[sequence]
            if stage == "semantic":
                self._end_semantic(window, first)
            elif stage == "coarse" and self.frames("coarse") < self.plan.coarse[window].stop:
                self._complete.add("coarse")
            self._settle()

    def change(self, contexts: Contexts | None = None, sampling: Samplings | None = None) -> int:
        """Condition the windows that have not begun yet on something else, or draw their tokens otherwise; None leaves it as it is.

        Returns the first frame that sounds otherwise. Raises ValueError if all windows have begun.
        """
        plan, run, window = self.plan, self._next["semantic"], self._next["coarse"]
        if plan.semantic is None:
            window = max(window, run)
        elif "semantic" not in self._complete and (plan.semantic.total is None or run < len(plan.semantic)):
            window = self._reader_of(plan.semantic[run].new)
        if "coarse" in self._complete or (plan.frames is not None and window >= len(plan.coarse)):
            raise ValueError("the last window of this clip has begun: a change would not be heard.")
        frame = plan.coarse[window].new
        self.condition(run, frame, contexts, sampling)
        # a fine window reads all its coarse frames, and the codec's first chunk all its frames
        heard = max(plan.fine[plan.fine.window_of(frame)].new, self.frames("fine"))
        return heard if heard >= self.manifest.codec.lookahead_frames else 0

    @property
    def conditioned_from(self) -> tuple[int, int]:
        """The semantic window, and the frame, from which on the last conditioning holds."""
        run, frame, *_ = self._conditions[-1]
        return run, frame

    def condition(self, run: int, frame: int, contexts: Contexts | None = None, sampling: Samplings | None = None) -> None:
        """Condition a clip from a semantic window, and a frame, on; neither has begun. The rest: see `change`."""
        *_, before, drawn = self._conditions[-1]
        others = [one for one in self._conditions if one[:2] != (run, frame)]
        self._conditions = [*others, (run, frame, contexts or before, sampling or drawn)]

    @property
    def begins_at(self) -> int:
        """The first frame of which all tokens are kept."""
        plan, window = self.plan, next(iter(self.runs), 0)  # of the first run that is kept
        semantic = -(-self.semantic.first // plan.tokens_per_frame) if plan.timed else plan.coarse[window].new
        return max(semantic, *(getattr(self, stage).first // columns for stage, columns in self.columns.items()))

    def forget(self, before: int) -> None:
        """Let go of the tokens before a frame, as far as no window that is still to come reads them: an endless clip has bounded memory."""
        window = self._next["coarse"]
        kept = min(before, self.plan.coarse[window].start, self.plan.fine[self._next["fine"]].start)
        for stage, columns in self.columns.items():
            getattr(self, stage).forget(kept * columns)
        if self.plan.semantic is not None:
            self.semantic.forget(self.plan.seen(self.plan.coarse.window_of(kept)).start)
        else:
            first = min(self.plan.coarse.window_of(kept), max(self.runs, default=0))
            self.runs = {number: run for number, run in self.runs.items() if number >= first}
            self.semantic.forget(self.runs[first].start if self.runs else 0)
        read = [one[1] <= kept for one in self._conditions[1:]] + [False]  # whether a later one has taken its place
        self._conditions = [one for one, gone in zip(self._conditions, read, strict=True) if not gone]

    # --- semantic

    def _wants_run(self, window: int) -> bool:
        """Return whether the run of this coarse window can begin, where semantic tokens carry no time."""
        plan = self.plan
        if plan.frames is not None and window >= len(plan.coarse):
            return False
        # where a clip may end early, whether it goes on is known when the coarse window before is complete
        return not self.ends or window == 0 or self.frames("coarse") >= plan.coarse[window].new

    def _semantic_window(self, window: int) -> tuple[Sequence, int]:
        plan, allowed = self.plan, self.ends or self.manifest.unique_consecutive
        if plan.semantic is not None:
            span = plan.semantic[window]
            start, length = span.start, span.stop - span.start
        elif (heard := self._first_heard(window)) is not None:
            heard = heard[len(heard) - plan.heard_prefix(len(heard)) :]
            start = len(self.semantic)
            self.semantic.append(heard)
            length = max(plan.run_after_prime(window), len(heard))
        else:
            before = self.runs.get(window - 1, slice(0, 0))
            told = plan.semantic_prefix(window, before.stop - before.start)
            start, length = len(self.semantic) - told, min(told + plan.run(window), plan.semantic_length)
        prefix = self.semantic.read(start)
        _, _, contexts, sampling = next(one for one in reversed(self._conditions) if one[0] <= window)
        draw = self._draw("semantic", len(self.semantic), sampling)
        return semantic_sequence(self.manifest.semantic, length, allowed, prefix, draw, contexts["semantic"]), start

    def _first_heard(self, window: int) -> np.ndarray | None:
        """Return the prime's semantic tokens of the coarse window in which it ends, if this is the one."""
        if self._prime is None or self._prime.coarse is None:
            return None
        return self._heard(window) if self.plan.coarse.window_of(len(self._prime.coarse)) == window else None

    def _heard(self, window: int) -> np.ndarray:
        """Return what the prime's semantic tokens in the time of a coarse window collapse to."""
        assert self._prime is not None and self._prime.coarse is not None
        span = self.plan.coarse[window]
        time = self.plan.in_time(span)
        return unique_consecutive(self._prime.semantic[time if span.stop <= len(self._prime.coarse) else slice(time.start, None)])

    def _collapsed(self, tokens: np.ndarray) -> np.ndarray:
        return unique_consecutive(tokens) if self.manifest.unique_consecutive else tokens

    def _end_semantic(self, window: int, first: int) -> None:
        plan = self.plan
        if plan.semantic is None:
            self.runs[window] = slice(first, len(self.semantic))
            last = plan.frames is not None and window + 1 == len(plan.coarse)
        else:
            last = plan.semantic.total is not None and window + 1 == len(plan.semantic)
            last = last or len(self.semantic) < plan.semantic[window].stop
        if last:
            self._complete.add("semantic")

    # --- coarse

    def _can_read(self, window: int) -> bool:
        """Return whether the semantic tokens that a coarse window reads are complete."""
        plan = self.plan
        if plan.semantic is None:
            return window in self.runs
        return "semantic" in self._complete or len(self.semantic) >= plan.seen(window).stop

    def _coarse_window(self, window: int) -> tuple[Sequence, int]:
        plan, span, columns = self.plan, self.plan.coarse[window], self.columns["coarse"]
        seen = self.runs[window] if plan.semantic is None else plan.seen(window)
        semantic = self.semantic.read(seen.start, seen.stop)
        if plan.semantic is None:
            semantic = unique_consecutive(semantic)
        prefix = self.coarse.read(span.start * columns).reshape(-1, columns)
        contexts, sampling = self._condition_of(span.new)
        draw, context = self._draw("coarse", len(self.coarse), sampling), contexts["coarse"]
        decoder, frames = self.manifest.coarse, span.stop - span.start
        return coarse_sequence(decoder, semantic, frames, columns, self.ends, prefix, draw, context), span.start * columns

    # --- fine

    def _fine_span(self, window: int) -> Span | None:
        """Return a fine window, or None while it is not certain where it ends; the last one ends with the clip."""
        total = self.total
        spans = self.plan.fine if total is None else self.plan.fine.over(total)
        if spans.total is not None and window >= len(spans):
            return None
        span = spans[window]
        return span if total is not None or self.plan.frames is None or span.stop < self.plan.frames else None

    def _fine_window(self, window: int) -> tuple[Sequence, int]:
        span, columns = self._fine_span(window), self.columns["fine"]
        assert span is not None
        coarse = self.coarse.read(span.start * self.columns["coarse"], span.stop * self.columns["coarse"])
        known = max(len(self.fine) - span.start * columns, 0)  # of a prime, or saved
        prefix = self.fine.read(len(self.fine) - known).reshape(-1, columns)
        contexts, sampling = self._condition_of(span.new)
        draw, context = self._draw("fine", span.start * columns + known, sampling), contexts["fine"]
        coarse = coarse.reshape(-1, self.columns["coarse"])
        return fine_sequence(self.manifest.fine, coarse, columns, prefix, draw, context), span.start * columns

    def _pass_on_fine(self) -> None:
        """Put the tokens of fine windows that waited for earlier ones behind these."""
        while self._open in self._early:
            for part in self._early.pop(self._open):
                self.fine.append(part)
            if self._open not in self._whole:
                break
            self._whole.discard(self._open)
            self._open += 1

    def _settle(self) -> None:
        """Find out which stages make nothing more."""
        plan, window = self.plan, self._next["coarse"]
        spans = plan.semantic
        if spans is not None and spans.total is not None and self._next["semantic"] >= len(spans) and not self._runs("semantic"):
            self._complete.add("semantic")
        if not self._runs("coarse"):
            past_the_last = plan.frames is not None and window >= len(plan.coarse)
            if past_the_last or (self.ends and "semantic" in self._complete and window > 0 and not self._is_reached(window)):
                self._complete.add("coarse")
        if "coarse" in self._complete:
            if plan.semantic is None and not self._runs("semantic"):
                self._complete.add("semantic")
            if self.frames("fine") >= self.frames("coarse"):
                self._complete.add("fine")

    def _is_reached(self, window: int) -> bool:
        """Return whether the complete semantic tokens go on to this coarse window: a clip may end where they do."""
        return window in self.runs if self.plan.semantic is None else self.plan.reached(window, len(self.semantic))

    def _runs(self, stage: str) -> bool:
        return any(one == stage for one, *_ in self._running.values())

    def _draw(self, stage: str, first: int, sampling: Samplings) -> Draw:
        decoder = getattr(self.manifest, stage)
        own = None if self._noise is None else self._noise.of(stage, decoder.vocabulary)
        return Draw(self._seed, self._item, first, unguided(decoder, sampling[stage]), own)

    def _condition_of(self, frame: int) -> tuple[Contexts, Samplings]:
        return next((contexts, sampling) for _, first, contexts, sampling in reversed(self._conditions) if first <= frame)
