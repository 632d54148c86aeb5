"""A batch by the native step (`kernels/decoder_step`): its hot loop is in C++, at the granularity of frames.

In: a native model, sequences. Out: their tokens, those of `GraphBatch` at 32 bits but for the order of sums.
"""

from __future__ import annotations

import numpy as np

from ...kernels.decoder_step import Model
from ...kernels.decoder_step.slots import Slots
from ..batch import SLOTS, Made
from ..sequence import Sequence


class NativeBatch:
    """See `runtime.batch.Batch`."""

    def __init__(self, model: Model, slots: int = SLOTS) -> None:
        self.slots, self._model, self._native = slots, model, Slots(model)
        self._taken: dict[Sequence, int] = {}  # with the native step's ids, in the order of joining
        self._interrupted = False
        self._noisy: list[Sequence] = []  # those with noise of the caller's
        self._failed: dict[Sequence, Exception] = {}  # those whose noise failed

    @property
    def fed(self) -> int:
        """Positions of prompts that were computed; copied ones are not counted."""
        return self._native.computed

    def join(self, sequence: Sequence) -> None:
        if len(self._taken) == self.slots:
            raise ValueError(f"all {self.slots} slots are taken.")
        draw, prompt, context = sequence.draw, sequence.prompt, sequence.context
        layers = range(sum(name.endswith(".key") for name in context.arrays))
        self._taken[sequence] = self._native.join(
            ids=prompt.ids,
            query=prompt.query,
            key=prompt.key,
            context_keys=[context.arrays[f"context.{layer}.key"][0] for layer in layers],
            context_values=[context.arrays[f"context.{layer}.value"][0] for layer in layers],
            prefix=context.prefix,
            guided=sequence.guided,
            rules=sequence.rules.integers(),
            known=sequence.known,
            in_frames=sequence.in_frames,
            steps=sequence.steps,
            seed=draw.seed,
            item=draw.item,
            first=draw.first,
            temperature=draw.sampling.temperature,
            scale=draw.sampling.cond_scale,
            position_ids=None if sequence.position_ids is None else sequence.position_ids[: sequence.capacity],
        )
        if draw.noise is not None:
            self._noisy.append(sequence)

    def waiting(self) -> int:
        return self._native.waiting

    def advance(self, frames: int, positions: int) -> None:
        if not self._noisy:
            self._native.advance(frames, positions)
            return
        self._native.advance(0, positions)
        self._interrupted = False
        for _ in range(frames):  # noise is asked for when it is needed, and a sequence may end in any frame
            kept = [self._try_noise(sequence) for sequence in self._noisy]
            self._native.advance(1, 0)
            del kept
            if self._interrupted:
                break

    def _try_noise(self, sequence: Sequence) -> np.ndarray | None:
        """Set the noise of a sequence's next frame, or end the sequence, and no other, if its noise fails."""
        try:
            return self._set_noise(sequence)
        except Exception as error:  # of the caller's noise
            self.leave(sequence)
            self._failed[sequence] = error
            return None

    def _set_noise(self, sequence: Sequence) -> np.ndarray | None:
        made, draw = self._native.sampled(self._taken[sequence]), sequence.draw
        if made is None or draw.noise is None or not draw.sampling.temperature:
            return None
        count = min(self._model.sizes.outputs, sequence.steps - made)
        noise = np.stack([draw.noise(draw.first + made + step) for step in range(count)]).astype(np.float32, copy=False)
        self._native.set_noise(self._taken[sequence], noise)
        return noise

    def interrupt(self) -> None:
        self._interrupted = True
        self._native.interrupt()

    def collect(self) -> list[Made]:
        made = [Made(sequence, np.zeros(0, np.int64), True, error) for sequence, error in self._failed.items()]
        self._failed.clear()
        for sequence, number in list(self._taken.items()):
            tokens, done = self._native.collect(number)
            if len(tokens) or done:
                made.append(Made(sequence, tokens, done))
            if done:
                self.leave(sequence)
        return made

    def leave(self, sequence: Sequence) -> None:
        self._failed.pop(sequence, None)
        if (number := self._taken.pop(sequence, None)) is not None:
            self._native.leave(number)
            self._noisy = [other for other in self._noisy if other is not sequence]

    def logits(self, sequence: Sequence) -> np.ndarray:
        """Return the logits of the last frame, float32 [outputs, 1, V], or [outputs, 2, V] with the pass without condition last."""
        return self._native.logits(self._taken[sequence], sequence.guided)

    def close(self) -> None:
        self._taken.clear()
        self._noisy.clear()
        self._failed.clear()
        self._native.close()
