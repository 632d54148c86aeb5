"""A batch by the stage's ONNX graph, with numpy around it: the reference for every other one, and what runs without a compiler.

In: a session of the graph, sequences. Out: their tokens. The bits of a product of ONNX Runtime depend on how many rows it has, so each
sequence is a call of its own, with one row, or with guidance two, and its prompt is always fed in the same pieces: its tokens are then
the same in any batch. Inputs and outputs are bound once per sequence; the caches are written in place.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..batch import POSITIONS_AT_ONCE, SLOTS, Made
from ..bundle import Decoder
from ..noise import SeededNoise
from ..ort import import_onnxruntime
from ..sampling import guide, sample
from ..sequence import PREFIX_KEY, Positions, Sequence, place_tokens

if TYPE_CHECKING:
    import onnxruntime as ort


class GraphBatch:
    """See `runtime.batch.Batch`."""

    def __init__(self, session: ort.InferenceSession, decoder: Decoder, slots: int = SLOTS, capacity: int | None = None) -> None:
        """capacity: positions of every cache, for a graph that was made for so many; by default as many as a sequence needs."""
        self.slots, self.fed = slots, 0  # fed: positions of prompts that were computed, copied ones not counted
        self._session, self._decoder, self._capacity = session, decoder, capacity
        self._taken: dict[Sequence, _Slot] = {}  # in the order of joining
        self._interrupted = False
        self._outputs = decoder.outputs

    def join(self, sequence: Sequence) -> None:
        if len(self._taken) == self.slots:
            raise ValueError(f"all {self.slots} slots are taken.")
        if self._capacity is not None and sequence.capacity > self._capacity:
            raise ValueError(f"the caches hold {self._capacity} positions, this sequence needs {sequence.capacity}.")
        self._taken[sequence] = _Slot(self._session, self._decoder, sequence, self._outputs, self._capacity or sequence.capacity)

    def waiting(self) -> int:
        return sum(row.left for slot in self._taken.values() for row in slot.rows)

    def advance(self, frames: int, positions: int) -> None:
        rows = [row for slot in self._taken.values() for row in slot.rows]
        for row in rows:
            while row.left and positions > 0:
                if (source := next((other for other in rows if other.fed > row.fed and other.has_prompt_of(row)), None)) is not None:
                    row.copy(source)
                else:
                    count = row.feed()
                    positions -= count
                    self.fed += count
                    if self._interrupted:
                        positions = 0
        for frame in range(frames):
            if frame and self._interrupted:
                break
            live = [slot for slot in self._taken.values() if not slot.done and not any(row.left for row in slot.rows)]
            for head in range(self._outputs):
                for slot in live:
                    if not slot.done:
                        slot.step(head)
        self._interrupted = False

    def interrupt(self) -> None:
        self._interrupted = True

    def collect(self) -> list[Made]:
        made = [Made(slot.sequence, slot.take(), slot.done, slot.error) for slot in self._taken.values() if slot.tokens or slot.done]
        for one in made:
            if one.done:
                self.leave(one.sequence)
        return made

    def leave(self, sequence: Sequence) -> None:
        if (slot := self._taken.pop(sequence, None)) is not None:
            slot.free()

    def logits(self, sequence: Sequence) -> np.ndarray:
        """Return the logits of the last frame, float32 [outputs, 1, V], or [outputs, 2, V] with the pass without condition last."""
        return self._taken[sequence].frame_logits.copy()

    def close(self) -> None:
        for sequence in list(self._taken):
            self.leave(sequence)


class _Slot:
    """One sequence: caches float32 [R, 1, capacity, D] per layer, with guidance two rows, of which the second has no condition."""

    def __init__(self, session: ort.InferenceSession, decoder: Decoder, sequence: Sequence, outputs: int, capacity: int) -> None:
        self.sequence, self.decoder, self.session = sequence, decoder, session
        R, depth = 1 + sequence.guided, decoder.depth
        shape = (R, 1, capacity, decoder.cache_head_size)
        self.caches = {f"{layer}.{part}": _aligned_zeros(shape) for layer in range(depth) for part in ("key", "value")}
        self.key_coordinates = np.zeros((R, capacity), np.int64)
        self.states = {f"{layer}": _aligned_zeros((R, 2, 2 * decoder.step.inner)) for layer in range(depth * decoder.step.convolution)}
        self.kept: dict[str, np.ndarray] = {}  # the states where the prompt ended, for other slots of the same prompt
        self.logits = np.zeros((R, decoder.vocabulary), np.float32)
        self.frame_logits = np.zeros((outputs, *self.logits.shape), np.float32)
        conditions = [sequence.context.arrays, sequence.context.without_condition()][:R]
        self.context = {
            name: np.concatenate([one[name] for one in conditions]) for name in sequence.context.arrays if name != "prefix_embeddings"
        }
        self.rows = [_Row(self, row) for row in range(R)]
        self.tokens: list[int] = []  # that were not collected yet
        self.made, self.done = 0, False
        self.error: Exception | None = None
        last = Positions(*(part[-1:] for part in (sequence.prompt.ids, sequence.prompt.query, sequence.prompt.key)))
        self._next = last  # the position that the next step feeds
        draw, stage = sequence.draw, sequence.rules.stage
        self._noise = draw.noise or SeededNoise(stage, draw.seed, draw.item, decoder.vocabulary)
        self._binding: Binding | None = None

    def take(self) -> np.ndarray:
        tokens, self.tokens = np.array(self.tokens, np.int64), []
        return tokens

    def free(self) -> None:
        """Let go of the caches: rows and binding point back at the slot, and Python frees such circles late."""
        self.rows.clear()
        self.caches.clear()
        self.states.clear()
        self._binding = None

    def step(self, head: int) -> None:
        """Feed the next position of every row, and sample."""
        if self._binding is None:
            self.kept = {name: state.copy() for name, state in self.states.items()}
            self._binding = Binding(self, slice(0, len(self.rows)), 1)
        for row in self.rows:
            self.key_coordinates[row.row, row.fed] = self._next.key[0]
            row.fed += 1
        lengths = np.array([row.fed for row in self.rows])
        self._binding.run(self._next.ids, self._next.query, lengths, head, lengths.max() - 1)
        self.frame_logits[head] = self.logits
        try:
            token = self._sample()
        except Exception as error:  # of the caller's noise
            self.done, self.error = True, error
            return
        self.made += 1
        if token == self.sequence.rules.end:
            self.done = True
            return
        self.tokens.append(token)
        self.done = self.made == self.sequence.steps
        self._next = place_tokens(self.sequence.rules.place, self.sequence.known + self.made - 1, np.array([token]))

    def _sample(self) -> int:
        sequence, config = self.sequence, self.sequence.draw.sampling
        scores = guide(self.logits[:1], self.logits[1:], config.cond_scale) if sequence.guided else self.logits
        noise = self._noise(sequence.draw.first + self.made)[None] if config.temperature else np.zeros((1, scores.shape[1]), np.float32)
        return int(sample(scores, noise, config.temperature, config.filter_thres, sequence.forbids_end(self.made))[0])


class _Row:
    """One row of a slot: its prompt, a conditioning prefix included, and how much of it is in the caches."""

    def __init__(self, slot: _Slot, row: int) -> None:
        self.slot, self.row, self.fed = slot, row, 0
        prompt, prefix = slot.sequence.prompt, slot.sequence.context.prefix if row == 0 else None
        if prefix is not None:
            C = len(prefix)
            prompt = Positions.join(Positions(np.zeros(C, np.int64), np.zeros(C, np.int64), np.full(C, PREFIX_KEY)), prompt)
        self.prompt, self.prefix = prompt, prefix
        slot.key_coordinates[row, : len(prompt)] = prompt.key
        self._key = b"".join(part.tobytes() for part in (prompt.ids, prompt.query, prompt.key))

    @property
    def left(self) -> int:
        """Positions to feed before the first step, which feeds the last one of the prompt."""
        return max(len(self.prompt) - 1 - self.fed, 0)

    def has_prompt_of(self, other: _Row) -> bool:
        """Return whether this row feeds what another does, under the same condition."""
        conditioned = self.row == other.row and (self.row == 1 or self.slot.sequence.context is other.slot.sequence.context)
        return conditioned and self._key == other._key

    def copy(self, source: _Row) -> None:
        """Take what another row with the same prompt has computed of it."""
        first, last = self.fed, min(source.fed, len(self.prompt) - 1)
        for name, cache in self.slot.caches.items():
            cache[self.row, 0, first:last] = source.slot.caches[name][source.row, 0, first:last]
        for name, state in (source.slot.kept or source.slot.states).items():
            self.slot.states[name][self.row] = state[source.row]
        self.fed = last

    def feed(self) -> int:
        """Feed the next piece; pieces begin where they always do, since a product's bits depend on the number of its rows."""
        first = self.fed
        count = min(POSITIONS_AT_ONCE - first % POSITIONS_AT_ONCE, self.left)
        self.fed += count
        masks = ()
        if (width := self.slot.sequence.context.prefix) is not None:
            masks = np.zeros((1, count, 1), bool), np.zeros((1, count, width.shape[1]), np.float32)
            if self.prefix is not None and first < len(self.prefix):
                told = self.prefix[first : first + count]
                masks[0][0, : len(told)], masks[1][0, : len(told)] = True, told
        piece = slice(first, self.fed)
        binding = Binding(self.slot, slice(self.row, self.row + 1), count, *masks)
        binding.run(self.prompt.ids[piece], self.prompt.query[piece], np.arange(first + 1, self.fed + 1), 0, first)
        return count


