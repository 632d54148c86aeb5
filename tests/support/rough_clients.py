"""Clients that a server meets and that no HTTP library is like: they hang up in the middle, send half a body, or what is no body at all."""

from __future__ import annotations

import json
import random
import socket
import struct
from typing import Any
from urllib.parse import urlsplit

import httpx

from .server import Server

PATH = "/v1/audio/generations"


def reset_in_the_middle(server: Server, body: dict[str, Any], read: int) -> None:
    """Ask for a sound, read some bytes of it, and reset the connection, as a process that is killed does."""
    with _ask(server, json.dumps(body).encode()) as connection:
        got = 0
        while got < read and (data := connection.recv(4096)):
            got += len(data)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def half_a_body(server: Server, body: dict[str, Any]) -> None:
    """Announce a body, send half of it, and go away."""
    data = json.dumps(body).encode()
    with _ask(server, data[: len(data) // 2], len(data)):
        pass


def bad_request(client: httpx.Client, body: dict[str, Any], draw: random.Random) -> httpx.Response:
    """Send a request that cannot be fulfilled."""
    headers = {"Content-Type": "application/json"}
    noise = draw.randbytes(draw.randint(1, 2000))
    upload = {"data": {"request": json.dumps(body)}, "files": {draw.choice(["audio", "prime"]): ("a.wav", noise)}}
    kinds: list[dict[str, Any]] = [
        {"content": noise, "headers": headers},
        {"content": json.dumps(body)[:-1], "headers": headers},
        {"content": "[" * 5000, "headers": headers},
        {"json": body | {"seconds": draw.choice([-1, "1", None, [], 1e9, True])} | {"tempo": 1}},
        {"json": body | {"prompt": draw.choice(["", 7, "piano " * 600, []])}},
        {"json": body | {"prime": {"data": draw.choice(["?", "AAAA"])}}},
        {"content": noise, "headers": {"Content-Type": draw.choice(["text/plain", "multipart/form-data; boundary=x"])}},
        upload,
    ]
    return client.post(PATH, **draw.choice(kinds))


def _ask(server: Server, body: bytes, length: int | None = None) -> socket.socket:
    parts = urlsplit(server.url)
    connection = socket.create_connection((parts.hostname, parts.port), timeout=60)
    headers = ["Host: x", "Connection: close", "Content-Type: application/json", f"Content-Length: {length or len(body)}"]
    head = "\r\n".join([f"POST {PATH} HTTP/1.1", *headers, "", ""])
    connection.sendall(head.encode() + body)
    return connection
