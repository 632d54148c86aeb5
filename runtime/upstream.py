"""A request as audiolm-pytorch makes it: one window of each stage, one stage after another, all clips of the request as one batch.

In: a checked request with compat="upstream", conditioning, noise. Out: one `Tokens` per item. What upstream pads depends on the whole
batch, so its clips are not independent, and batches are used directly, without the scheduler.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np

from .batch import POSITIONS_AT_ONCE, Batch
from .bundle import Manifest
from .clip import Contexts
from .music import Tokens
from .noise import ItemNoise
from .sequence import Context, Draw, Sequence, coarse_sequence, fine_sequence, semantic_sequence, unguided, unique_consecutive

if TYPE_CHECKING:
    from .request import Request

Report = Callable[[str, int, int], None]  # (stage, done, total)


class Upstream:
    """One request on its way."""

    def __init__(
        self,
        manifest: Manifest,
        request: Request,
        contexts: list[Contexts],
        primes: list[Tokens | None],
        noise: list[ItemNoise] | None,
        report: Report,
        decoding: Callable[[str], AbstractContextManager[Batch]],
    ) -> None:
        """contexts, primes: one per prompt; a prime's semantic tokens with their repeats. noise: one per item, by default the seeds'.

        report is called after each frame and may raise. decoding: gives a stage's batch, for as long as it is used.
        """
        self._manifest, self._request, self._contexts, self._noise = manifest, request, contexts, noise
        self._report, self._decoding = report, decoding
        self._primes = [primes[item // request.num_samples] for item in range(request.items)]
        self._columns = {stage: manifest.columns(stage) for stage in ("coarse", "fine")}

    def run(self) -> list[Tokens]:
        given, items = self._request.tokens or [], range(self._request.items)
        semantic = [item.semantic for item in given]
        if not given:
            known = [self._known_semantic(item) for item in items]
            made = self._decode("semantic", [self._semantic(item, known[item]) for item in items])
            semantic = [np.concatenate(pair) for pair in zip(known, made, strict=True)]
        coarse = [item.coarse for item in given if item.coarse is not None]
        if not self._request.stage_done("coarse"):
            plan = self._request.windows
            read = [tokens[: plan.semantic_length] for tokens in semantic]
            read = as_upstream_pads(read, plan.semantic_steps or 0, self._manifest.unique_consecutive)
            coarse = self._frames("coarse", [self._coarse(item, read[item]) for item in items])
        fine = [item.fine for item in given if item.fine is not None]
        if not self._request.stage_done("fine"):
            fine = self._frames("fine", [self._fine(item, coarse[item]) for item in items])
        return [Tokens(*item) for item in zip(semantic, coarse, fine, strict=True)]

    def _semantic(self, item: int, known: np.ndarray) -> Sequence:
        length, request = self._request.windows.semantic_steps or 0, self._request
        draw, context = self._draw("semantic", item, len(known)), self._context("semantic", item)
        return semantic_sequence(self._manifest.semantic, max(length, len(known)), request.semantic_end_allowed, known, draw, context)

    def _coarse(self, item: int, semantic: np.ndarray) -> Sequence:
        known, columns = self._known("coarse", item), self._columns["coarse"]
        draw, context = self._draw("coarse", item, known.size), self._context("coarse", item)
        return coarse_sequence(self._manifest.coarse, semantic, self._request.frames or 0, columns, True, known, draw, context, False)

    def _fine(self, item: int, coarse: np.ndarray) -> Sequence:
        known, columns = self._known("fine", item)[: len(coarse)], self._columns["fine"]
        draw, context = self._draw("fine", item, known.size), self._context("fine", item)
        trained = (self._request.frames or 0) * self._manifest.codec.groups
        return fine_sequence(self._manifest.fine, coarse, columns, known, draw, context, trained)

    def _frames(self, stage: str, sequences: list[Sequence]) -> list[np.ndarray]:
        """Return the codes of coarse or fine, int64 [frames, columns] of each item, its prime's included."""
        columns, made = self._columns[stage], self._decode(stage, sequences)
        return [np.concatenate([self._known(stage, item), tokens.reshape(-1, columns)]) for item, tokens in enumerate(made)]

    def _decode(self, stage: str, sequences: list[Sequence]) -> list[np.ndarray]:
        """Return the tokens that sequences get, as many at once as have slots."""
        tokens: dict[Sequence, list[np.ndarray]] = {sequence: [] for sequence in sequences}
        total, left = sum(sequence.steps for sequence in sequences), [sequence for sequence in sequences if sequence.steps]
        with self._decoding(stage) as batch:
            running: set[Sequence] = set()
            while left or running:
                while left and len(running) < batch.slots:
                    running.add(left[0])
                    batch.join(left.pop(0))
                batch.advance(0 if batch.waiting() else 1, POSITIONS_AT_ONCE)
                for made in batch.collect():
                    if made.error is not None:
                        raise made.error
                    tokens[made.sequence].append(made.tokens)
                    if made.done:
                        running.discard(made.sequence)
                        total -= made.sequence.steps - sum(map(len, tokens[made.sequence]))  # an end token comes early
                self._report(stage, sum(len(part) for parts in tokens.values() for part in parts), total)
        return [np.concatenate([np.zeros(0, np.int64), *parts]) for parts in tokens.values()]

    def _known_semantic(self, item: int) -> np.ndarray:
        prime = self._primes[item]
        if prime is None:
            return np.zeros(0, np.int64)
        return unique_consecutive(prime.semantic) if self._manifest.unique_consecutive else prime.semantic

    def _known(self, stage: str, item: int) -> np.ndarray:
        """int64 [frames, columns] of a prime, [0, columns] without one."""
        prime = self._primes[item]
        return np.zeros((0, self._columns[stage]), np.int64) if prime is None else getattr(prime, stage)

    def _draw(self, stage: str, item: int, first: int) -> Draw:
        request, decoder = self._request, getattr(self._manifest, stage)
        noise = None if self._noise is None else self._noise[item].of(stage, decoder.vocabulary)
        sampling = unguided(decoder, request.sampling[stage])
        return Draw(request.seeds[item // request.num_samples], item % request.num_samples, first, sampling, noise)

    def _context(self, stage: str, item: int) -> Context:
        return self._contexts[item // self._request.num_samples][stage]


def as_upstream_pads(semantic: list[np.ndarray], steps: int, unique: bool) -> list[np.ndarray]:
    """Return upstream's batch after the semantic stage: -1 from the end token on, collapsed like any token, then padded with -1."""
    length = max(len(tokens) + (len(tokens) < steps) for tokens in semantic)
    rows = [np.pad(tokens, (0, length - len(tokens)), constant_values=-1) for tokens in semantic]
    if not unique:
        return rows
    rows = [unique_consecutive(row) for row in rows]
    longest = max(len(row) for row in rows)
    return [np.pad(row, (0, longest - len(row)), constant_values=-1) for row in rows]
