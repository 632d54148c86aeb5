"""Lyria RealTime's protocol of a live session, as the official clients of Google's GenAI speak it.

In: `setup`, `clientContent`, `musicGenerationConfig`, `playbackControl`. Out: `setupComplete`, `serverContent.audioChunks` of
`audio/l16` at 48 kHz in two channels, `filteredPrompt` for a prompt that cannot be, `warning` for what a MusicLM does not know. Each chunk
says what it was made from (`sourceMetadata`). https://ai.google.dev/api/live_music
"""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any, Literal

import numpy as np
import soxr
from fastapi import WebSocket
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...runtime.bundle import STAGES
from ...runtime.growing import sixteen_bits
from ..bodies import Part, Sampling, Seed, Stage, Text, Whole, refusal_of
from ..errors import Refusal, stopping
from ..keys import name_of
from ..state import Server
from .connection import Connection, close
from .messages import Changed, Failed, Pause, Play, Reset, SetConfig, SetPrompts, StateChanged, Status, Stop
from .session import Session

RATE = 48_000  # Hz
_LEAD_S = 1.0
_STEP_S = 1.0
_CONTROLS = {"PLAY": Play(type="play"), "PAUSE": Pause(type="pause"), "STOP": Stop(type="stop"), "RESET_CONTEXT": Reset(type="reset")}
_UNKNOWN = ("bpm", "density", "brightness", "scale", "muteBass", "muteDrums", "onlyBassAndDrums", "musicGenerationMode")


