"""Which clip goes on next: the queue, the slots of three batches, deadlines, cancelling, and the thread that runs it all.

In: tasks, each the clips of one request. Out: their chunks and tokens. It knows neither prompts nor files. The tokens of a clip depend on
the clip alone, so the order in which clips run is free:

1. A task that someone listens to and that has not sounded yet, the oldest first, with those that came with it; then the tasks whose next
   chunk is due. Of a clip the latest stage that can run: codec, fine, coarse, semantic. Where several chunks are due, the stage that most
   of them wait for.
2. Tasks whose next chunk is not due yet: fine's prompts, then coarse, then semantic, so that chunks come evenly while later windows are
   prepared.
3. Tasks that are collected, the oldest first, with those that came with it: the earliest stage of all their clips, so that they run
   together.

Prompts are fed in pieces while a clip sounds, so that a clip that plays waits for one piece and one frame at most. A call of a batch is
interrupted after a frame when a task comes, changes or goes.
"""

from __future__ import annotations

import atexit
import logging
import math
import queue
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .batch import POSITIONS_AT_ONCE, Batch, Made
from .bundle import STAGES
from .sequence import Sequence
from .task import Task
from .track import Track

_LOG = logging.getLogger(__name__)

QUEUE = 1024  # tasks at most
TOGETHER_S = 0.1  # smaller tasks that came within so much of the oldest are taken as one with it, so that their clips run together
RESERVED = 4  # slots of a batch that only clips with a listener take
IN_HAND_S = 10.0  # with so much in hand a clip that plays waits for those that are collected
MOST_FRAMES = 1 << 10  # of one call
TURN_S = {True: 0.1, False: 0.25}  # of one call of a batch at most, while somebody listens and otherwise; its steps share its cost
CLOSED = "this MusicLM is closed."


class Backend(Protocol):
    """What computes."""

    def batch(self, stage: str) -> Batch:
        """Return a new batch of a stage."""
        ...

    def turn(self) -> AbstractContextManager[None]:
        """Hold the device."""
        ...


@dataclass(frozen=True)
class Activity:
    """What a scheduler is doing, and what it has done since it was made."""

    tasks: int
    rows: dict[str, int]  # sequences that run, by stage
    in_hand_s: float  # of the listener who has least, seconds that were made and have not been played; inf without a listener
    silent: int  # tasks that someone listens to and that have not sounded yet
    slots: float  # sequences that can run at once in a stage; inf while none has run
    busy_s: float  # seconds in which something was done
    audio_s: float  # seconds of audio that were made, all clips together


class QueueFull(RuntimeError):
    """Too many requests are waiting."""


_OPEN: weakref.WeakSet[Scheduler] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """End what runs when Python does: a thread that Python ends inside native code ends the process with an abort."""
    for one in list(_OPEN):
        one.close()


