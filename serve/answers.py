"""What goes back to a client: a sound while it is made, as bytes or as events, or one that is whole.

A client that goes away is noticed while nothing is sent as well: its stream is let go at once.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from .errors import Refusal
from .formats import Encoder, Format
from .jobs import Job
from .runner import Playing
from .settings import Limits
from .state import record_of

_LOG = logging.getLogger(__name__)
_COMMENT_S = 10.0  # proxies close what is silent for longer
_PROGRESS_S = 0.5

Play = Callable[[], AbstractAsyncContextManager[Playing]]


class Gone(OSError):
    """The client has gone away, or reads nothing any more."""


class SoundAnswer(Response):
    """Plays a job. A refusal before the first byte is the application's to answer; afterwards the connection is broken off."""

    media_type: str | None = None  # by default the format's

    def __init__(self, play: Play, form: Format, headers: dict[str, str], limits: Limits, rate: int | None = None, kbps: int | None = None):
        super().__init__()
        self._play, self._form, self._sent, self._limits, self._rate, self._kbps = play, form, headers, limits, rate, kbps

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        out, record = _Sender(send, self._limits.idle_s), record_of(scope)
        playing = reason = None
        try:
            async with self._play() as playing:
                encoder = Encoder(self._form, playing.sample_rate, playing.stream.settings, self._rate, self._kbps, playing.samples)
                rates = {"X-Sample-Rate": str(encoder.rate), "X-Model-Sample-Rate": str(playing.sample_rate)}
                if playing.promised_s is not None:
                    rates["X-First-Audio-S"] = f"{playing.promised_s:.3f}"
                await out.start(self.media_type or self._form.media_type, {**self._sent, **rates})
                await _unless_gone(self._send(playing, encoder, out), receive)
        except Gone as error:
            _LOG.info("%s (%s)", error, record.request_id)
            reason = "cut"  # of a job that is played again too, which stays done
        except Refusal as error:
            if not out.started:
                raise
            _LOG.warning("the answer is broken off: %s (%s)", error, record.request_id)
        finally:
            if playing is not None:
                record.note_job(playing.job)
                record.note_stages(playing.stream.timings)
                record.note_sound(playing.audio_s, playing.first_at)
                record.note(reason=reason)

    async def _send(self, playing: Playing, encoder: Encoder, out: _Sender) -> None:
        async for chunk in playing.chunks():
            await out.body(encoder.encode(chunk.audio))
        last = encoder.finish()
        await playing.finish(encoder.pcm.hexdigest())
        await out.body(last)
        await out.end()


class EventAnswer(SoundAnswer):
    """The same as server-sent events: progress, pieces of the sound in base64, and an end with the hash of its samples."""

    media_type = "text/event-stream"

    async def _send(self, playing: Playing, encoder: Encoder, out: _Sender) -> None:
        lock = asyncio.Lock()

        async def event(kind: str, **fields: Any) -> None:
            async with lock:
                await out.body(f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode())

        beside = asyncio.create_task(self._beside(playing, event, out, lock))
        try:
            async for chunk in playing.chunks():
                if data := encoder.encode(chunk.audio):
                    await event("speech.audio.delta", audio=base64.b64encode(data).decode(), start_s=chunk.start_s)
            await playing.finish(encoder.pcm.hexdigest())
            if data := encoder.finish():
                await event("speech.audio.delta", audio=base64.b64encode(data).decode())
            usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0} | _tokens(playing)
            await event(
                "speech.audio.done", usage=usage, pcm_sha256=encoder.pcm.hexdigest(), job=playing.job.id, timings=playing.stream.timings
            )
        except Exception as error:
            if isinstance(error, Gone):
                raise
            refusal = error if isinstance(error, Refusal) else Refusal(500, f"{type(error).__name__}: {error}")
            await event("error", error=refusal.answer("", playing.job.id)[1]["error"])
            raise
        finally:
            beside.cancel()
            with suppress(asyncio.CancelledError, Gone):
                await beside
        await out.end()

    async def _beside(self, playing: Playing, event: Callable[..., Any], out: _Sender, lock: asyncio.Lock) -> None:
        """Send progress as it changes, and a comment where nothing else is sent."""
        told: dict[str, Any] = {}
        while True:
            await asyncio.sleep(_PROGRESS_S)
            now = playing.stream.progress
            for stage, (done, total) in now.items():
                if told.get(stage) != (done, total):
                    await event("musiclm.progress", stage=stage, done=done, total=total)
            told = now
            if time.monotonic() - out.last > _COMMENT_S:
                async with lock:
                    await out.body(b": still at work\n\n")


def _tokens(playing: Playing) -> dict[str, int]:
    made = {stage: done for stage, (done, _) in playing.stream.progress.items()}
    return {"output_tokens": sum(made.values()), "total_tokens": sum(made.values())}


class _Sender:
    """The messages of one answer, each of which its client must take in time."""

    def __init__(self, send: Send, idle_s: float) -> None:
        self._send, self._idle_s, self.last, self.started = send, idle_s, time.monotonic(), False

    async def start(self, media_type: str, headers: dict[str, str]) -> None:
        raw = [
            (name.lower().encode(), value.encode("latin-1", "replace")) for name, value in {"content-type": media_type, **headers}.items()
        ]
        await self._put({"type": "http.response.start", "status": 200, "headers": raw})
        self.started = True
        await self.body(b"")  # so that the headers go out now

    async def body(self, data: bytes) -> None:
        await self._put({"type": "http.response.body", "body": data, "more_body": True})
        self.last = time.monotonic()

    async def end(self) -> None:
        await self._put({"type": "http.response.body", "body": b"", "more_body": False})

    async def _put(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._idle_s):
                await self._send(message)
        except TimeoutError:
            raise Gone(f"the client has read nothing for {self._idle_s:g} s.") from None


async def _unless_gone(work: Any, receive: Receive) -> None:
    """Do something until it is done or the client goes away. Raises Gone then."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, leaving = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        done, _ = await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if task not in done:
            raise Gone("the client has gone away.")
        task.result()
    finally:
        for one in (task, leaving):
            one.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def until_settled(job: Job, receive: Receive) -> None:
    """Wait for the end of a job that is collected; it is cancelled if the client goes away. Raises Gone then."""
    try:
        await _unless_gone(job.settled.wait(), receive)
    finally:
        if not job.settled.is_set():
            job.cancel()
