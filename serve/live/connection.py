"""A WebSocket of a session: samples and messages go out in time, and what comes in is done in order.

In: a socket whose session is known. Out: nothing; it returns when the client goes away, or when the session ends. What the frames are like
is the protocol's (`plain`, `lyria`).
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from fastapi import WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from ..answers import Gone
from ..bodies import refusal_of
from ..errors import Refusal
from .messages import EndRecord, Failed, Pause, Play, Played, Record, Reset, SetConfig, SetPrompts, Stop
from .session import Session

_WAITING = 64  # messages of a client that are read before the first of them is done
_OLDER = 4  # prompts that came together, of which the latest that can be is taken
_STATUS_S = 1.0
_BAD = 100  # messages that a connection may send which are none
_CLOSED = 1008  # the code of a connection that is closed for what the client has done (RFC 6455, 7.4.1)


class Connection(ABC):
    """One client that is connected to a session."""

    def __init__(self, socket: WebSocket, session: Session, lead_s: float, idle_s: float) -> None:
        """lead_s: seconds that are sent before they are played; idle_s: that the client may take to read what is sent."""
        self.session, self._socket, self._lead_s, self._idle_s = session, socket, lead_s, idle_s
        self._come: deque[list[Any]] = deque()  # messages, each with those before it that it takes the place of, the latest first
        self._changed = asyncio.Event()  # something has come
        self._bad = 0

    # --- the protocol's

    @abstractmethod
    def read(self, text: str) -> list[Any]:
        """Return the messages of a text frame, in our own words. Raises ValidationError or Refusal."""

    @abstractmethod
    def frame(self, first: int, audio: np.ndarray) -> bytes | str:
        """Return the frame of samples, float32 [t]. first: the number of the first one."""

    @abstractmethod
    def say(self, message: Any) -> str | None:
        """Return the text frame of one of our messages; None: the protocol has no word for it."""

    # --- what all have in common

    async def run(self) -> None:
        """Serve the client until it goes away, or until the session ends."""
        session = self.session
        session.connected = True
        work = [self._read(), self._do(), self._send_sound(), self._send_messages(), self._send_status()]
        tasks = [asyncio.create_task(one) for one in work]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except (WebSocketDisconnect, Gone):
            pass
        finally:
            session.connected, session.idle_since = False, time.monotonic()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        """Put what comes behind what is still to be done; a client that sends faster than that waits."""
        async for text in self._texts():
            try:
                messages = self.read(text)
            except (ValidationError, Refusal) as error:
                self._bad += 1
                refusal = refusal_of(error) if isinstance(error, ValidationError) else error
                self.session.tell(refusal, final=self._bad >= _BAD)
                continue
            for message in messages:
                if isinstance(message, SetPrompts) and self._come and isinstance(self._come[-1][0], SetPrompts):
                    self._come[-1] = [message, *self._come[-1][: _OLDER - 1]]  # a slider that is moved: where it is now counts
                else:
                    self._come.append([message])
            self._changed.set()
            while len(self._come) >= _WAITING:
                await asyncio.sleep(0.01)

    async def _texts(self) -> AsyncIterator[str]:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            text = message.get("text")
            yield text if text is not None else (message.get("bytes") or b"").decode(errors="replace")

    async def _do(self) -> None:
        while True:
            while not self._come:
                self._changed.clear()
                await self._changed.wait()
            for message in self._come.popleft():
                try:
                    await self.obey(message)
                    break
                except Refusal as refusal:  # then the one before counts
                    self.refused(message, refusal)

    def refused(self, message: Any, refusal: Refusal) -> None:
        """Tell the client that a message was refused."""
        self.session.tell(refusal)

    async def obey(self, message: Any) -> None:
        """Do what a message asks. Raises Refusal."""
        session = self.session
        match message:
            case SetPrompts():
                session.messages.put_nowait(await session.set_prompts(message.prompts))
            case SetConfig():
                if message.seed is not None:
                    session.seed = message.seed
                if message.sampling:
                    session.messages.put_nowait(await session.set_sampling(message.sampling))
            case Play():
                await session.play()
            case Pause():
                await session.pause()
            case Stop():
                await session.stop()
            case Reset():
                await session.reset()
            case Played():
                session.clock.report(message.sample, session.sent)
            case Record():
                session.record(message.format, message.from_sample)
            case EndRecord():
                session.messages.put_nowait(await session.end_record(message.to_sample))
            case _:
                raise Refusal(400, f"{message.type} is the first message or none.", "type", "invalid_value")

    async def _send_sound(self) -> None:
        while True:
            await self._send(self.frame(*await self.session.piece(self._lead_s)))

    async def _send_messages(self) -> None:
        while True:
            message = await self.session.messages.get()
            if (text := self.say(message)) is not None:
                await self._send(text)
            if isinstance(message, Failed) and message.final:
                await self.close(message.error.message)
                return

    async def _send_status(self) -> None:
        while True:
            await asyncio.sleep(_STATUS_S)
            if self.session.state == "playing" and (text := self.say(self.session.status())) is not None:
                await self._send(text)

    async def _send(self, frame: bytes | str) -> None:
        try:
            async with asyncio.timeout(self._idle_s):
                await (self._socket.send_text(frame) if isinstance(frame, str) else self._socket.send_bytes(frame))
        except TimeoutError:
            raise Gone(f"the client has read nothing for {self._idle_s:g} s.") from None

    async def close(self, reason: str) -> None:
        """Close the connection, for a reason that the client can show."""
        await close(self._socket, reason)


async def close(socket: WebSocket, reason: str) -> None:
    """Close a socket; the reason is cut to what a closing frame holds."""
    await socket.close(_CLOSED, reason.encode()[:120].decode(errors="ignore"))
