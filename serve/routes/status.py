"""Whether the server lives, whether it can make music, and what it counts."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from ..errors import Refusal, stopping
from ..state import owner_of, server_of

router = APIRouter(tags=["status"])
_READY_S = 30.0
_LEAST_S = 0.05  # of a clip that shows that the engine works


@router.get("/health")
async def health() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "ok"}


@router.get("/ready")
async def ready(request: Request) -> dict[str, Any]:
    """Make a moment of music with the default model; 503 if that fails, takes too long, or the server is being stopped."""
    server = server_of(request)
    if server.runner.draining:
        raise stopping()
    try:
        async with asyncio.timeout(_READY_S), server.models.use(None) as loaded:
            stream = await asyncio.to_thread(loaded.model.stream, "music", seconds=_LEAST_S)
            try:
                made = [chunk async for chunk in stream]
            finally:
                stream.cancel()
    except Exception as error:
        raise Refusal(503, f"the engine makes nothing: {type(error).__name__}: {error}", code="not_ready", retry_s=10) from error
    return {"status": "ready", "model": loaded.name, "samples": sum(len(chunk.audio) for chunk in made)}


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Give the counts in Prometheus' format."""
    owner_of(request)
    return Response(server_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)
