"""The engine with its calls recorded, and clips that are made alone, one sequence at a time, without a scheduler."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from musiclm_deploy.runtime.backends import Backend, on_device, open_backend
from musiclm_deploy.runtime.batch import Batch, Made
from musiclm_deploy.runtime.bundle import STAGES, Bundle, Manifest
from musiclm_deploy.runtime.clip import Clip, Contexts, Samplings
from musiclm_deploy.runtime.codec import decode_codes
from musiclm_deploy.runtime.encoders import Encoders
from musiclm_deploy.runtime.music import Tokens
from musiclm_deploy.runtime.musiclm import MusicLM
from musiclm_deploy.runtime.pipeline import Pipeline, Prepared
from musiclm_deploy.runtime.request import Request
from musiclm_deploy.runtime.resume import Known
from musiclm_deploy.runtime.scheduler import Scheduler
from musiclm_deploy.runtime.sequence import Sequence
from musiclm_deploy.runtime.stream import Stream
from musiclm_deploy.runtime.task import Task
from musiclm_deploy.runtime.track import Track

from .drivers import HostDriver

SEMANTIC, COARSE, FINE = 14, 12, 5  # trained windows: tokens, frames, frames


def shortened(manifest: Manifest, unique: bool) -> Manifest:
    """Return a manifest with short windows, so that clips of a second have many. unique: whether semantic tokens carry no time."""
    lengths = {"semantic": SEMANTIC, "coarse": COARSE, "fine": FINE}
    decoders = {stage: replace(getattr(manifest, stage), max_length=length) for stage, length in lengths.items()}
    return replace(manifest, **decoders, unique_consecutive=unique)


@dataclass(frozen=True)
class Call:
    """One `advance` of a batch."""

    stage: str
    frames: int
    positions: int
    waiting: int  # positions of prompts that had not been fed
    seeds: frozenset[int]  # of the sequences that had a slot in the batch
    running: frozenset[int]  # and of those that had one in any batch


@dataclass
class Calls:
    """Every call of the batches of a backend, and functions that are called before, by the name of the method, with its arguments."""

    before: dict[str, Callable[..., object]] = field(default_factory=dict)
    advances: list[Call] = field(default_factory=list)
    made: list[tuple[int, str, int]] = field(default_factory=list)  # seed, stage and number of the tokens of one sequence that came
    rows: dict[int, dict[Sequence, str]] = field(default_factory=dict)  # by batch: the sequences that have a slot, and their stage

    def runs(self, seed: int) -> bool:
        """Return whether a sequence of a seed has a slot."""
        return any(sequence.draw.seed == seed for batch in list(self.rows.values()) for sequence in list(batch))


class RecordedBatch:
    """A batch that computes what another one does, and writes its calls down."""

    def __init__(self, batch: Batch, stage: str, calls: Calls) -> None:
        self._batch, self._stage, self._calls = batch, stage, calls
        self.slots, self._taken = batch.slots, calls.rows.setdefault(id(self), {})

    def join(self, sequence: Sequence) -> None:
        self._before("join", sequence)
        self._batch.join(sequence)
        self._taken[sequence] = self._stage

    def waiting(self) -> int:
        return self._batch.waiting()

    def advance(self, frames: int, positions: int) -> None:
        seeds = frozenset(sequence.draw.seed for sequence in self._taken)
        running = frozenset(sequence.draw.seed for batch in self._calls.rows.values() for sequence in batch)
        call = Call(self._stage, frames, positions, self._batch.waiting(), seeds, running)
        self._calls.advances.append(call)
        self._before("advance", call)
        self._batch.advance(frames, positions)

    def interrupt(self) -> None:
        self._batch.interrupt()

    def collect(self) -> Iterable[Made]:
        made = list(self._batch.collect())
        for one in made:
            self._calls.made.append((one.sequence.draw.seed, self._stage, len(one.tokens)))
            if one.done:
                del self._taken[one.sequence]
        return made

    def leave(self, sequence: Sequence) -> None:
        self._before("leave", sequence)
        self._batch.leave(sequence)
        self._taken.pop(sequence, None)

    def close(self) -> None:
        self._batch.close()
        self._calls.rows.pop(id(self), None)

    def _before(self, method: str, *arguments: Any) -> None:
        self._calls.before.get(method, lambda *_: None)(*arguments)


class RecordedBackend:
    """A backend whose batches write down their calls; the rest is that of another one."""

    def __init__(self, backend: Backend, calls: Calls) -> None:
        self._backend, self._calls = backend, calls

    def batch(self, stage: str) -> Batch:
        self._calls.before.get("batch", lambda *_: None)(stage)
        return RecordedBatch(self._backend.batch(stage), stage, self._calls)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


class RecordedClip(Clip):
    """A clip that remembers how many windows had begun whenever it was changed."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.arguments, self.begun = arguments, Counter[str]()
        self.changes: list[tuple[Counter[str], Any, Any, int]] = []  # windows begun by stage, contexts, sampling, the frame given

    def begin(self, stage: str) -> Sequence:
        sequence = super().begin(stage)
        self.begun[stage] += 1
        return sequence

    def change(self, contexts: Contexts | None = None, sampling: Samplings | None = None) -> int:
        frame = super().change(contexts, sampling)
        self.changes.append((Counter(self.begun), contexts, sampling, frame))
        return frame

    def again(self) -> RecordedClip:
        """Return the same clip at its beginning."""
        return RecordedClip(*self.arguments)


