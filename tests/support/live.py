"""A client of `/v1/live`."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect


class Live:
    """One connection: what it sends, the messages that it got, and the samples."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.messages = socket, list[dict[str, Any]]()
        self.first: int | None = None  # number of the first sample
        self._parts: list[np.ndarray] = []
        self.samples = 0
        self.came: list[tuple[float, int]] = []  # when, and how many samples there were then

    def send(self, kind: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def prompt(self, *texts: str) -> dict[str, Any]:
        """Set prompts of equal weight. Return the answer."""
        self.send("prompts", prompts=[{"text": text} for text in texts])
        return self.until("changed", "error")

    def take(self, timeout: float = 10.0) -> dict[str, Any] | None:
        """Take one frame. Return the message, if it is one."""
        frame = self.socket.recv(timeout)
        if isinstance(frame, str):
            self.messages.append(json.loads(frame))
            return self.messages[-1]
        (first,) = struct.unpack("<Q", frame[:8])
        if self.first is None:
            self.first = first
        assert first == self.first + self.samples, "samples are missing, or come twice"
        self._parts.append(np.frombuffer(frame[8:], "<i2"))
        self.samples += len(self._parts[-1])
        self.came.append((time.monotonic(), self.samples))
        return None

    def until(self, *kinds: str) -> dict[str, Any]:
        """Return the next message of one of these kinds."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            message = self.take()
            if message is not None and message["type"] in kinds:
                return message
        raise TimeoutError(f"no {' or '.join(kinds)}, but {self.messages[-3:]}")

    def until_it_is(self, state: str) -> dict[str, Any]:
        """Return the next message by which the session is in a state."""
        while (message := self.until("state"))["state"] != state:
            pass
        return message

    def hear(self, samples: int) -> np.ndarray:
        """Wait until there are so many samples. Return them, int16."""
        end = time.monotonic() + 60
        while self.samples < samples:
            assert time.monotonic() < end, (self.samples, samples, self.messages[-3:])
            self.take()
        return self.wave[:samples]

    def listen(self, seconds: float) -> None:
        """Take what comes for so long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                self.take(left)
            except TimeoutError:
                return

    @property
    def wave(self) -> np.ndarray:
        return np.concatenate([np.zeros(0, "<i2"), *self._parts])


@contextmanager
def live(url: str, headers: dict[str, str] | None = None, **setup: Any) -> Iterator[Live]:
    """Connect to a server, and set a session up; its `ready` or `error` is the first message."""
    with connect(url.replace("http", "ws", 1) + "/v1/live", max_size=None, max_queue=None, additional_headers=headers) as socket:
        client = Live(socket)
        client.send("setup", **setup)
        client.take()
        yield client
