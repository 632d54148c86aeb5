"""OpenAI's interface, for clients that have it: speech, models, embeddings."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from .. import bodies
from ..asked import read_base64
from ..errors import Refusal
from ..formats import FORMATS_SERVED
from ..runner import refusing
from ..state import owner_of, server_of
from .common import SOUNDS, play

router = APIRouter(tags=["openai"])


@router.post("/v1/audio/speech", responses=SOUNDS, response_class=Response)
async def speech(request: Request, body: bodies.Speech) -> Response:
    """Make music of `input`, which `instructions` add to, and send it while it is made."""
    if body.speed != 1:
        raise Refusal(400, f"speed can only be 1, got {body.speed:g}.", "speed", "unsupported_value")
    if body.response_format not in FORMATS_SERVED:
        told = ", ".join(FORMATS_SERVED)
        raise Refusal(400, f"response_format can be {told}, got {body.response_format}.", "response_format", "unsupported_value")
    prompt = f"{body.input}, {body.instructions}" if body.instructions else body.input
    form = FORMATS_SERVED[body.response_format]
    return await play(request, body, body.model, prompt, form, body.stream_format == "sse")


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """List the models."""
    owner_of(request)
    return {"object": "list", "data": [_model(request, name) for name in server_of(request).models.names]}


@router.get("/v1/models/{name}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """Describe a model."""
    owner_of(request)
    server_of(request).models.bundle(name)
    return _model(request, name)


def _model(request: Request, name: str) -> dict[str, Any]:
    models = server_of(request).models
    codec = models.bundle(name).manifest.codec
    return {
        "id": name,
        "object": "model",
        "created": models.created,
        "owned_by": "musiclm-deploy",
        "sample_rate": codec.sample_hz,
        "bundle_sha256": models.bundle(name).sha256,
    }


@router.post("/v1/embeddings")
async def embeddings(request: Request, body: bodies.Latents) -> dict[str, Any]:
    """Return the latents of texts, or of sounds, in MuLaN's space: vectors of length 1 whose products compare words with sounds."""
    owner_of(request)
    server, limits = server_of(request), server_of(request).settings.limits
    texts = [body.input] if isinstance(body.input, str) else body.input
    if (texts is None) == (body.audio is None):
        raise Refusal(400, "give either input, texts, or audio, sounds.", "input", "invalid_value")
    items = texts if texts is not None else body.audio or []
    if not 0 < len(items) <= limits.parts:
        raise Refusal(400, f"from 1 to {limits.parts} at once, got {len(items)}.", "input", "beyond_limit")
    if texts is not None and sum(map(len, texts)) > limits.characters:
        raise Refusal(400, f"the texts have more than {limits.characters} characters.", "input", "beyond_limit")
    async with server.models.use(body.model) as loaded:
        with refusing():
            if texts is not None:
                latents = await asyncio.to_thread(loaded.model.embed_text, texts)
            else:
                sounds = [await asyncio.to_thread(read_base64, one, limits, "audio") for one in body.audio or []]
                latents = np.concatenate([await asyncio.to_thread(loaded.model.embed_audio, sound) for sound in sounds])
    encode = (lambda row: base64.b64encode(row.astype("<f4").tobytes()).decode()) if body.encoding_format == "base64" else np.ndarray.tolist
    data = [{"object": "embedding", "index": index, "embedding": encode(row)} for index, row in enumerate(latents)]
    return {"object": "list", "data": data, "model": body.model or server.models.default, "usage": {"prompt_tokens": 0, "total_tokens": 0}}
