"""The three token stages of a request, window by window: from conditioning to each item's tokens.

In: a loaded model, a checked request, its conditioning, noise. Out: one `Tokens` per item. Which windows there are is planned in
`runtime.windows`, what a window feeds in `runtime.stages`; waves are none of its business.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np

from .bundle import Manifest
from .decoder import DecoderRun
from .loop import decode
from .memory import ROWS_AT_ONCE
from .music import Tokens
from .noise import GivenNoise, PhiloxNoise
from .request import Request
from .stages import Plan, plan_coarse, plan_fine, plan_semantic
from .windows import Span, spans

if TYPE_CHECKING:
    from .musiclm import MusicLM


class TokenStages:
    """The tokens of all items of one request, as they grow."""

    def __init__(
        self,
        model: MusicLM,
        request: Request,
        conditioning: dict[str, dict[str, np.ndarray]],
        noise: PhiloxNoise | GivenNoise,
        report: Callable[[str, int, int], None],
        timed: Callable[[str], AbstractContextManager],
    ) -> None:
        """conditioning: stage -> outputs of its context graph, one row per prompt. report(stage, done, total) is called after each token,
        timed(stage) is entered around each run of a stage."""
        self._model, self._request, self._conditioning = model, request, conditioning
        self._noise, self._report, self._timed = noise, report, timed
        self._manifest = model.bundle.manifest
        self._semantic: list[np.ndarray] = [np.zeros(0, np.int64)] * request.items
        self._windows: list[list[slice]] = [[] for _ in range(request.items)]  # of the semantic tokens, where they carry no time
        self._coarse: list[np.ndarray] = []

    def run(self) -> list[Tokens]:
        given = self._request.tokens
        if given is not None:
            self._semantic, self._windows = [item.semantic for item in given], [item.windows for item in given]
        elif self._request.clip.tokens_per_frame is not None:
            self._whole_semantic()
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
        """Semantic tokens that carry time, or those of a single window: all windows one after another."""
        for span in self._request.clip.semantic:
            items = [item for item, tokens in enumerate(self._semantic) if len(tokens) == span.new]  # the others have ended
            if items:
                self._grow_semantic(items, span, [span.new - span.start] * len(items))

    def _coarse_windows(self) -> None:
        clip, columns = self._request.clip, self._columns("coarse")
        self._coarse = [np.zeros((0, columns), np.int64)] * self._request.items
        for window, span in enumerate(clip.coarse):
            items = [item for item, frames in enumerate(self._coarse) if len(frames) == span.new and self._goes_on(item, window)]
            if not items:
                break
            if clip.tokens_per_frame is None and self._request.tokens is None:
                told = [clip.semantic_prime(window, _length(self._windows[item])) for item in items]
                self._grow_semantic(items, clip.semantic[window], told)
            primes = [self._coarse[item][span.start :] for item in items]
            seen = self._seen(items, window)
            frames = span.stop - span.start
            plan = plan_coarse(self._manifest.coarse, seen, frames, columns, self._request.end_allowed, primes)
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

    def _grow_semantic(self, items: list[int], span: Span, told: list[int]) -> None:
        """One semantic window of these items, told so many tokens of the window before."""
        request, clip = self._request, self._request.clip
        primes = [self._semantic[item][len(self._semantic[item]) - count :] for item, count in zip(items, told, strict=True)]
        lengths = np.minimum(np.array(told) + span.stop - span.new, clip.semantic_length)
        plan = plan_semantic(self._manifest.semantic, len(items), lengths, request.semantic_end_allowed, primes)
        made = self._decode(plan, items, [len(self._semantic[item]) for item in items], span.new, clip.semantic_steps)
        for item, count, tokens in zip(items, told, made, strict=True):
            start = len(self._semantic[item]) - count
            self._semantic[item] = np.concatenate([self._semantic[item], tokens])
            self._windows[item].append(slice(start, len(self._semantic[item])))

    def _seen(self, items: list[int], window: int) -> list[np.ndarray]:
        """The semantic tokens that a coarse window of these items sees."""
        clip, unique = self._request.clip, self._manifest.unique_consecutive
        if clip.tokens_per_frame is None:
            return [_unique_consecutive(self._semantic[item][self._windows[item][window]]) for item in items]
        semantic = [self._semantic[item][clip.seen(window)] for item in items]
        return _as_upstream_pads(semantic, self._request.semantic_steps, unique) if self._request.upstream else semantic

    def _fine(self) -> list[np.ndarray]:
        """Fine windows know nothing of each other: those of all items run as one batch, or as many as memory is planned for."""
        request, decoder, columns = self._request, self._manifest.fine, self._columns("fine")
        windows = [(item, span) for item, frames in enumerate(self._coarse) for span in spans(len(frames), request.clip.fine_length, 0)]
        batches = [windows[first : first + ROWS_AT_ONCE] for first in range(0, len(windows), ROWS_AT_ONCE)]
        trained = request.frames * self._manifest.codec.groups if request.upstream else None
        plans = [
            plan_fine(decoder, [self._coarse[item][span.new : span.stop] for item, span in batch], columns, trained) for batch in batches
        ]
        done, total = 0, sum(int(plan.steps.max()) for plan in plans)
        fine: list[list[np.ndarray]] = [[] for _ in self._coarse]
        for plan, batch in zip(plans, batches, strict=True):
            made = self._decode(plan, [item for item, _ in batch], [span.new * columns for _, span in batch], done, total)
            done += int(plan.steps.max())
            for (item, _), tokens in zip(batch, made, strict=True):
                fine[item].append(tokens.reshape(-1, columns))
        return [np.concatenate(parts) for parts in fine]

    def _decode(self, plan: Plan, items: list[int], before: list[int], done: int, total: int) -> list[np.ndarray]:
        """Run a plan whose rows belong to `items`, each with `before` tokens in its stage; `done` and `total` are for the report."""
        request, stage, sampling = self._request, plan.stage, self._request.sampling[plan.stage]
        guided = is_guided(self._manifest, request, stage)
        prompts = np.array(items) // request.num_samples
        context = {
            name: np.ascontiguousarray(_with_null(name, array[prompts], guided))
            for name, array in self._conditioning.get(stage, {}).items()
        }
        capacity = plan.capacity + (context["prefix_embeddings"].shape[1] if "prefix_embeddings" in context else 0)
        first, last = np.array(before), np.maximum(plan.steps - 1, 0)  # a row that has all its tokens asks for no others

        def gumbel(step: int) -> np.ndarray:
            return self._noise.rows(stage, np.array(items), first + np.minimum(step, last), plan.decoder.vocabulary)

        with self._timed(stage):
            session, native = self._model.session(plan.decoder.graph), self._model.native(stage)
            run = DecoderRun(session, plan.decoder, context, len(items) * (1 + guided), capacity, native)
            return decode(plan, run, guided, sampling, gumbel, lambda step, _: self._report(stage, done + step, total))

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


def _with_null(name: str, rows: np.ndarray, guided: bool) -> np.ndarray:
    """Append, for guidance, a row without condition for each row: the null key and value in every slot weigh out to the null value."""
    if not guided or name == "prefix_embeddings":  # a row without condition leaves the prefix out
        return rows
    null = rows[:, :, :1] if name.endswith(".key") else rows[:, :1]
    return np.concatenate([rows, np.broadcast_to(null, rows.shape)])


def _unique_consecutive(tokens: np.ndarray) -> np.ndarray:
    return tokens[np.append(True, tokens[1:] != tokens[:-1])] if len(tokens) else tokens


def _as_upstream_pads(semantic: list[np.ndarray], steps: int, unique: bool) -> list[np.ndarray]:
    """Upstream's batch after the semantic stage: -1 from the end token on, collapsed like any token, then padded with -1."""
    length = max(len(tokens) + (len(tokens) < steps) for tokens in semantic)
    rows = [np.pad(tokens, (0, length - len(tokens)), constant_values=-1) for tokens in semantic]
    if not unique:
        return rows
    rows = [_unique_consecutive(row) for row in rows]
    longest = max(len(row) for row in rows)
    return [np.pad(row, (0, longest - len(row)), constant_values=-1) for row in rows]
