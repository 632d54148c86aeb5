"""Music that is played live: two WebSockets, the catalogue of the messages of ours, and what was recorded."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, cast
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response, WebSocket, WebSocketDisconnect

from ..answers import Gone
from ..live.lyria import serve_lyria
from ..live.messages import catalogue
from ..live.plain import serve_plain
from ..live.session import Session
from ..records import Record
from ..state import Server, owner_of, server_of

_LOG = logging.getLogger(__name__)
router = APIRouter(tags=["live"])

Serve = Callable[[WebSocket, Server], Awaitable[Session | None]]


@router.websocket("/v1/live")
async def live(socket: WebSocket) -> None:
    """Play live, by our own messages."""
    await _serve(socket, serve_plain)


@router.websocket("/ws/google.ai.generativelanguage.{version}.GenerativeService.BidiGenerateMusic")
@router.websocket("//ws/google.ai.generativelanguage.{version}.GenerativeService.BidiGenerateMusic")  # as the client for JavaScript has it
async def lyria(socket: WebSocket) -> None:
    """Play live, by Lyria RealTime's messages."""
    await _serve(socket, serve_lyria)


async def _serve(socket: WebSocket, serve: Serve) -> None:
    server = cast(Server, socket.app.state.server)
    record = Record(f"req_{secrets.token_hex(8)}", "WS", socket.url.path)
    session = None
    try:
        if not _is_known(socket, server):
            record.note(reason="refused", error="origin")
            await socket.close()  # before it is accepted: the browser is answered 403
            return
        await socket.accept()
        session = await serve(socket, server)
    except (WebSocketDisconnect, Gone, RuntimeError) as error:
        _LOG.debug("%s: %s", record.request_id, error)  # the client went away while it was answered
    finally:
        if session is not None:
            record.note(session=session.id, model=session.model, key=session.owner, audio_s=session.sent / session.rate)
        record.log()


def _is_known(socket: WebSocket, server: Server) -> bool:
    """Return whether a page of this server, one of an allowed origin, or no page at all connects: browsers let any page try."""
    origin = socket.headers.get("origin")
    if origin is None or origin in server.settings.origins or "*" in server.settings.origins:
        return True
    return urlsplit(origin).netloc == socket.headers.get("host")


@router.get("/v1/live/schema.json")
async def schema() -> dict[str, Any]:
    """Give the catalogue of the messages of `/v1/live`, as JSON Schema."""
    return catalogue()


@router.get("/v1/live/recordings/{name}", response_class=Response)
async def recording(request: Request, name: str) -> Response:
    """Give a recording."""
    found = server_of(request).live.recordings.get(owner_of(request), name)
    filename = f'attachment; filename="recording.{found.form.name}"'
    return Response(found.data, media_type=found.form.media_type, headers={"Content-Disposition": filename, "Cache-Control": "no-store"})