class Binding:
    """A call of the graph for some rows of a slot, `count` positions of each; numbers are written into arrays that stay bound."""

    def __init__(
        self, slot: _Slot, rows: slice, count: int, prefix_mask: np.ndarray | None = None, prefix: np.ndarray | None = None
    ) -> None:
        R = rows.stop - rows.start
        self._slot, self._session = slot, slot.session
        self._ids, self._query, self._lengths = (np.zeros((R, count), np.int64) for _ in range(3))
        self._positions = np.zeros((R, count), np.int64)
        self._head, self._seqlens, self._total = np.zeros(1, np.int64), np.zeros(R, np.int32), np.zeros(1, np.int32)
        share = import_onnxruntime().OrtValue.ortvalue_from_numpy  # on the CPU the value and the array are the same memory
        self._binding = self._session.io_binding()
        inputs = {"row_ids": self._ids, "query_coordinates": self._query, "key_coordinates": slot.key_coordinates[rows]}
        inputs |= {"seqlens_k": self._seqlens, "total_sequence_length": self._total, "lengths": self._lengths, "head": self._head}
        inputs["position_ids"] = self._positions
        inputs |= {name: np.ascontiguousarray(array[rows]) for name, array in slot.context.items()}
        if slot.sequence.context.prefix is not None:
            dim = slot.sequence.context.prefix.shape[1]
            inputs["prefix_mask"] = np.zeros((R, count, 1), bool) if prefix_mask is None else prefix_mask
            inputs["prefix_embeddings"] = np.zeros((R, count, dim), np.float32) if prefix is None else prefix
        taken = {value.name for value in self._session.get_inputs()}  # one head is not chosen, lengths are told in one of two ways
        for name in inputs.keys() & taken:
            self._binding.bind_ortvalue_input(name, share(inputs[name]))
        for name, array in slot.caches.items():
            cache = share(array[rows])
            self._binding.bind_ortvalue_input(f"past_key_values.{name}", cache)
            self._binding.bind_ortvalue_output(f"present.{name}", cache)
        # a state is read where the next one is written, so these two are not the same memory
        self._states = [(state[rows], np.zeros_like(state[rows])) for state in slot.states.values()]
        for name, (before, after) in zip(slot.states, self._states, strict=True):
            self._binding.bind_ortvalue_input(f"past_conv.{name}", share(before))
            self._binding.bind_ortvalue_output(f"present_conv.{name}", share(after))
        self._binding.bind_ortvalue_output("logits", share(slot.logits[rows]))

    def run(self, ids: np.ndarray, query: np.ndarray, lengths: np.ndarray, head: int, first: int) -> None:
        """ids, query: int64 [count], the same in all rows; lengths: int64 [count] or [R], the positions up to each one.

        first: number of the first of these positions in its sequence.
        """
        self._ids[:], self._query[:] = ids, query
        if (absolute := self._slot.sequence.position_ids) is not None:
            self._positions[:] = absolute[first : first + len(ids)]
        self._lengths[:] = lengths.reshape(self._lengths.shape)
        self._seqlens[:] = self._lengths[:, -1] - 1
        self._total[0], self._head[0] = self._lengths.max(), head
        self._session.run_with_iobinding(self._binding)
        for before, after in self._states:
            before[:] = after


def _aligned_zeros(shape: tuple[int, ...]) -> np.ndarray:
    """float32 that begins with a cache line, as numpy's own do not: a wide load across two lines takes twice the time."""
    count = math.prod(shape)
    memory = np.zeros(count + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4
    return memory[first : first + count].reshape(shape)