class _Message(BaseModel):
    """An object of the protocol: fields that nobody knows are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Prompt(_Message):
    text: Text
    weight: float = 1.0


class _Content(_Message):
    weightedPrompts: list[_Prompt] = Field(min_length=1)


class _Config(_Message):
    temperature: float | None = Field(None, ge=0, le=3)
    topK: Whole | None = Field(None, ge=1, le=1000)
    seed: Seed | None = None
    guidance: float | None = Field(None, ge=0, le=6)
    bpm: Any = None
    density: Any = None
    brightness: Any = None
    scale: Any = None
    muteBass: Any = None
    muteDrums: Any = None
    onlyBassAndDrums: Any = None
    musicGenerationMode: Any = None


class _Setup(_Message):
    model: str


class _ClientMessage(_Message):
    setup: _Setup | None = None
    clientContent: _Content | None = None
    musicGenerationConfig: _Config | None = None
    playbackControl: Literal["PLAY", "PAUSE", "STOP", "RESET_CONTEXT"] | None = None


class _SetConfig(SetConfig):
    """A config in our words, and as it came."""

    given: dict[str, Any]


class LyriaConnection(Connection):
    """A client of `BidiGenerateMusic`."""

    def __init__(self, socket: WebSocket, session: Session, server: Server) -> None:
        super().__init__(socket, session, _LEAD_S, server.settings.limits.idle_s)
        self._manifest = server.models.bundle(session.model).manifest
        self._resampler = soxr.ResampleStream(session.rate, RATE, 1, dtype="float32", quality="VHQ")
        self._sources: list[tuple[int, dict[str, Any]]] = [(0, {})]  # from which sample on, and what it is made from
        self._asked: dict[str, Any] = {}
        self._change_in_s = 0.0

    def read(self, text: str) -> list[Any]:
        given = _ClientMessage.model_validate_json(text)
        if len(given.model_fields_set) != 1:
            raise Refusal(400, f"a message has one of {', '.join(_ClientMessage.model_fields)}, got {len(given.model_fields_set)}.")
        if given.setup is not None:
            raise Refusal(400, "setup is the first message or none.", "setup", "invalid_value")
        if given.clientContent is not None:
            prompts = [one for one in given.clientContent.weightedPrompts if one.weight]
            if not prompts:
                raise Refusal(400, "one weight at least must be other than 0.", "weightedPrompts", "invalid_value")
            return [SetPrompts(type="prompts", prompts=[Part(text=one.text, weight=one.weight) for one in prompts])]
        if given.musicGenerationConfig is not None:
            return self._config(given.musicGenerationConfig)
        return [_CONTROLS[given.playbackControl]] if given.playbackControl else []

    def _config(self, given: _Config) -> list[Any]:
        """Return a config in our words. A MusicLM draws tokens in three stages: what is asked holds for all that can do it."""
        known = given.model_dump(exclude_none=True)
        if unknown := [name for name in _UNKNOWN if known.pop(name, None) is not None]:
            self.session.messages.put_nowait({"warning": f"this model has no {', '.join(unknown)}: not done."})
        sampling: dict[Stage, Sampling] = {}
        for stage in STAGES:
            decoder = getattr(self._manifest, stage)
            share = None if given.topK is None else max(1 - given.topK / decoder.vocabulary, 0.0)
            guidance = given.guidance if decoder.guidance else None
            sampling[stage] = Sampling(temperature=given.temperature, filter_thres=share, cond_scale=guidance)
        drawn = {name for name in known if name != "seed"}
        return [_SetConfig(type="config", sampling=sampling if drawn else None, seed=given.seed, given=known)] if known else []

    async def obey(self, message: Any) -> None:
        await super().obey(message)
        match message:  # what was refused is no source
            case SetPrompts():
                prompts = [{"text": one.text, "weight": one.weight} for one in message.prompts]
                self._asked["clientContent"] = {"weightedPrompts": prompts}
            case _SetConfig():
                self._asked["musicGenerationConfig"] = message.given

    def frame(self, first: int, audio: np.ndarray) -> str:
        mono = sixteen_bits(self._resampler.resample_chunk(audio))
        source = next(source for start, source in reversed(self._sources) if start <= first)
        chunk = {
            "data": base64.b64encode(np.repeat(mono, 2).tobytes()).decode(),
            "mimeType": f"audio/l16;rate={RATE};channels=2",
            "sourceMetadata": source,
        }
        return json.dumps({"serverContent": {"audioChunks": [chunk]}, "promptToEarSeconds": self._change_in_s})

    def say(self, message: Any) -> str | None:
        match message:
            case dict():
                return json.dumps(message)
            case Changed():
                self._sources = [*self._sources[-8:], (message.sample, dict(self._asked))]
                self._change_in_s = message.in_s
            case Status():
                self._change_in_s = message.change_in_s
            case StateChanged(reason=str() as reason):
                return json.dumps({"warning": reason})
            case Failed():
                return json.dumps({"warning": message.error.message})
        return None

    def refused(self, message: Any, refusal: Refusal) -> None:
        if not isinstance(message, SetPrompts):
            super().refused(message, refusal)
            return
        text = " + ".join(one.text or "" for one in message.prompts)
        self.session.messages.put_nowait({"filteredPrompt": {"text": text, "filteredReason": refusal.message}})


async def serve_lyria(socket: WebSocket, server: Server) -> Session | None:
    """Serve a client of Lyria's protocol; it has been accepted. Return its session, if it got one."""
    limits, headers = server.settings.limits, socket.headers
    try:
        key = socket.query_params.get("key") or headers.get("x-goog-api-key")
        owner = name_of(headers if key is None else {"authorization": f"Bearer {key}"}, server.settings.keys)
        if server.runner.draining:
            raise stopping()
        async with asyncio.timeout(limits.header_s):
            first = await socket.receive()
        given = _ClientMessage.model_validate_json(first.get("text") or first.get("bytes") or b"")
        if given.setup is None:
            raise Refusal(400, "the first message must be setup.", "setup", "invalid_value")
        model = server.models.name(given.setup.model.removeprefix("models/"))
    except (Refusal, ValidationError, TimeoutError) as error:
        if isinstance(error, ValidationError):
            error = refusal_of(error)
        told = str(error) or f"the first message must be setup, within {limits.header_s:g} s."
        await close(socket, told)
        return None
    session = Session(server, owner, model, _STEP_S, 0)
    server.live.add(session)
    try:
        await socket.send_text(json.dumps({"setupComplete": {}}))
        await LyriaConnection(socket, session, server).run()
    finally:  # the protocol cannot go on with it
        await server.live.end(session, Refusal(410, "the client has gone away.", code="gone"))
    return session