class Engine:
    """What a loaded MusicLM is made of, with recorded batches and clips."""

    def __init__(self, root: Path, step: str = "native", unique: bool = True) -> None:
        """step: "native", "graph", or "kernels", those of a GPU computed by their references on the host."""
        bundle = Bundle.open(root)
        bundle.manifest = shortened(bundle.manifest, unique)
        if step == "kernels":
            self.own = on_device(bundle, "cpu", 1, HostDriver(), "fp32")
        else:
            self.own = open_backend(bundle, "cpu", 1, step, "fp32")
        self.calls, self.bundle, self.encoders = Calls(), bundle, Encoders(bundle, self.own.graphs)
        self.backend: Any = RecordedBackend(self.own, self.calls)
        self.music = MusicLM(self.backend)  # its scheduler is another one
        self.open()

    def open(self) -> None:
        """Begin anew with a scheduler that is not closed."""
        self.scheduler = Scheduler(self.backend)
        self.pipeline = Pipeline(self.bundle, self.encoders, self.backend, self.scheduler)

    def stream(
        self, request: Request, start_s: float = 0.0, ahead_s: float = 10.0, kept_s: float | None = None
    ) -> tuple[Stream, RecordedClip]:
        """Begin to stream a request."""
        prepared, codec = self.pipeline.prepare(request), self.bundle.manifest.codec
        [clip] = self.clips(prepared)
        track = Track(clip, codec, self._decode, round(start_s * codec.sample_hz), request.samples)
        task = Task([track], live=True, ahead_s=ahead_s, kept_s=kept_s)
        task.taken_s = start_s
        return Stream(self.pipeline, prepared, task), clip

    def clips(self, prepared: Prepared) -> list[RecordedClip]:
        """Return a clip for each item of a request."""
        request, clips = prepared.request, []
        for item in range(request.items):
            prompt, candidate = divmod(item, request.num_samples)
            prime, seed, contexts = prepared.primes[prompt], request.seeds[prompt], prepared.contexts[prompt]
            known = None if prime is None else Known(prime, is_sound=True)
            of_all = self.bundle.manifest, request.windows, request.sampling
            clips.append(RecordedClip(*of_all, seed, candidate, contexts, request.end_allowed, known))
        return clips

    def _decode(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        return self.backend.graphs.run(self.bundle.manifest.codec.stream, **inputs)

    def alone(self, clip: RecordedClip, frames: int | None = None) -> tuple[Tokens, np.ndarray]:
        """Return the tokens and the wave of a clip whose sequences run one after another, each in a batch of its own.

        Its prompt is changed when as many windows have begun as had when the clip that is given was changed. frames: of a clip without end,
        how many are made at least.
        """
        again, changes = clip.again(), list(clip.changes)
        batches = {stage: self.own.batch(stage) for stage in STAGES}
        while changes or not (again.done if frames is None else again.frames("fine") >= frames):
            ready = [stage for stage in STAGES if again.ready(stage) and (not changes or again.begun[stage] < changes[0][0][stage])]
            stage = ready[-1] if ready else None
            if stage is not None:
                run_alone(batches[stage], again, again.begin(stage))
            else:
                assert changes, "no window can begin, and the clip is not done"
                _, contexts, sampling, frame = changes.pop(0)
                assert again.change(contexts, sampling) == frame
        for batch in batches.values():
            batch.close()
        wave = decode_codes(self.bundle.manifest.codec, self._decode, again.codes(0, again.frames("fine")), lambda: None)
        return again.tokens, wave

    def close(self) -> None:
        self.scheduler.close()
        self.music.close()


def run_alone(batch: Batch, clip: Clip, sequence: Sequence) -> None:
    """Decode one sequence that has a batch to itself."""
    if sequence.steps < 1:
        clip.take(sequence, np.zeros(0, np.int64), True)
        return
    batch.join(sequence)
    done = False
    while not done:
        batch.advance(7, 64)
        for made in batch.collect():
            if made.error is not None:
                raise made.error
            clip.take(sequence, made.tokens, made.done)
            done = made.done


def eventually(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Return whether something becomes true."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.002)
    return true()


def workers() -> list[threading.Thread]:
    """Return the threads of schedulers that live."""
    return [thread for thread in threading.enumerate() if thread.name == "musiclm"]


def same_tokens(a: Tokens, b: Tokens) -> bool:
    """Return whether all tokens and windows are equal."""
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in STAGES) and [*map(str, a.windows)] == [*map(str, b.windows)]
