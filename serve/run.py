"""A server that listens: sockets, signals, and an end that lets running requests finish."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import signal
import socket
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .app import create_app
from .errors import stopping
from .settings import Settings

_LOG = logging.getLogger(__name__)
_HEADER_BYTES = 1 << 14


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT: requests that run then may end within `drain_s`; a second signal ends them at once.

    Raises OSError where it cannot listen, before anything is loaded, and what opening the bundles raises.
    """
    bound = _bind(settings.host, settings.port)
    app = create_app(settings)
    if settings.port and not is_loopback(settings.host):
        _LOG.warning("listening on %s: whoever has a key and reaches this machine can use it.", settings.host)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=settings.limits.connections,
        timeout_keep_alive=int(settings.limits.idle_s),
        timeout_graceful_shutdown=int(settings.drain_s),
        h11_max_incomplete_event_size=_HEADER_BYTES,
        http=_protocol(settings.limits.header_s),
        ws="websockets-sansio",
        ws_max_size=settings.limits.upload_bytes * 4 // 3 + settings.limits.body_bytes,  # a sound in base64 may be part of a prompt
        loop="asyncio",
    )
    Draining(config, app.state.server, settings.drain_s).run([bound])


def _bind(host: str, port: int) -> socket.socket:
    """Return a socket with this address. Raises OSError."""
    try:
        [family, *_, address] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)  # uvicorn listens on it, once all is open
    except OSError as error:
        other = "" if error.errno != errno.EADDRINUSE else " Give another --port, or 0 for any that is free."
        raise OSError(f"cannot listen on {host}, port {port}: {(error.strerror or str(error)).lower()}.{other}") from error
    return bound


def _protocol(header_s: float) -> type[H11Protocol]:
    """Return uvicorn's HTTP, but that a connection on which nothing is asked within `header_s` is closed: uvicorn waits for ever."""

    class Protocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._waiting = self.loop.call_later(header_s, self._close_unasked)

        def handle_websocket_upgrade(self, event: Any) -> None:
            self._waiting.cancel()
            super().handle_websocket_upgrade(event)

        def connection_lost(self, exc: Exception | None) -> None:
            self._waiting.cancel()
            super().connection_lost(exc)

        def _close_unasked(self) -> None:
            if self.cycle is None:
                self.transport.close()

    return Protocol


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Draining(uvicorn.Server):
    """A server that takes nothing more once it is told to stop, and says so to whoever asks."""

    def __init__(self, config: uvicorn.Config, server: Any, drain_s: float) -> None:
        super().__init__(config)
        self._server, self._drain_s, self._draining = server, drain_s, False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        async with self._server.models.use(None):  # what it raises is the command's error; from the application it would be a traceback
            await super().startup(sockets)
        for listening in self.servers:
            for one in listening.sockets:
                host, port = one.getsockname()[:2]
                shown = f"[{host}]" if ":" in host else host
                _LOG.info("listening on http://%s:%d; the interface is described at /docs", shown, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take nothing more and end when nothing runs; at once when told a second time. The process ends with status 0."""
        if self._draining:
            self._server.runner.cancel_all()
            self.config.timeout_graceful_shutdown, self.should_exit = 1, True
            return
        self._draining = True
        _LOG.info("%s: requests that run may end within %g s; a second signal ends them at once.", signal.Signals(sig).name, self._drain_s)
        task = asyncio.get_running_loop().create_task(self._drain())
        task.add_done_callback(lambda _: setattr(self, "should_exit", True))

    async def _drain(self) -> None:
        self._server.runner.draining = True
        await self._server.live.end_all(stopping())  # who plays live has no end to wait for
        await self._server.runner.drain(self._drain_s)
