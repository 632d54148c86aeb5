"""A batch of sequences on a device: launches run ahead of the host, tokens come back some at a time, and no step waits for one.

In: a `DeviceModel`, sequences. Out: their tokens, those of `runtime.host.graph` on the same noise. A sequence has a slot, and with guidance
a second one for its pass without condition, whose caches differ. A step computes rows, each of which works on the slot that it was given:
as many as sequences are live, up to the next power of two, so that few lists are captured. Which slots these are changes between frames.
Prompts are fed before the frames of the same `advance`, in lists whose rows are positions of any slots.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from ...kernels.list_builder import Slots
from ...kernels.prompt.constants import Position
from ...kernels.sampling.constants import Factors, Progress, Settings
from ..batch import Made
from ..sequence import PREFIX_KEY, Positions, Sequence
from .driver import Buffer, DeviceError, Download
from .model import DeviceModel
from .slots import CapturedSlots

SLOTS = 32  # sequences of a batch: a row beside others costs a GPU little, but each has caches


@dataclass(eq=False)
class _Row:
    """One pass of a sequence, and how much of its prompt is in the caches, a conditioning prefix included."""

    slot: int
    prompt: Positions
    prefix: int  # positions of a conditioning prefix
    fed: int

    @property
    def length(self) -> int:
        return self.prefix + len(self.prompt)

    @property
    def left(self) -> int:
        """Positions to feed before the first step, which feeds the last one of the prompt."""
        return self.length - 1 - self.fed

    def feed(self, count: int) -> np.ndarray:
        """Return the next positions: int64 [count, Position]."""
        first = self.fed - self.prefix
        lengths, here = np.arange(self.fed, self.fed + count) + 1, slice(first, first + count)
        self.fed += count
        return np.stack([np.full(count, self.slot), lengths, self.prompt.ids[here], self.prompt.query[here]], axis=1)


@dataclass(eq=False)
class _Taken:
    """A sequence in the batch. The first of its rows is sampled, the second has no condition."""

    sequence: Sequence
    rows: list[_Row] = field(default_factory=list)
    stepped: int = 0  # steps that were launched
    tokens: list[int] = field(default_factory=list)  # that were not collected yet
    kept: int = 0  # tokens that have come back
    done: bool = False

    @property
    def waits(self) -> bool:
        return any(row.left for row in self.rows)

    @property
    def goes_on(self) -> bool:
        """Whether there are steps that were not launched."""
        return self.stepped < self.sequence.steps and not self.done


@dataclass
class _Download:
    """Tokens and progress of all slots on their way."""

    advance: int  # number of the advance that made them
    wait: Download
    owners: dict[int, _Taken]  # slot -> sequence


class DeviceBatch:
    """See `runtime.batch.Batch`. All batches of a driver, and whatever else uses it, take turns: one thread at a time."""

    def __init__(self, model: DeviceModel, slots: int = SLOTS) -> None:
        self.slots = min(slots, max(model.most_rows // 2, 1))  # with guidance a sequence has two rows
        self._model, self._driver = model, model.driver
        self._taken: dict[Sequence, _Taken] = {}  # in the order of joining
        self._captured: CapturedSlots | None = None
        self._placed: list[_Taken] | None = None  # sequences that the rows of steps have now
        self._rows: list[int] = []  # slot of each of these rows
        self._downloads: list[_Download] = []
        self._interrupted = False
        self._advances = self._collected = 0  # advances so far; those before the last `collect`
        self._driver.evictable.add(self)

    def join(self, sequence: Sequence) -> None:
        """Raises ValueError if there is no slot, or for a sequence that brings its own noise or is longer than an engine's caches."""
        if sequence.draw.noise is not None:
            raise ValueError("noise= is for device='cpu': a GPU draws the noise of a seed where its tokens are.")
        if len(self._taken) == self.slots:
            raise ValueError(f"all {self.slots} slots are taken.")
        taken = self._taken[sequence] = _Taken(sequence, done=sequence.steps < 1)
        self._placed = None
        try:
            rows = self._new_rows(sequence)
            self._upload(sequence, rows, self._with_slots(sequence, rows))
            taken.rows = rows
        except BaseException:
            del self._taken[sequence]
            raise

    def waiting(self) -> int:
        return sum(row.left for taken in self._taken.values() for row in taken.rows)

    def advance(self, frames: int, positions: int) -> None:
        self._advances += 1
        self._interrupted = False
        while positions > 0 and (fed := self._feed(positions)):
            positions -= fed
        steps = 0  # that no download is on its way of
        for _ in range(frames):
            live = [taken for taken in self._taken.values() if taken.goes_on and not taken.waits]
            if not live or self._interrupted:
                break
            captured = self._place(live)
            for head in range(self._model.sizes.outputs):
                captured.replay("step", len(self._rows), head)
                steps += 1
                if steps == self._model.ring:
                    self._download(captured)
                    steps = 0
            for taken in live:
                taken.stepped += self._model.sizes.outputs
        if steps and self._captured is not None:
            self._download(self._captured)

    def interrupt(self) -> None:
        self._interrupted = True

    def collect(self) -> list[Made]:
        another = any(taken.goes_on for taken in self._taken.values()) and self._advances > self._collected
        while self._downloads and not (another and self._downloads[0].advance == self._advances):
            self._receive(self._downloads.pop(0))
        self._collected = self._advances
        made = []
        for sequence, taken in [*self._taken.items()]:
            if taken.tokens or taken.done:
                made.append(Made(sequence, np.array(taken.tokens, np.int64), taken.done))
                taken.tokens = []
            if taken.done:
                self.leave(sequence)
        return made

    def leave(self, sequence: Sequence) -> None:
        if self._taken.pop(sequence, None) is not None:
            self._placed = None

    def logits(self, sequence: Sequence) -> tuple[Buffer, list[int]]:
        """Return the buffer of the last step's logits, float32 [rows, V], and the rows in it of a sequence that was stepped then."""
        assert self._captured is not None and self._placed is not None
        rows = [self._rows.index(row.slot) for row in self._taken[sequence].rows]
        return self._captured.buffers[f"rows{len(self._rows)}.logits"], rows

    def evict(self) -> None:
        """Free slots and captured lists if no sequence is in them."""
        if self._taken:
            return
        downloads, self._downloads = self._downloads, []
        self._captured = self._placed = None
        for one in downloads:  # the host's memory must stay while something is on its way to it
            with suppress(DeviceError):  # of a GPU that is lost nothing comes any more
                one.wait()

    def close(self) -> None:
        self._taken.clear()
        self.evict()

    def _new_rows(self, sequence: Sequence) -> list[_Row]:
        """Return rows in the lowest free slots."""
        used = {row.slot for taken in self._taken.values() for row in taken.rows}
        free = itertools.islice((slot for slot in itertools.count() if slot not in used), 1 + sequence.guided)
        prefixes = sequence.prefix_length, 0  # the pass without condition leaves the prefix out
        return [_Row(slot, sequence.prompt, prefix, prefix) for slot, prefix in zip(free, prefixes, strict=False)]

    def _with_slots(self, sequence: Sequence, rows: list[_Row]) -> CapturedSlots:
        """Return memory that has these rows' slots, and is long enough."""
        arrays = sequence.context.arrays
        keys = arrays["context.0.value"].shape[1] if "context.0.value" in arrays else 0
        count, capacity = self._model.count_slots(max(row.slot for row in rows) + 1), self._model.capacity(sequence.capacity)
        held = self._captured
        if held is not None and len(self._taken) > 1:
            if keys != held.slots.context:
                raise ValueError(f"a sequence with {keys} keys of conditioning cannot join others with {held.slots.context}.")
            count, capacity = max(count, held.slots.count), max(capacity, held.slots.capacity)
        elif held is not None and (held.slots.count < count or held.slots.capacity < capacity or held.slots.context != keys):
            held = self._captured = None  # it is empty: its memory is free for the other
        if held is None:
            held = self._captured = CapturedSlots(self._model, Slots(count, capacity, keys, self._model.ring))
        elif (count, capacity) != (held.slots.count, held.slots.capacity) and len(self._taken) > 1:
            held.grow(Slots(count, capacity, keys, self._model.ring))
        return held

    def _upload(self, sequence: Sequence, rows: list[_Row], captured: CapturedSlots) -> None:
        settings, factors = _settings(sequence), Factors(sequence.draw.sampling.cond_scale, sequence.draw.sampling.temperature)
        for name, record, dtype in (
            ("settings", settings, np.int64),
            ("factors", factors, np.float32),
            ("progress", Progress(drawn=0, running=int(sequence.steps > 0), kept=0), np.int64),
        ):
            captured.upload(name, np.array([record], dtype), rows[0].slot)
        conditions = sequence.context.arrays, sequence.context.without_condition()
        for row, condition in zip(rows, conditions, strict=False):
            prompt, keys = row.prompt, np.zeros((1, captured.slots.capacity), np.int64)
            keys[0, : row.prefix], keys[0, row.prefix : row.length] = PREFIX_KEY, prompt.key
            captured.upload("key_coordinates", keys, row.slot)
            last = Position(row.slot, row.length, int(prompt.ids[-1]), int(prompt.query[-1]))
            captured.upload("next", np.array([last]), row.slot)
            for name, array in condition.items():
                if name != "prefix_embeddings":
                    captured.upload(name, np.ascontiguousarray(self._model.context_array(name, array)), row.slot)
        if (prefix := sequence.context.prefix) is not None:
            count, slot = len(prefix), rows[0].slot
            captured.prepare("prefix", count)
            for layer, array in enumerate(self._model.keys_and_values(prefix)):
                captured.upload(f"prefix{count}.{layer}", np.ascontiguousarray(array))
            captured.upload(f"prefix{count}.slots", np.full(count, slot))
            captured.upload(f"prefix{count}.lengths", np.arange(count) + 1)
            captured.replay("prefix", count)

    def _feed(self, positions: int) -> int:
        """Feed prompts in one call, at most `positions` of them; return how many."""
        ends = {row.slot: row.fed + min(taken.stepped, taken.sequence.steps - 1) for taken in self._taken.values() for row in taken.rows}
        fed, count = dict[int, np.ndarray](), 0
        for row in (row for taken in self._taken.values() for row in taken.rows):
            part = min(row.left, self._model.positions, min(positions, self._model.at_once) - count)
            if part > 0:
                fed[row.slot] = row.feed(part)
                count += part
        if not count:
            return 0
        captured = self._captured
        assert captured is not None
        table = self._model.prompt_table(fed, ends, captured.slots)
        captured.prepare("feed", len(table))
        captured.upload(f"prompt{len(table)}.positions", table)
        captured.replay("feed", len(table))
        captured.replay("prompt", len(table))
        return count

    def _place(self, live: list[_Taken]) -> CapturedSlots:
        """Give the rows of the next steps these sequences' slots, unless they have them."""
        captured = self._captured
        assert captured is not None
        if self._placed != live:
            self._rows = self._model.rows([row.slot for taken in live for row in taken.rows], captured.slots)
            at = {slot: row for row, slot in reversed([*enumerate(self._rows)])}
            nulls = np.full(len(self._rows), -1)
            for taken in live:
                nulls[at[taken.rows[0].slot]] = at[taken.rows[-1].slot]
            R = len(self._rows)
            for of_list, name, array in (("begin", "at", np.array(self._rows)), ("step", "nulls", nulls)):
                captured.prepare(of_list, R)
                captured.upload(f"rows{R}.{name}", array)
            captured.replay("begin", R)
            self._placed = live
        return captured

    def _download(self, captured: CapturedSlots) -> None:
        wait = self._driver.download([captured.buffers["tokens"], captured.buffers["progress"]])
        owners = {taken.rows[0].slot: taken for taken in self._taken.values()}
        self._downloads.append(_Download(self._advances, wait, owners))

    def _receive(self, download: _Download) -> None:
        tokens, progress = download.wait()
        for slot, taken in download.owners.items():
            counts = Progress(*progress[slot].tolist())
            taken.tokens += tokens[slot, np.arange(taken.kept, counts.kept) % tokens.shape[1]].tolist()
            taken.kept, taken.done = counts.kept, not counts.running


def _settings(sequence: Sequence) -> Settings:
    draw, rules = sequence.draw, sequence.rules
    seed = int(np.array(draw.seed, np.uint64).view(np.int64))
    numbers = seed, draw.item, draw.first, sequence.known, sequence.in_frames, sequence.steps
    return Settings(*numbers, *rules.integers())
