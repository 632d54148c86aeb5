"""The clients of a load: each sends its request when its time has come, and notes when it heard what.

In: planned requests. Out: what each client got. Times are this machine's; the first audio counts from when the request was to be sent, so
that a client program that is late does not make the server look fast.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...runtime.install import install_command
from .arrivals import COUNTED, Load, Planned
from .heard import Player, Samples

if TYPE_CHECKING:
    import httpx

_AHEAD_S = 0.25  # that a slow client has read and not played
_RECEIVED = 1 << 14  # bytes that the system keeps for a slow client: more, and the server would not notice that it is slow
_AUDIO_RATE = "x-sample-rate"
_ODD = 1e-3  # of a clip's seconds, more or less than were asked for, that rounding to frames does not explain


@dataclass
class Got:
    """What a client got."""

    planned: Planned
    end: str = ""  # done, left, refused, or the kind of error
    late_s: float = 0.0  # that the request was sent after its time
    first_s: float | None = None  # to the first audio, or in a format whose seconds cannot be counted to the first byte
    promised_s: float | None = None  # to the first audio, as the server said beforehand
    ended_s: float = 0.0  # since the load began
    audio_s: float = 0.0
    longest_s: float | None = None  # silence at playing speed; None where seconds cannot be counted
    refusals: list[float | None] = field(default_factory=list)  # the Retry-After of each 429
    admitted: bool = False
    bundle: str | None = None


def open_client(load: Load, slow: bool) -> httpx.AsyncClient:
    """Return an HTTP client without a limit on connections. Raises ImportError where httpx is missing."""
    try:
        import httpx
    except ModuleNotFoundError as error:
        raise ImportError(f"musiclm load needs httpx, which is not installed: {install_command('load')}.") from error
    options = [(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVED)] if slow else None
    transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None, max_keepalive_connections=64), socket_options=options)
    headers = {} if load.key is None else {"Authorization": f"Bearer {load.key}"}
    return httpx.AsyncClient(base_url=load.url, transport=transport, headers=headers, timeout=httpx.Timeout(None), trust_env=False)


async def run_clients(load: Load, planned: list[Planned]) -> list[Got]:
    """Send all requests at their times, and return what their clients got. Raises OSError if no server answers at all."""
    async with open_client(load, False) as fast, open_client(load, True) as slow:
        await _reach(fast, load.url)
        began = asyncio.get_running_loop().time() + 0.05
        return list(await asyncio.gather(*(_client(load, slow if one.slow else fast, one, began) for one in planned)))


async def _reach(client: httpx.AsyncClient, url: str) -> None:
    """Raise ConnectionError unless a server listens: a table of failures only would say less."""
    import httpx

    try:
        await client.get("/health", timeout=10)
    except httpx.HTTPError as error:
        raise ConnectionError(f"{url} cannot be reached: {type(error).__name__}: {error}") from error


async def _client(load: Load, http: httpx.AsyncClient, planned: Planned, began: float) -> Got:
    import httpx

    loop, got = asyncio.get_running_loop(), Got(planned)
    due = began + planned.at_s
    for attempt in range(load.retries + 1):
        await asyncio.sleep(due - loop.time())
        got.late_s = max(got.late_s, loop.time() - due)
        try:
            async with asyncio.timeout(load.timeout_s):
                got.end = await _ask(load, http, got, due)
        except TimeoutError:
            got.end = "timeout"
        except httpx.ConnectError:
            got.end = "no connection"
        except (httpx.HTTPError, OSError):
            got.end = "broken off"
        except ValueError:
            got.end = "no sound"
        if got.end != "refused" or (wait := got.refusals[-1]) is None or attempt == load.retries:
            break
        due = loop.time() + wait
    got.ended_s = loop.time() - began
    return got


async def _ask(load: Load, http: httpx.AsyncClient, got: Got, due: float) -> str:
    """Send a request and read its answer. Return how it ended."""
    path, body = body_of(load, got.planned)
    async with http.stream("POST", path, json=body) as answer:
        if answer.status_code == 429:
            stated = answer.headers.get("retry-after", "")
            got.refusals.append(float(stated) if stated.isdecimal() else None)
            return "refused"
        if answer.status_code != 200:
            return f"status {answer.status_code}"
        got.admitted, got.bundle = True, answer.headers.get("x-bundle-sha256")
        if promised := answer.headers.get("x-first-audio-s"):
            got.promised_s = float(promised)
        return await _listen(answer, got, due)


async def _listen(answer: httpx.Response, got: Got, due: float) -> str:
    """Read a sound, as a player does or as fast as it comes. Return how that ended."""
    loop, planned, player, read = asyncio.get_running_loop(), got.planned, Player(), 0
    counts = planned.form in COUNTED
    stated = answer.headers.get(_AUDIO_RATE, "")
    samples = Samples(int(stated) if stated.isdecimal() else None, planned.form == "pcm") if counts else None
    async for data in answer.aiter_raw():
        now, read = loop.time(), read + len(data)
        if samples is not None:
            player.note(now, samples.seconds(data))
            got.audio_s, got.longest_s = player.audio_s, player.longest_s
        if got.first_s is None and (player.first is not None if counts else read):
            got.first_s = now - due
        if (
            planned.leaves_at is not None
            and got.first_s is not None
            and (not counts or player.audio_s >= planned.leaves_at * planned.seconds)
        ):
            return "left"
        if planned.slow:
            await asyncio.sleep(player.dry - _AHEAD_S - loop.time())
    if not counts:
        got.audio_s = planned.seconds
        return "done" if read else "no sound"
    return "done" if abs(player.audio_s - planned.seconds) <= _ODD else "wrong length"


def body_of(load: Load, planned: Planned) -> tuple[str, dict[str, Any]]:
    """Return the path and the JSON of a request."""
    ours: dict[str, Any] = {"seconds": planned.seconds, "seed": planned.seed, "response_format": planned.form}
    if load.model is not None:
        ours["model"] = load.model
    if load.interface == "speech":
        return "/v1/audio/speech", {"input": planned.prompt, **ours}
    return "/v1/audio/generations", {"prompt": planned.prompt, **ours}