class Scheduler:
    """Runs tasks, in a thread of its own that lives while there are any."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        # Both may be used by a thread that is using them already: a stream that nobody holds is cancelled wherever Python finds it.
        self._lock = threading.RLock()
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed, self._count = False, 0
        _OPEN.add(self)
        # what follows is the worker's
        self._tasks: list[Task] = []  # the oldest first
        self._owners: dict[Sequence, tuple[Task, Track, str]] = {}
        self._batches: dict[str, Batch] = {}
        self._changed = True  # whether more than the tokens of sequences has changed since windows were begun
        self._frame_s: dict[str, float] = dict.fromkeys(STAGES, 0.005)  # of a batch, as measured last
        self._busy_s = self._audio_s = 0.0

    def submit(self, task: Task) -> None:
        """Queue a task. Raises QueueFull, and RuntimeError after `close`."""
        with self._lock:
            if self._closed:
                raise RuntimeError(CLOSED)
            if self._count >= QUEUE:
                raise QueueFull(f"{QUEUE} requests are waiting already: ask again when some of them have ended.")
            self._call(lambda: self._add(task))
            self._count += 1

    def cancel(self, task: Task, error: BaseException | None = None) -> None:
        """End a task: its rows are free after the frame that runs. error: for whoever waits for it."""
        if not task.ended:
            self.call(lambda: self._end(task, error))

    def call(self, command: Callable[[], None]) -> None:
        """Have a command run in the scheduler's thread, between two frames."""
        with self._lock:
            self._call(command)

    def activity(self) -> Activity:
        """Return what is being done, as any thread sees it."""
        tasks = list(self._tasks)
        rows = Counter(stage for _, _, stage in list(self._owners.values()))
        sounding = [task.in_hand_s for task in tasks if task.live and task.playback.sounds]
        silent = sum(task.live and not task.playback.sounds for task in tasks)
        in_hand_s, slots = min(sounding, default=math.inf), min((one.slots for one in list(self._batches.values())), default=math.inf)
        return Activity(self._count, {stage: rows[stage] for stage in STAGES}, in_hand_s, silent, slots, self._busy_s, self._audio_s)

    def close(self) -> None:
        """End all tasks with an error that says so, wait for the thread, and free the batches."""
        with self._lock:
            self._closed = True
            self._call(lambda: self._end_all(RuntimeError(CLOSED)))
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _call(self, command: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="musiclm", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # the system has no thread left
                self._thread = None
                raise
        self._commands.put(command)
        for batch in list(self._batches.values()):
            batch.interrupt()

    # --- the worker

    def _work(self) -> None:
        busy = True  # whether there may be something to do without a command
        while True:
            if not busy and not self._tasks:
                with self._lock:
                    if self._commands.empty():
                        self._thread = None
                        return
            try:
                command = self._commands.get(block=not busy and bool(self._tasks))
            except queue.Empty:
                command = None
            try:
                if command is not None:
                    command()
                busy = command is not None or (bool(self._tasks) and self._step())
            except Exception as error:  # a fault of the scheduler: whoever waits must not wait for ever
                _LOG.exception("the scheduler failed: every request ends")
                self._end_all(error)

    def _add(self, task: Task) -> None:
        self._tasks.append(task)
        self._changed = True

    def _step(self) -> bool:
        """Do the next thing. Return whether there was one."""
        started = time.perf_counter()
        self._begin()
        live, stage = [task for task in self._tasks if task.live], None
        if (found := self._can_decode(live)) is None and (stage := self._awaited(live)) is None:
            found, stage = self._collected()
        if found is not None:
            self._decode(*found)
        elif stage is not None:
            self._advance(stage, live)
        if did := found is not None or stage is not None:
            self._busy_s += time.perf_counter() - started
        return did or self._changed

    def _begin(self) -> None:
        """Join the windows that can begin, those of listeners first."""
        changed, self._changed = self._changed, False
        for task in sorted(self._tasks, key=lambda task: not task.live):
            if not (task.live or changed):
                break
            try:
                for stage in task.next_stages():
                    for track in task.tracks:
                        while task.may_begin(track, stage) and self._has_slot(stage, task.live):
                            self._join(task, track, stage)
            except Exception as error:  # of this task alone
                self._end(task, error)

    def _join(self, task: Task, track: Track, stage: str) -> None:
        sequence = track.begin(stage)
        if sequence.steps < 1:  # everything is known
            track.take(stage, Made(sequence, np.zeros(0, np.int64), True))
            self._changed = True
            return
        self._owners[sequence] = task, track, stage
        with self._backend.turn():
            self._batches[stage].join(sequence)

    def _has_slot(self, stage: str, live: bool) -> bool:
        if stage not in self._batches:
            with self._backend.turn():
                batch = self._backend.batch(stage)
            with self._lock:
                self._batches[stage] = batch
        slots = self._batches[stage].slots
        taken = sum(of == stage for _, _, of in self._owners.values())
        return taken < slots - (0 if live else min(RESERVED, slots // 2))

    def _can_decode(self, tasks: list[Task]) -> tuple[Task, Track] | None:
        return next(((task, track) for task in tasks for track in task.tracks if track.can_decode), None)

    def _awaited(self, live: list[Task]) -> str | None:
        """Return the stage to run for those who listen, if any of their windows run."""
        running = [(task, stages) for task in live if (stages := task.stages())]
        if silent := _together([task for task, _ in running if not task.playback.sounds]):
            return min((task.stages()[-1] for task in silent), key=STAGES.index)
        now = time.perf_counter()
        if votes := Counter(stages[-1] for task, stages in running if task.playback.due <= now and task.playback.in_hand_s < IN_HAND_S):
            return votes.most_common(1)[0][0]
        if any(not task.live for task in self._tasks):  # who has enough in hand waits for those that are collected
            running = [one for one in running if one[0].playback.in_hand_s < IN_HAND_S]
        if not running:
            return None
        stages = min(running, key=lambda one: one[0].playback.due)[1]
        if len(stages) > 1 and stages[-1] == STAGES[-1] and not self._batches[STAGES[-1]].waiting():
            stages.pop()
        return stages[-1]

    def _collected(self) -> tuple[tuple[Task, Track] | None, str | None]:
        """Return what the oldest of the tasks that are collected can decode, or else the stage that it needs. One that has nothing to run
        waits for a slot: those behind it go on until there is one."""
        collected = [task for task in self._tasks if not task.live]
        for first in range(len(collected)):
            running = {task: task.stages() for task in _together(collected[first:])}
            if found := self._can_decode([task for task, stages in running.items() if not stages]):
                return found, None
            if stage := min((stages[0] for stages in running.values() if stages), key=STAGES.index, default=None):
                return None, stage
        return None, None

    def _frames(self, stage: str, live: list[Task]) -> int:
        """Return how many frames to run before there is something else to do: a chunk, a window that can begin, or one that is due."""
        now, turn, most = time.perf_counter(), TURN_S[bool(live)], MOST_FRAMES
        for task in live:
            if task.tracks[0].running[stage]:
                most = min(most, task.tracks[0].frames_until_next(stage))
            elif task.playback.sounds:
                turn = min(turn, max(task.playback.due - now, 0.0))
        return max(min(int(turn / self._frame_s[stage]), most), 1)

    def _advance(self, stage: str, live: list[Task]) -> None:
        batch, started = self._batches[stage], time.perf_counter()
        own = list({id(task): task for task, _, of in self._owners.values() if of == stage}.values())
        waiting = batch.waiting()
        frames = self._frames(stage, live)
        if waiting:  # clips of which none sounds yet begin together
            silent = _together([task for task in own if task.live and not task.playback.sounds])
            frames = 0 if not live or 1 < len(own) == len(silent) else 1
        try:
            with self._backend.turn():
                batch.advance(frames, POSITIONS_AT_ONCE if any(task.playback.sounds for task in live) else waiting)
                made = batch.collect()
        except Exception as error:  # nothing is known of the batch any more
            self._fail(stage, error)
            return
        taken = time.perf_counter() - started
        if not waiting and (run := max((len(one.tokens) / one.sequence.rules.place.quantizers for one in made), default=0)):
            self._frame_s[stage] = taken / run
        for task in own:
            task.spend(stage, taken)
        changed: dict[int, Task] = {}
        for one in made:
            if (owner := self._owners.get(one.sequence)) is None:  # another sequence has just ended its task
                continue
            task, track, _ = owner
            if one.done:
                del self._owners[one.sequence]
                self._changed = True
            if one.error is not None:
                self._end(task, one.error)
                continue
            try:
                track.take(stage, one)
                changed[id(task)] = task
            except Exception as error:  # of this task alone
                self._end(task, error)
        for task in changed.values():
            task.report(stage)

    def _decode(self, task: Task, track: Track) -> None:
        started = time.perf_counter()
        try:
            chunk = track.decode()
        except Exception as error:  # of this task alone
            self._end(task, error)
            return
        taken = time.perf_counter() - started
        task.spend("codec", taken)
        if chunk is not None:
            self._audio_s += len(chunk.audio) / chunk.sample_rate
            task.put(track, chunk)
        task.report_decoded()
        if task.kept_s is not None:
            track.forget(task.kept_s)
        if all(one.done for one in task.tracks):
            self._end(task, None)

    def _end(self, task: Task, error: BaseException | None) -> None:
        if task not in self._tasks:
            return
        self._tasks.remove(task)
        self._changed = True
        with self._lock:
            self._count -= 1
        own = [(sequence, stage) for sequence, (owner, _, stage) in self._owners.items() if owner is task]
        try:
            for sequence, stage in own:
                del self._owners[sequence]
                self._batches[stage].leave(sequence)
        finally:
            task.end(error)

    def _fail(self, stage: str, error: Exception) -> None:
        """End the tasks that have rows in a batch, and make a new one for those that come."""
        with self._lock:
            batch = self._batches.pop(stage)
        for task in {id(task): task for task, _, of in self._owners.values() if of == stage}.values():
            for sequence in [sequence for sequence, (owner, _, of) in self._owners.items() if owner is task and of == stage]:
                del self._owners[sequence]
            self._end(task, error)
        batch.close()

    def _end_all(self, error: BaseException) -> None:
        tasks, self._tasks = self._tasks, []
        self._owners.clear()
        with self._lock:
            self._count -= len(tasks)
            batches, self._batches = list(self._batches.values()), {}
        for task in tasks:
            task.end(error)
        for batch in batches:
            batch.close()


def _together(tasks: list[Task]) -> list[Task]:
    """Return the first of tasks, the oldest, and those that came with it and are no larger."""
    return [task for task in tasks if task.came - tasks[0].came < TOGETHER_S and task.frames <= tasks[0].frames]
