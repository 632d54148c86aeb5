"""Our own protocol of a live session: the messages of `messages` as JSON, and samples as binary frames."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from fastapi import WebSocket
from pydantic import ValidationError

from ...runtime.growing import sixteen_bits
from ..bodies import refusal_of
from ..errors import Refusal, stopping
from ..keys import name_of
from ..state import Server
from .connection import Connection, close
from .messages import CLIENT, Failed, Ready, Setup
from .session import Session, fault_of


class PlainConnection(Connection):
    """A client of `/v1/live`."""

    def read(self, text: str) -> list[Any]:
        return [CLIENT.validate_json(text)]

    def frame(self, first: int, audio: np.ndarray) -> bytes:
        return struct.pack("<Q", first) + sixteen_bits(audio).tobytes()

    def say(self, message: Any) -> str:
        return message.model_dump_json()


async def serve_plain(socket: WebSocket, server: Server) -> Session | None:
    """Serve a client of our own protocol; it has been accepted. Return its session, if it got one."""
    limits = server.settings.limits
    try:
        async with asyncio.timeout(limits.header_s):
            setup = CLIENT.validate_json(await socket.receive_text())
        if not isinstance(setup, Setup):
            raise Refusal(400, f"the first message must be setup, got {setup.type}.", "type", "invalid_value")
        session, resumed = _session(server, socket.headers, setup)
    except (Refusal, ValidationError, TimeoutError, KeyError) as error:
        if isinstance(error, ValidationError):
            error = refusal_of(error)
        elif not isinstance(error, Refusal):
            error = Refusal(408, f"the first message must be setup, as text, within {limits.header_s:g} s.", "type", "invalid_value")
        await socket.send_text(Failed(error=fault_of(error), final=True).model_dump_json())
        await close(socket, error.message)
        return None
    if resumed:
        await session.take_over()
        session.go_on_at(session.sent if setup.from_sample is None else setup.from_sample)
    ready = Ready(
        session=session.id,
        resumed=resumed,
        model=session.model,
        bundle_sha256=server.models.bundle(session.model).sha256,
        sample_rate=session.rate,
        state=session.state,
        next_sample=session.sent,
        seed=session.seed,
        prompts=session.prompts,
    )
    await socket.send_text(ready.model_dump_json())
    await PlainConnection(socket, session, setup.lead_s, limits.idle_s).run()
    return session


def _session(server: Server, headers: Mapping[str, str], setup: Setup) -> tuple[Session, bool]:
    """Return the session that a client asks for, and whether it was there already. Raises Refusal."""
    owner = name_of(headers if setup.key is None else {"authorization": f"Bearer {setup.key}"}, server.settings.keys)
    if server.runner.draining:
        raise stopping()
    if setup.session is not None:
        return server.live.get(owner, setup.session), True
    session = Session(server, owner, server.models.name(setup.model), setup.step_s, setup.seed)
    server.live.add(session)
    return session, False
