"""Music that plays while it is made: an iterator of chunks, with a prompt that can be changed.

In: a task of one clip in the scheduler. Out: chunks to one listener, in a loop or with `async for`. The chunks together are the wave that
`generate` makes of the same request, to the bit.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from .bundle import STAGES
from .clip import Clip, Contexts
from .config import GenerationConfig
from .music import Tokens, load_record, save_tokens
from .needs import KEPT_S, check_request
from .pipeline import Pipeline, Prepared
from .prompts import Prompt, make_prompts
from .provenance import generate_arguments, make_record, prompt_record
from .request import Request, resolve_sampling
from .sampling import SamplingConfig
from .scheduler import Scheduler
from .task import Task
from .track import Chunk
from .user_files import expanded

ENDED = "this stream has ended: a change would not be heard."

Configs = Mapping[str, SamplingConfig]  # by stage
Change = tuple[int, int, Prompt, Configs]  # semantic window and frame from which on a later prompt and sampling hold, and these


class Stream:
    """One clip as it is made. It ends when the clip does, or when it is cancelled, closed, or given up."""

    def __init__(self, pipeline: Pipeline, prepared: Prepared, task: Task, changes: Sequence[Change] = ()) -> None:
        self._pipeline, self._prepared, self._task = pipeline, prepared, task
        self._scheduler: Scheduler = pipeline.scheduler
        self._changes = list(changes)
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
        encoders = self._pipeline.encoders
        [contexts] = encoders.contexts(encoders.latents([checked]))
        return self._heard_s(lambda: self._change(checked, contexts, self._now[1]))

    def set_sampling(self, sampling: Mapping[str, SamplingConfig]) -> float:
        """Draw the tokens of the windows that have not begun yet otherwise. Return the second of the clip from which it can be heard.

        sampling: by stage, as `GenerationConfig.sampling`; what is None, or left out, stays as it is. Raises what `set_prompt` raises, and
        MemoryError where guidance, which it did not have, does not fit.
        """
        prompt, before = self._now
        configs = dict(before)
        for stage, one in (GenerationConfig(sampling=sampling).sampling or {}).items():
            given = {name: value for name, value in vars(one).items() if value is not None}
            configs[stage] = replace(before.get(stage, SamplingConfig()), **given)
        request = replace(self._prepared.request, sampling=resolve_sampling(self._pipeline.bundle.manifest, configs))
        check_request(self._pipeline.backend, request, self._task.ahead_s)
        return self._heard_s(lambda: self._change(prompt, None, configs))

    @property
    def _now(self) -> tuple[Prompt, Configs]:
        """The prompt and the sampling that were set last."""
        request = self._prepared.request
        return self._changes[-1][2:] if self._changes else (request.prompts[0], request.config.sampling or {})

    def _heard_s(self, change: Callable[[], int]) -> float:
        codec = self._pipeline.bundle.manifest.codec
        return self._in_worker(change) * codec.samples_per_frame / codec.sample_hz

    def _change(self, prompt: Prompt, contexts: Contexts | None, sampling: Configs) -> int:
        if self._task.ended:
            raise ValueError(ENDED)
        heard = self._clip.change(contexts, resolve_sampling(self._pipeline.bundle.manifest, sampling))
        run, frame = self._clip.conditioned_from
        # one place has one change, and a stream that cannot be gone on from needs none but the last
        earlier = [] if self._clip.begins_at else [one for one in self._changes if one[:2] != (run, frame)]
        self._changes = [*earlier, (run, frame, prompt, sampling)]
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
        changes = [
            {"run": run, "frame": frame, **prompt_record(prompt), "sampling": {stage: vars(one) for stage, one in sampling.items()}}
            for run, frame, prompt, sampling in self._changes
        ]
        return save_tokens(expanded(path), [tokens], {**self.settings, "changes": changes})

    @property
    def _clip(self) -> Clip:
        return self._task.tracks[0].clip

    def _in_worker(self, function: Any) -> Any:
        """Run a function between two frames, and return what it returns."""
        answers: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()

        def run() -> None:
            try:
                answers.put((function(), None))
            except Exception as error:  # raised where the answer is waited for
                answers.put((None, error))

        self._scheduler.call(run)
        found, error = answers.get()
        if error is not None:
            try:
                raise error
            finally:
                del error  # it refers to this frame: the stream would live until a collection of cycles
        return found


def open_stream(
    pipeline: Pipeline, request: Request, start_s: float, ahead_s: float, goes_on: bool, changes: Sequence[Change] = ()
) -> Stream:
    """Begin to make a request's one clip. goes_on: see `make_request`; changes: its later prompts; the rest: see `MusicLM.stream`."""
    prepared = pipeline.prepare(request)
    tracks = pipeline.tracks(prepared, start=round(start_s * pipeline.bundle.manifest.codec.sample_hz), goes_on=goes_on)
    task = Task(tracks, live=True, ahead_s=ahead_s, kept_s=KEPT_S if request.frames is None else None)
    task.taken_s = start_s
    for run, frame, prompt, sampling in changes:
        [contexts] = pipeline.encoders.contexts(pipeline.encoders.latents([prompt]))
        tracks[0].clip.condition(run, frame, contexts, resolve_sampling(pipeline.bundle.manifest, sampling))
    return Stream(pipeline, prepared, task, changes)


def saved_request(path: str | os.PathLike, config: GenerationConfig | None) -> tuple[Prompt, GenerationConfig, list[Change]]:
    """Return the prompt, the settings and the later changes that `Stream.save_tokens` wrote; a config takes the place of all settings.

    Raises ValueError for a file without them.
    """
    record = load_record(expanded(path))
    if record is None:
        raise ValueError(f"{path} holds tokens alone: say what the music should be like, with the settings that it was made with.")
    record |= {"prime": None, "tokens": None}
    arguments = generate_arguments(record, without_end=True)
    prompt = arguments.pop("text")
    known = {name: value for name, value in arguments.items() if name not in ("prime", "tokens", "audio")}
    later: list[Change] = []
    for one in record["changes"]:
        changed = generate_arguments({**record, **one}, without_end=True)
        later.append((one["run"], one["frame"], changed["text"], changed["sampling"] if config is None else config.sampling or {}))
    return prompt, GenerationConfig(**known) if config is None else config, later


def _give_up(scheduler: Scheduler, task: Task) -> None:
    scheduler.cancel(task)


def _nothing() -> None:
    """Do nothing: the scheduler looks again what can run."""
