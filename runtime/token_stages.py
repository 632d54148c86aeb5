"""The three token stages of a request, window by window: from conditioning to each item's tokens.

In: a loaded model, a checked request, its conditioning, noise. Out: one `Tokens` per item. Which windows there are is planned in
`runtime.windows`, what a window feeds in `runtime.stages`; waves are none of its business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np

from .bundle import Manifest
from .decoder import DecoderRun
from .device.decode import decode as decode_on_device
from .loop import decode
from .memory import ROWS_AT_ONCE
from .music import Tokens
from .noise import GivenNoise, PhiloxNoise
from .request import Request
from .stages import Plan, plan_coarse, plan_fine, plan_semantic
from .windows import semantic_in, semantic_with_prime, spans

if TYPE_CHECKING:
    from .musiclm import MusicLM


class TokenStages:
    """The tokens of all items of one request, as they grow."""

    def __init__(
        self,
        model: MusicLM,
        request: Request,
        conditioning: dict[str, dict[str, np.ndarray]],
        primes: list[Tokens | None],
        noise: PhiloxNoise | GivenNoise,
        report: Callable[[str, int, int], None],
        timed: Callable[[str], AbstractContextManager],
    ) -> None:
        """conditioning: stage -> outputs of its context graph, one row per prompt; primes: one per prompt, semantic tokens with repeats.
        report(stage, done, total) is called after each token, timed(stage) is entered around each run of a stage."""
        self._model, self._request, self._conditioning = model, request, conditioning
        self._noise, self._report, self._timed = noise, report, timed
        self._manifest = model.bundle.manifest
        self._semantic: list[np.ndarray] = [np.zeros(0, np.int64)] * request.items
        self._windows: list[list[slice]] = [[] for _ in range(request.items)]  # of the semantic tokens, where they carry no time
        self._primes = [primes[item // request.num_samples] for item in range(request.items)]
        self._coarse = [self._known(prime, "coarse") for prime in self._primes]

    def run(self) -> list[Tokens]:
        given = self._request.tokens
        if given is not None:
            self._semantic, self._windows = [item.semantic for item in given], [item.windows for item in given]
        elif self._request.clip.tokens_per_frame is not None:
            self._whole_semantic()
        else:
            self._hear_windows()
        if given is not None and self._request.stage_done("coarse"):
            self._coarse = [item.coarse for item in given if item.coarse is not None]
        else:
            self._coarse_windows()
        if given is not None and self._request.stage_done("fine"):
            fine = [item.fine for item in given if item.fine is not None]
        else:
            fine = self._fine()
        carried = self._request.clip.tokens_per_frame is not None
        bounds = [None if carried else _bounds(windows) for windows in self._windows]
        return [Tokens(*item) for item in zip(self._semantic, self._coarse, fine, bounds, strict=True)]

    def _whole_semantic(self) -> None:
        """Semantic tokens that carry time, or those of upstream's single window: all windows one after another."""
        for item, prime in enumerate(self._primes):
            if prime is not None:
                self._semantic[item] = unique_consecutive(prime.semantic) if self._manifest.unique_consecutive else prime.semantic
        for span in self._request.clip.semantic:
            # of the others some have ended before, and a prime goes on beyond this window
            items = [item for item, tokens in enumerate(self._semantic) if span.new <= len(tokens) < span.stop]
            if items:
                told = [len(self._semantic[item]) - span.start for item in items]
                self._grow_semantic(items, told, [span.stop - span.start] * len(items), span.new)

    def _hear_windows(self) -> None:
        """Where semantic tokens carry no time: those of the coarse windows that a prime fills."""
        for item, prime in enumerate(self._primes):
            for window, span in enumerate(self._request.clip.coarse):
                if prime is not None and span.stop <= len(self._coarse[item]):
                    start = len(self._semantic[item])
                    self._semantic[item] = np.concatenate([self._semantic[item], self._heard(item, window)])
                    self._windows[item].append(slice(start, len(self._semantic[item])))

    def _heard(self, item: int, window: int) -> np.ndarray:
        """What the prime's semantic tokens in the time of a coarse window collapse to."""
        prime, span = self._primes[item], self._request.clip.coarse[window]
        assert prime is not None
        time = semantic_in(self._manifest, span)
        return unique_consecutive(prime.semantic[time if span.stop <= len(self._coarse[item]) else slice(time.start, None)])

    def _tell(self, item: int, window: int) -> tuple[int, int]:
        """(tokens told, in all at most) of an item's semantic window, where tokens carry no time; a prime's that end in it are appended."""
        clip, prime = self._request.clip, self._primes[item]
        if prime is None or len(self._coarse[item]) > len(self._known(prime, "coarse")):
            told = clip.semantic_prime(window, _length(self._windows[item]))
            return told, min(told + clip.semantic[window].stop - clip.semantic[window].new, clip.semantic_length)
        heard = self._heard(item, window)
        heard = heard[len(heard) - clip.semantic_heard(len(heard)) :]
        self._semantic[item] = np.concatenate([self._semantic[item], heard])
        return len(heard), max(semantic_with_prime(self._manifest, clip, window), len(heard))

    def _coarse_windows(self) -> None:
        clip, columns = self._request.clip, self._columns("coarse")
        for window, span in enumerate(clip.coarse):
            items = [item for item, known in enumerate(self._coarse) if span.new <= len(known) < span.stop and self._goes_on(item, window)]
            if not items:  # all have ended, or go on from primes that are longer
                continue
            if clip.tokens_per_frame is None and self._request.tokens is None:
                told, lengths = zip(*(self._tell(item, window) for item in items), strict=True)
                self._grow_semantic(items, told, lengths, clip.semantic[window].new)
            primes = [self._coarse[item][span.start :] for item in items]
            seen = self._seen(items, window)
            frames = span.stop - span.start
            plan = plan_coarse(self._manifest.coarse, seen, frames, columns, self._request.end_allowed, primes, not self._request.upstream)
            made = self._decode(
                plan, items, [self._coarse[item].size for item in items], span.new * columns, clip.coarse[-1].stop * columns
            )
            for item, tokens in zip(items, made, strict=True):
                self._coarse[item] = np.concatenate([self._coarse[item], tokens.reshape(-1, columns)])

    def _goes_on(self, item: int, window: int) -> bool:
        """Whether the semantic tokens go on to this window, where an item may end before its length."""
        clip, request = self._request.clip, self._request
        if window == 0 or not request.end_allowed:
            return True
        if clip.tokens_per_frame is not None:
            return clip.reached(window, len(self._semantic[item]))
        return request.tokens is None or window < len(self._windows[item])

    def _grow_semantic(self, items: list[int], told: Sequence[int], lengths: Sequence[int], done: int) -> None:
        """One semantic window of these items: told so many of their last tokens, of so many tokens in all at most."""
        request = self._request
        primes = [self._semantic[item][len(self._semantic[item]) - count :] for item, count in zip(items, told, strict=True)]
        plan = plan_semantic(self._manifest.semantic, len(items), np.array(lengths), request.semantic_end_allowed, primes)
        made = self._decode(plan, items, [len(self._semantic[item]) for item in items], done, request.semantic_steps)
        for item, count, tokens in zip(items, told, made, strict=True):
            start = len(self._semantic[item]) - count
            self._semantic[item] = np.concatenate([self._semantic[item], tokens])
            self._windows[item].append(slice(start, len(self._semantic[item])))

    def _seen(self, items: list[int], window: int) -> list[np.ndarray]:
        """The semantic tokens that a coarse window of these items sees."""
        clip, unique = self._request.clip, self._manifest.unique_consecutive
        if clip.tokens_per_frame is None:
            return [unique_consecutive(self._semantic[item][self._windows[item][window]]) for item in items]
        semantic = [self._semantic[item][clip.seen(window)] for item in items]
        return _as_upstream_pads(semantic, self._request.semantic_steps, unique) if self._request.upstream else semantic

    def _fine(self) -> list[np.ndarray]:
        """Fine windows know nothing of each other: those of all items run as one batch, or as many as memory is planned for."""
        request, decoder, columns = self._request, self._manifest.fine, self._columns("fine")
        known = [self._known(prime, "fine") for prime in self._primes]
        windows = [
            (item, span)
            for item, frames in enumerate(self._coarse)
            for span in spans(len(frames), request.clip.fine_length, 0)
            if len(known[item]) < span.stop
        ]
        batches = [windows[first : first + ROWS_AT_ONCE] for first in range(0, len(windows), ROWS_AT_ONCE)]
        trained = request.frames * self._manifest.codec.groups if request.upstream else None
        plans = [
            plan_fine(
                decoder,
                [self._coarse[item][span.new : span.stop] for item, span in batch],
                columns,
                trained,
                [known[item][span.new :] for item, span in batch],
            )
            for batch in batches
        ]
        done, total, fine = 0, sum(int(plan.steps.max()) for plan in plans), list(known)
        for plan, batch in zip(plans, batches, strict=True):
            before = [max(span.new, len(known[item])) * columns for item, span in batch]
            made = self._decode(plan, [item for item, _ in batch], before, done, total)
            done += int(plan.steps.max())
            for (item, _), tokens in zip(batch, made, strict=True):
                fine[item] = np.concatenate([fine[item], tokens.reshape(-1, columns)])
        return fine

    def _decode(self, plan: Plan, items: list[int], before: list[int], done: int, total: int) -> list[np.ndarray]:
        """Run a plan whose rows belong to `items`, each with `before` tokens in its stage; `done` and `total` are for the report."""
        request, stage, sampling = self._request, plan.stage, self._request.sampling[plan.stage]
        guided = is_guided(self._manifest, request, stage)
        prompts = np.array(items) // request.num_samples
        context = {
            name: np.ascontiguousarray(with_null(name, array[prompts], guided)) for name, array in self._conditioning.get(stage, {}).items()
        }
        capacity = plan.capacity + (context["prefix_embeddings"].shape[1] if "prefix_embeddings" in context else 0)
        of_row, first = np.array(items), np.array(before)

        def gumbel(step: int, rows: np.ndarray) -> np.ndarray:
            return self._noise.rows(stage, of_row[rows], first[rows] + step, plan.decoder.vocabulary)

        def report(step: int, _: int) -> None:
            self._report(stage, done + step, total)

        if self._model.driver is not None:
            assert isinstance(self._noise, PhiloxNoise)
            draws = [(*self._noise.items[item], number) for item, number in zip(items, before, strict=True)]
            with self._timed(stage), self._model.on_device(stage) as model:
                return decode_on_device(model, plan, context, guided, sampling, draws, report)
        # a row without condition is like any other
        conditions = np.concatenate([prompts if context else 0 * prompts, np.full(len(items) * guided, -1)])
        with self._timed(stage):
            run = DecoderRun(self._model.transformer(stage), plan.decoder, context, len(conditions), capacity, conditions)
            return decode(plan, run, guided, sampling, gumbel, report)

    def _known(self, prime: Tokens | None, stage: str) -> np.ndarray:
        """int64 [frames, columns] of a prime, [0, columns] without one."""
        return np.zeros((0, self._columns(stage)), np.int64) if prime is None else getattr(prime, stage)

    def _columns(self, stage: str) -> int:
        """Tokens of a frame."""
        quantizers = self._manifest.coarse.coarse_quantizers if stage == "coarse" else self._manifest.fine.fine_quantizers
        assert quantizers is not None
        return quantizers * self._manifest.codec.groups


