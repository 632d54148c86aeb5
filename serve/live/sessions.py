"""The live sessions of a server: found again after a cut, and ended when nobody needs them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from ..errors import Refusal
from ..settings import Limits
from .recording import Recordings

if TYPE_CHECKING:
    from .session import Session

_LOOK_S = 1.0


class Sessions:
    """Sessions by their id, and what was recorded in them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._sessions: dict[str, Session] = {}
        self._watch: asyncio.Task[None] | None = None
        self.recordings = Recordings(limits.recording_bytes, limits.keep_s)

    def __len__(self) -> int:
        return len(self._sessions)

    def add(self, session: Session) -> None:
        """Keep a session."""
        self._sessions[session.id] = session
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._end_idle())

    def get(self, owner: str, name: str) -> Session:
        """Return a session. Raises Refusal (404) for one that is not there, any more, or that is somebody else's."""
        found = self._sessions.get(name)
        if found is None or found.owner != owner:
            told = f"there is no session {name!r}: it has ended, or the server was started anew. Begin another one."
            raise Refusal(404, told, "session", "session_not_found")
        return found

    async def end(self, session: Session, reason: Refusal) -> None:
        """End a session and forget it."""
        self._sessions.pop(session.id, None)
        await session.close(reason)

    async def end_all(self, reason: Refusal) -> None:
        """End all sessions."""
        for session in list(self._sessions.values()):
            await self.end(session, reason)

    async def _end_idle(self) -> None:
        while self._sessions:
            await asyncio.sleep(_LOOK_S)
            for session in list(self._sessions.values()):
                most = self._limits.live_idle_s if session.connected else self._limits.live_gone_s
                if session.idle and time.monotonic() - session.idle_since > most:
                    await self.end(session, Refusal(408, f"nothing was played for {most:g} s.", code="idle"))
