"""ElevenLabs' interface for music, for clients that have it."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from .. import bodies
from ..errors import Refusal
from ..formats import FORMATS_SERVED, Format
from .common import SOUNDS, collect, play

router = APIRouter(tags=["elevenlabs"])
_OUTPUT = re.compile(r"(?P<name>pcm|mp3|opus)_(?P<rate>\d{4,6})(_(?P<kbps>\d{1,3}))?")
OutputFormat = Annotated[str, Query(description="such as mp3_44100_128, pcm_44100, opus_48000_64", max_length=40)]


def _form(output_format: str, body: bodies.Music) -> tuple[Format, int | None]:
    """Return the format that is asked for, and mp3's or opus' kilobits a second; its rate is put into the body."""
    found = _OUTPUT.fullmatch(output_format)
    form = FORMATS_SERVED[found["name"]] if found else None
    if found is None or form is None or form.rate(int(found["rate"])) != int(found["rate"]):
        told = "output_format is mp3_RATE_KBPS, pcm_RATE or opus_RATE_KBPS with a rate that the format has"
        raise Refusal(422, f"{told}, got {output_format!r}.", "output_format", "invalid_output_format")
    body.sample_rate = body.sample_rate or int(found["rate"])
    return form, int(found["kbps"]) if found["kbps"] else None


def _prompt(body: bodies.Music) -> str | None:
    if body.composition_plan is not None:
        raise Refusal(422, "a composition_plan cannot be followed here: give a prompt.", "composition_plan", "unsupported")
    if body.music_length_ms is not None:
        if body.seconds is not None:
            raise Refusal(422, "music_length_ms and seconds say the same: give one of them.", "seconds", "invalid_value")
        body.seconds = body.music_length_ms / 1000
    return body.prompt


def _model(request: Request, body: bodies.Music) -> str | None:
    """Return the model of that name here; clients that name ElevenLabs' own get the default one."""
    return None if body.model_id is None or body.model_id.startswith("music_v") else body.model_id


@router.post("/v1/music", responses=SOUNDS, response_class=Response)
async def music(request: Request, body: bodies.Music, output_format: OutputFormat = "mp3_44100_128") -> Response:
    """Make music, and send it when it is whole."""
    prompt, (form, kbps) = _prompt(body), _form(output_format, body)
    return await collect(request, body, _model(request, body), prompt, form, kbps)


@router.post("/v1/music/stream", responses=SOUNDS, response_class=Response)
async def stream(request: Request, body: bodies.Music, output_format: OutputFormat = "mp3_44100_128") -> Response:
    """Make music, and send it while it is made."""
    prompt, (form, kbps) = _prompt(body), _form(output_format, body)
    return await play(request, body, _model(request, body), prompt, form, kbps=kbps)