def is_guided(manifest: Manifest, request: Request, stage: str) -> bool:
    return getattr(manifest, stage).guidance and request.sampling[stage].cond_scale != 1


def _bounds(windows: list[slice]) -> np.ndarray | None:
    return np.array([[window.start, window.stop] for window in windows]) if len(windows) > 1 else None


def _length(windows: list[slice]) -> int:
    """Semantic tokens of the last window."""
    return windows[-1].stop - windows[-1].start if windows else 0


def with_null(name: str, rows: np.ndarray, guided: bool) -> np.ndarray:
    """Append, for guidance, a row without condition for each row: the null key and value in every slot weigh out to the null value."""
    if not guided or name == "prefix_embeddings":  # a row without condition leaves the prefix out
        return rows
    null = rows[:, :, :1] if name.endswith(".key") else rows[:, :1]
    return np.concatenate([rows, np.broadcast_to(null, rows.shape)])


def unique_consecutive(tokens: np.ndarray) -> np.ndarray:
    return tokens[np.append(True, tokens[1:] != tokens[:-1])] if len(tokens) else tokens


def _as_upstream_pads(semantic: list[np.ndarray], steps: int, unique: bool) -> list[np.ndarray]:
    """Upstream's batch after the semantic stage: -1 from the end token on, collapsed like any token, then padded with -1."""
    length = max(len(tokens) + (len(tokens) < steps) for tokens in semantic)
    rows = [np.pad(tokens, (0, length - len(tokens)), constant_values=-1) for tokens in semantic]
    if not unique:
        return rows
    rows = [unique_consecutive(row) for row in rows]
    longest = max(len(row) for row in rows)
    return [np.pad(row, (0, longest - len(row)), constant_values=-1) for row in rows]
