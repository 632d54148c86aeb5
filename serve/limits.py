"""What is checked of a request before any of it is read further: its key, its size, and how fast it comes.

An ASGI layer around the application, since a body must be refused while it comes, not once it is in memory.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import Refusal
from .keys import is_open, name_of
from .records import Record
from .settings import Settings
from .tracing import begin_trace, end_trace

_LOG = logging.getLogger(__name__)
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Gate:
    """Lets requests in."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else f"req_{secrets.token_hex(8)}"
        record = Record(request_id, scope["method"], scope["path"])
        begin_trace(record)
        scope.setdefault("state", {}).update(request_id=request_id, record=record)
        status = size = 0

        async def sending(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode())]}
            size += len(message.get("body", b""))
            await send(message)

        try:
            if self._settings.keys and not is_open(scope["path"]) and scope["method"] != "OPTIONS":
                record.note(key=name_of(headers, self._settings.keys))
            await self._app(scope, self._bounded(headers, receive), sending)
        except Refusal as refusal:
            if status:
                raise
            await refused(refusal, scope, request_id)(scope, receive, sending)
        except Exception as error:
            if status:
                raise
            _LOG.exception("request %s failed", request_id)
            await refused(Refusal(500, f"{type(error).__name__}: {error}"), scope, request_id)(scope, receive, sending)
        finally:
            record.note(status=status or None, bytes=size)
            end_trace(record)
            record.log()

    def _bounded(self, headers: Headers, receive: Receive) -> Callable[[], Any]:
        """Return a `receive` that raises Refusal for a body that is too large or comes too slowly."""
        limits, read, done = self._settings.limits, 0, False
        end = asyncio.get_running_loop().time() + limits.body_s
        upload = headers.get("content-type", "").startswith("multipart/form-data")
        # sounds in base64 are a third larger than their bytes
        most = limits.body_bytes + (limits.upload_bytes if upload else limits.upload_bytes * 4 // 3)
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > most:
            raise too_large(int(length), most)

        async def bounded() -> Message:
            nonlocal read, done
            if done:  # what follows the body is the end of the connection
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                raise Refusal(408, f"the body has not come within {limits.body_s:g} s.", code="request_timeout") from None
            read += len(message.get("body", b""))
            done = not message.get("more_body", False)
            if read > most:
                raise too_large(read, most)
            return message

        return bounded


def too_large(got: int, most: int) -> Refusal:
    """Return the refusal of a body."""
    return Refusal(413, f"a body may have {most} bytes here, got {got} or more.", code="body_too_large")


def refused(refusal: Refusal, scope: Any, request_id: str) -> JSONResponse:
    """Return the answer of a refusal, and note it."""
    scope["state"]["record"].note(error=refusal.code or refusal.kind)
    status, body = refusal.answer(scope["path"], request_id)
    return JSONResponse(body, status, refusal.headers)
