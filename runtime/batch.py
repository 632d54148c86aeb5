"""A batch of sequences of one stage, as a scheduler sees it, whatever computes it: the host's processors, CUDA kernels, TensorRT engines.

Every sequence is in a slot of its own, with its own caches, length, sampling settings and noise, and its tokens are those that it has
alone, to the bit. All sequences are at the same quantizer of a frame, so that one output projection serves a step: they join and leave
between frames. A frame is here the tokens after which output projections come round: one semantic token, or one of each quantizer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .sequence import Sequence

SLOTS = 16  # sequences of a batch on a host: from eight on a row gains nothing by others, and memory is theirs
POSITIONS_AT_ONCE = 64  # positions of prompts that are computed together: with more the activations leave the nearer caches


@dataclass(frozen=True)
class Made:
    """Tokens that a sequence has got since they were collected last."""

    sequence: Sequence
    tokens: np.ndarray  # int64 [n]; the end token is never among them
    done: bool  # whether it has all its tokens or has ended; it has left the batch then
    error: Exception | None = None  # why it ended early, e.g. of its own noise


class Batch(Protocol):
    """Sequences of one stage. One thread at a time uses it."""

    slots: int  # sequences at most

    def join(self, sequence: Sequence) -> None:
        """Give a sequence a slot. Raises MemoryError if its caches do not fit; the batch goes on without it then."""
        ...

    def waiting(self) -> int:
        """Return how many positions of prompts have not been fed yet."""
        ...

    def advance(self, frames: int, positions: int) -> None:
        """Feed at most `positions` positions of prompts, in the order of joining, then sample `frames` frames of every sequence whose
        prompt has been fed. May return before the device has done it."""
        ...

    def interrupt(self) -> None:
        """Make the `advance` that runs in another thread, or else the next one, return after a piece of a prompt and a frame."""
        ...

    def collect(self) -> Iterable[Made]:
        """Return what sequences have got; on a device, of all `advance`s but the last one while there is another to come."""
        ...

    def leave(self, sequence: Sequence) -> None:
        """Free a sequence's slot before it is done. A sequence that is not there is left alone."""
        ...

    def close(self) -> None:
        """Free all slots and whatever else the batch holds."""
        ...
