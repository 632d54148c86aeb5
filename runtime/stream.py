"""Music that plays while it is made: an iterator of chunks, with a prompt that can be changed.

In: a task of one clip in the scheduler. Out: chunks to one listener, in a loop or with `async for`. The chunks together are the wave that
`generate` makes of the same request, to the bit.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from .bundle import STAGES
from .clip import Clip, Contexts
from .config import GenerationConfig
from .music import Tokens, load_record, save_tokens
from .needs import KEPT_S
from .pipeline import Pipeline, Prepared
from .prompts import Prompt, make_prompts
from .provenance import generate_arguments, make_record, prompt_record
from .request import Request
from .scheduler import Scheduler
from .task import Task
from .track import Chunk
from .user_files import expanded

ENDED = "this stream has ended: a new prompt would not be heard."

Change = tuple[int, int, Prompt]  # semantic window and frame from which on a later prompt holds, and the prompt


class Stream:
    """One clip as it is made. It ends when the clip does, or when it is cancelled, closed, or given up."""

    def __init__(self, pipeline: Pipeline, prepared: Prepared, task: Task, changes: Sequence[Change] = ()) -> None:
        self._pipeline, self._prepared, self._task = pipeline, prepared, task
        self._scheduler: Scheduler = pipeline.scheduler
        self._changes = list(changes)  # semantic window and frame from which on a later prompt holds, and the prompt
        self._scheduler.submit(task)
        self._finalizer = weakref.finalize(self, _give_up, self._scheduler, task)  # a stream that nobody holds leaves its slots

    # --- chunks

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        chunk = self._take(None)
        if chunk is None:
            raise StopIteration
        return chunk

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        loop, came = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(came.set)

        self._task.waiters.add(wake)
        try:
            while True:
                ended = self._task.ended
                if (chunk := self._take(0)) is not None:
                    return chunk
                if ended:
                    raise StopAsyncIteration
                await came.wait()
                came.clear()
        finally:
            self._task.waiters.discard(wake)

    def _take(self, timeout: float | None) -> Chunk | None:
        chunk = self._task.take(timeout)
        if chunk is not None and not self._task.ended:
            self._scheduler.call(_nothing)  # the clip may be further ahead of its listener now
        assert not isinstance(chunk, tuple)
        return chunk

    # --- control

    def set_prompt(self, prompt: Prompt) -> float:
        """Condition the windows that have not begun yet on another prompt. Return the second of the clip from which it can be heard.

        Raises ValueError for a prompt that `generate` would not take, and when the last window has begun or the stream has ended.
        """
        [checked], _ = make_prompts(prompt, None)
        if self._task.ended:
            raise ValueError(ENDED)
        encoders, codec = self._pipeline.encoders, self._pipeline.bundle.manifest.codec
        [contexts] = encoders.contexts(encoders.latents([checked]))
        frame = self._in_worker(lambda: self._change(checked, contexts))
        return frame * codec.samples_per_frame / codec.sample_hz

    def _change(self, prompt: Prompt, contexts: Contexts) -> int:
        if self._task.ended:
            raise ValueError(ENDED)
        heard = self._clip.change(contexts)
        self._changes.append((*self._clip.conditioned_from, prompt))
        return heard

    def cancel(self) -> None:
        """End the stream; its rows are free within a frame. Chunks that were made can still be taken."""
        self._scheduler.cancel(self._task)

    close = cancel

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    # --- what there is

    @property
    def sample_rate(self) -> int:
        """Samples a second, in Hz."""
        return self._pipeline.bundle.manifest.codec.sample_hz

    @property
    def seed(self) -> int:
        """The seed of the noise."""
        return self._prepared.request.seeds[0]

    @property
    def prompts(self) -> int:
        """How many prompts the clip has had."""
        return 1 + len(self._changes)

    @property
    def tokens(self) -> Tokens:
        """The tokens so far, from which `stream(tokens=...)` goes on; of an endless stream those of its last minutes."""
        return self._in_worker(lambda: self._clip.tokens)

    @property
    def made(self) -> bool:
        """Whether nothing more is made: the clip is whole, or was cancelled. Something may be left to be taken."""
        return self._task.ended

    @property
    def progress(self) -> dict[str, tuple[int, int]]:
        """Tokens made and tokens in all, so far as that is known, by stage."""
        clip = self._clip
        return {stage: clip.progress(stage) for stage in STAGES}

    @property
    def timings(self) -> dict[str, float]:
        """Seconds by stage; seconds from the request to the first chunk, `first_audio`; `underruns`, how often a listener who plays the
        chunks as they come has heard silence; `gap_p50`, `gap_p95`, `gap_p99`, of the seconds between chunks over their length."""
        playback = self._task.playback
        timings = {**self._prepared.timings, **self._task.timings, "underruns": float(playback.underruns)}
        if playback.first_audio_s is not None:
            timings["first_audio"] = sum(self._prepared.timings.values()) + playback.first_audio_s
        if gaps := sorted(playback.gaps):
            timings |= {f"gap_p{share}": gaps[min(len(gaps) * share // 100, len(gaps) - 1)] for share in (50, 95, 99)}
        return timings

    @property
    def settings(self) -> dict[str, Any]:
        """The record of how the clip is made, as `Music.settings`."""
        return make_record(self._pipeline.backend, self._prepared.request, 0, False)

    def save_tokens(self, path: str | Path) -> Path:
        """Write the tokens so far and how they are made as .npz, from which `stream(tokens=path)` goes on.

        Raises ValueError for a stream without end whose beginning is no longer kept: nothing could go on from it.
        """
        tokens, begins_at = self._in_worker(lambda: (self._clip.tokens, self._clip.begins_at))
        if begins_at:
            raise ValueError(f"the beginning of this stream is no longer kept, only the last {KEPT_S:g} s: it cannot be gone on from.")
        changes = [{"run": run, "frame": frame, **prompt_record(prompt)} for run, frame, prompt in self._changes]
        return save_tokens(expanded(path), [tokens], {**self.settings, "changes": changes})

    @property
    def _clip(self) -> Clip:
        return self._task.tracks[0].clip

    def _in_worker(self, function: Any) -> Any:
        """Run a function between two frames, and return what it returns."""
        found: Future[Any] = Future()

        def run() -> None:
            try:
                found.set_result(function())
            except Exception as error:  # raised where the answer is waited for
                found.set_exception(error)

        self._scheduler.call(run)
        return found.result()


def open_stream(
    pipeline: Pipeline, request: Request, start_s: float, ahead_s: float, goes_on: bool, changes: Sequence[Change] = ()
) -> Stream:
    """Begin to make a request's one clip. goes_on: see `make_request`; changes: its later prompts; the rest: see `MusicLM.stream`."""
    prepared = pipeline.prepare(request)
    tracks = pipeline.tracks(prepared, start=round(start_s * pipeline.bundle.manifest.codec.sample_hz), goes_on=goes_on)
    task = Task(tracks, live=True, ahead_s=ahead_s, kept_s=KEPT_S if request.frames is None else None)
    task.taken_s = start_s
    for run, frame, prompt in changes:
        [contexts] = pipeline.encoders.contexts(pipeline.encoders.latents([prompt]))
        tracks[0].clip.condition(run, frame, contexts)
    return Stream(pipeline, prepared, task, changes)


def saved_request(path: str | os.PathLike, config: GenerationConfig | None) -> tuple[Prompt, GenerationConfig, list[Change]]:
    """Return the prompt, the settings and the later prompts that `Stream.save_tokens` wrote; a config takes the place of the settings.

    Raises ValueError for a file without them.
    """
    record = load_record(expanded(path))
    if record is None:
        raise ValueError(f"{path} holds tokens alone: say what the music should be like, with the settings that it was made with.")
    record |= {"prime": None, "tokens": None}
    arguments = generate_arguments(record, without_end=True)
    later = [(one["run"], one["frame"], generate_arguments({**record, **one}, without_end=True)["text"]) for one in record["changes"]]
    prompt = arguments.pop("text")
    known = {name: value for name, value in arguments.items() if name not in ("prime", "tokens", "audio")}
    return prompt, GenerationConfig(**known) if config is None else config, later


def _give_up(scheduler: Scheduler, task: Task) -> None:
    scheduler.cancel(task)


def _nothing() -> None:
    """Do nothing: the scheduler looks again what can run."""
