"""Teacher forcing: sequences whose tokens are given beforehand, and the logits of every step of them.

In: a batch on the host, sequences, tokens. Out: logits. It is how forms of a step are compared and timed; music is not made this way.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import replace
from typing import Protocol

import numpy as np

from ..kernels.sampling.constants import NEVER
from .batch import Batch
from .bundle import Sampling
from .sequence import Sequence


class HostBatch(Batch, Protocol):
    """A batch whose logits can be read."""

    def logits(self, sequence: Sequence) -> np.ndarray:
        """Return the logits of the last frame, float32 [outputs, 1, V], or [outputs, 2, V] with the pass without condition last."""
        ...


def forced(sequence: Sequence, tokens: np.ndarray, vocabulary: int) -> Sequence:
    """Return the sequence with these tokens, int64 [n], as the only ones that can be drawn, and one step more, whose token is any.

    None of them is the end token: it has no embedding in every stage, and cannot be fed.
    """
    first = sequence.draw.first

    def noise(step: int) -> np.ndarray:
        drawn = np.full(vocabulary, -np.inf, np.float32)
        drawn[tokens[step - first] if step - first < len(tokens) else 0] = 0
        return drawn

    sampling = Sampling(temperature=1.0, filter_thres=0.0, cond_scale=sequence.draw.sampling.cond_scale)
    rules = sequence.rules._replace(frame=NEVER, k=vocabulary)  # no entry is excluded
    return replace(sequence, rules=rules, steps=len(tokens) + 1, draw=replace(sequence.draw, sampling=sampling, noise=noise))


def logits_of(batch: HostBatch, sequences: Many[Sequence]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Run sequences together. Return the tokens of each, int64 [steps], and its logits, float32 [steps, 1 or 2, V].

    Raises the error of a sequence that fails.
    """
    for sequence in sequences:
        batch.join(sequence)
    batch.advance(0, batch.waiting())
    tokens: dict[Sequence, list[np.ndarray]] = {sequence: [] for sequence in sequences}
    logits: dict[Sequence, list[np.ndarray]] = {sequence: [] for sequence in sequences}
    left = set(sequences)
    while left:
        batch.advance(1, 0)
        for sequence in left:
            logits[sequence].append(batch.logits(sequence))
        for made in batch.collect():
            if made.error is not None:
                raise made.error
            tokens[made.sequence].append(made.tokens)
            if made.done:
                left.discard(made.sequence)
    together = [np.concatenate(logits[one])[: one.steps] for one in sequences]
    return [np.concatenate(tokens[one]) for one in sequences], together
