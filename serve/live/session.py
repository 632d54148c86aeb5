"""Music that one client steers while it plays: what it is to be like, whether it plays, and what was made of it.

In: prompts, settings and controls, from whichever protocol. Out: samples as they are to be sent, and messages. A session outlives its
connection for a while, so that a client whose network was cut goes on with the sample at which it was.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...runtime.bundle import Manifest
from ...runtime.config import LEAST_GROWTH
from ...runtime.request import resolve_sampling
from ...runtime.sampling import SamplingConfig
from ...runtime.windows import Window, longest_window, tokens_per_frame
from ..asked import make_asked
from ..bodies import JobBody, Part, Sampling, Stage
from ..errors import Refusal
from ..jobs import Asked, Job
from ..runner import Playing, refusing
from .clock import Clock
from .kept import Kept
from .messages import Changed, Failed, Fault, Recorded, State, StateChanged, Status
from .recording import Recording

if TYPE_CHECKING:
    from ..state import Server

AHEAD_S = 0.3  # that the engine is ahead of what was taken from it
_HELD_S = 0.2  # that is taken from the engine before it can be sent
_PIECE_S = 0.1  # of samples that are sent together, at least: a message each
_LOOK_S = 0.02
KEPT_S = 30.0  # of samples that were sent, for who was cut off and for recordings


class Session:
    """One client's music."""

    def __init__(self, server: Server, owner: str, model: str, step_s: float, seed: int) -> None:
        """step_s: seconds of the windows in which the music is made, each of which has one prompt."""
        self.id, self.owner, self.model, self.seed = f"live_{secrets.token_hex(12)}", owner, model, seed
        self._server, self._step_s = server, step_s
        self._bundle = server.models.bundle(model)
        self.rate = self._bundle.manifest.codec.sample_hz
        self.state: State = "stopped"
        self.prompts: list[Part] = []
        self.sampling: dict[Stage, Sampling] = {}
        self.kept, self.clock = Kept(KEPT_S, self.rate), Clock(self.rate)
        self.sent = 0  # one past the last sample that was sent
        self.messages: asyncio.Queue[object] = asyncio.Queue()  # for the client
        self._recording: Recording | None = None
        self.connected, self.idle_since = False, time.monotonic()
        self._making: asyncio.Task[None] | None = None
        self._playing: Playing | None = None
        self._begins = 0  # the sample with which the clip that is made begins
        self._control = asyncio.Lock()

    @property
    def idle(self) -> bool:
        """Whether the session is silent: it does not play, or no client is connected."""
        return self.state != "playing" or not self.connected

    # --- what it is like

    async def set_prompts(self, prompts: Sequence[Part]) -> Changed:
        """Have the music be like a blend. Raises Refusal (400), after which it is as it was."""
        asked = self._asked(prompts=prompts)
        async with self._control:
            heard = await self._change(asked, lambda playing: playing.stream.set_prompt(asked.arguments["text"]))
            self.prompts = list(prompts)
        return heard

    async def set_sampling(self, sampling: dict[Stage, Sampling]) -> Changed:
        """Have tokens drawn otherwise; what is left out stays. Raises Refusal (400), after which it is as it was."""
        merged = dict(self.sampling)
        for stage, one in sampling.items():
            before = merged.get(stage)
            merged[stage] = one if before is None else before.model_copy(update=one.model_dump(exclude_none=True))
        with refusing():
            given = {stage: SamplingConfig(**one.model_dump()) for stage, one in sampling.items()}
            resolve_sampling(self._bundle.manifest, given)
        async with self._control:
            asked = self._asked(sampling=merged) if self.prompts else None
            heard = await self._change(asked, lambda playing: playing.stream.set_sampling(given))
            self.sampling = merged
        return heard

    async def _change(self, asked: Asked | None, change: Callable[[Playing], float]) -> Changed:
        """Change what is made, or see whether it could be made so. Return when that is heard."""
        playing = self._playing
        if playing is None:
            if asked is not None:
                await self._server.runner.check(asked)
            return Changed(sample=self.sent, in_s=0.0)
        with refusing():
            sample = self._begins + round(await asyncio.to_thread(change, playing) * self.rate)
        seconds = max(sample - self.played, 0) / self.rate
        self._server.metrics.changed(self.model, seconds)
        return Changed(sample=sample, in_s=round(seconds, 3))

    def _asked(self, prompts: Sequence[Part] | None = None, sampling: dict[Stage, Sampling] | None = None) -> Asked:
        fields = {
            "prompt": list(self.prompts if prompts is None else prompts),
            "seed": self.seed,
            "sampling": sampling or self.sampling or None,
        }
        body = JobBody.model_validate(fields)
        limits = self._server.settings.limits
        with refusing():
            asked = make_asked(body, self.model, body.prompt, self._bundle, limits, limits.live_s, live=True)
        return replace(
            asked,
            arguments={**asked.arguments, "seconds": None, **live_plan(self._bundle.manifest, self._step_s)},
            seconds=limits.live_s,
            ahead_s=AHEAD_S,
        )

    # --- whether it plays

    async def play(self) -> None:
        """Begin, or go on after a pause. Raises Refusal without a prompt."""
        async with self._control:
            if self.state == "paused":
                self.clock.resume()
                self._set_state("playing")
            elif self.state == "stopped":
                if not self.prompts:
                    raise Refusal(400, "say what the music should be like before it plays.", "prompts", "missing")
                self._begin()

    async def pause(self) -> None:
        """Send nothing until `play`."""
        async with self._control:
            if self.state == "playing":
                self.clock.pause(self.sent)
                self._set_state("paused")

    async def stop(self, reason: str | None = None) -> None:
        """End the music; the next `play` begins anew."""
        async with self._control:
            await self._end()
            self._set_state("stopped", reason)

    async def reset(self) -> None:
        """Begin anew with the prompts, the sampling and the seed of now, if it plays."""
        async with self._control:
            if self.state in ("playing", "paused"):
                await self._end()
                self._begin()

    async def close(self, reason: Refusal) -> None:
        """End the session. reason: for the client."""
        async with self._control:
            await self._end()
            self._set_state("ended", reason.message)
            self.tell(reason, final=True)

    def _begin(self) -> None:
        job, _ = self._server.jobs.add(self.owner, self._asked())
        self._begins = self.sent
        self.clock.start(self.sent)
        self._set_state("playing")
        self._making = asyncio.create_task(self._make(job))

    async def _end(self) -> None:
        task, self._making = self._making, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self.kept.cut(self.sent)

    async def _make(self, job: Job) -> None:
        """Take the music from the engine as it is wanted."""
        try:
            async with self._server.runner.play(job) as playing:
                self._playing = playing
                async for chunk in playing.chunks():
                    self.kept.append(chunk.audio)
                    while self.state == "paused" or self.kept.stop - self.sent > _HELD_S * self.rate:
                        await asyncio.sleep(_LOOK_S)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            refusal = error if isinstance(error, Refusal) else Refusal(500, f"{type(error).__name__}: {error}")
            self._making = None
            self._set_state("stopped", refusal.message)
            self.tell(refusal)
        finally:
            self._playing = None
            self._server.jobs.drop(job)  # a clip without end is not played again

    def _set_state(self, state: State, reason: str | None = None) -> None:
        if state != self.state:
            self.state, self.idle_since = state, time.monotonic()
            self.messages.put_nowait(StateChanged(state=state, sample=self.sent, reason=reason))

    # --- what is sent

    @property
    def played(self) -> int:
        """The sample that the client plays next."""
        return self.clock.played(self.sent, more=self.state == "playing")

    async def piece(self, lead_s: float) -> tuple[int, np.ndarray]:
        """Wait for samples that may be sent, lead_s before they are played. Return the first one's number, and float32 [t]."""
        while True:
            if self.state == "playing":
                stop = min(self.kept.stop, self.played + round(lead_s * self.rate))
                if stop - self.sent >= _PIECE_S * self.rate:
                    first, self.sent = self.sent, stop
                    audio = self.kept.read(first, stop)
                    self.kept.sent(self.sent)
                    self._add_to_recording(first, audio)
                    return first, audio
            await asyncio.sleep(_LOOK_S)

    def _add_to_recording(self, first: int, audio: np.ndarray) -> None:
        recording = self._recording
        if recording is not None and not recording.full:
            recording.add(audio[max(recording.next - first, 0) :])  # what is sent again after a cut was added before
            if recording.full:
                self.tell(Refusal(413, f"the recording has the {recording.samples / self.rate:g} s that it may have: end it.", code="full"))

    async def take_over(self) -> None:
        """Have the connection closed that the session still has, for another one of its client."""
        if self.connected:
            self.tell(Refusal(409, "another connection has taken this session over.", code="taken_over"), final=True)
        while self.connected:
            await asyncio.sleep(_LOOK_S)

    def go_on_at(self, sample: int) -> None:
        """Send again from a sample on, or from the first that is kept."""
        self.sent = min(max(sample, self.kept.start), self.sent)
        self.clock.start(self.sent)
        if self.state != "playing":
            self.clock.pause(self.sent)

    def status(self) -> Status:
        """Return how it stands."""
        made = self.kept.stop - self.sent
        ahead = (self.kept.stop - self.played) / self.rate + AHEAD_S + self._step_s
        return Status(sent=self.sent, made_s=round(made / self.rate, 3), change_in_s=round(ahead, 3), underruns=self.clock.underruns)

    def tell(self, refusal: Refusal, final: bool = False) -> None:
        """Tell the client that something failed."""
        self.messages.put_nowait(Failed(error=fault_of(refusal), final=final))

    # --- recording

    def record(self, form: str, first: int | None) -> None:
        """Record from a sample on. Raises Refusal while it records, and for a sample that is not kept."""
        if self._recording is not None:
            raise Refusal(409, "it records already: end that first.", "type", "already_recording")
        if not self.kept.start <= (start := self.sent if first is None else first) <= self.sent:
            raise Refusal(400, f"samples {self.kept.start} to {self.sent} can be recorded, got {start}.", "from_sample", "invalid_value")
        settings = self._playing.stream.settings if self._playing is not None else {}
        self._recording = Recording(form, self.rate, settings, start, self._server.settings.limits.seconds)
        self._recording.add(self.kept.read(start, self.sent))

    async def end_record(self, stop: int | None) -> Recorded:
        """End the recording before a sample. Return the message that says where it is. Raises Refusal where nothing is recorded."""
        recording, self._recording = self._recording, None
        if recording is None:
            raise Refusal(409, "nothing is recorded.", "type", "not_recording")
        return await asyncio.to_thread(self._server.live.recordings.add, self.owner, recording, self.sent if stop is None else stop)


def fault_of(refusal: Refusal) -> Fault:
    """Return a refusal as clients see it."""
    return Fault(message=refusal.message, type=refusal.kind, param=refusal.param, code=refusal.code, retry_s=refusal.retry_s)


def live_plan(manifest: Manifest, step_s: float) -> dict[str, Any]:
    """Return arguments of `stream` by which a window makes about step_s seconds, and reads as much before them as the model can."""
    codec = manifest.codec
    frames = max(round(step_s * codec.sample_hz / codec.samples_per_frame), 1)
    steps = {"coarse": frames}
    if not manifest.unique_consecutive:  # otherwise each coarse window has a run of semantic tokens, which has no length of its own
        steps["semantic"] = max(round(frames * tokens_per_frame(manifest)), 1)
    lengths = {stage: longest_window(manifest, stage) for stage in steps}
    windows = {stage: Window(lengths[stage], lengths[stage] - step) for stage, step in steps.items() if step < lengths[stage]}
    windows["fine"] = Window(min(frames, longest_window(manifest, "fine")))
    growth = max(1 + frames / lengths["coarse"], LEAST_GROWTH)  # no step of the first windows, which grow, is longer either
    return {"plan": "low_latency", "windows": windows, "window_growth": growth}
