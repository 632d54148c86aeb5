"""A machine that makes audio at a known pace, and clients that ask it for more, in a time of their own: minutes pass in a second.

The places are the server's (`serve.admission`); nothing is computed. A stream that does not sound yet goes first, as in the scheduler.
"""

from __future__ import annotations

import asyncio
import math
import random
import selectors
from collections.abc import Coroutine
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from musiclm_deploy.runtime.scheduler import Activity
from musiclm_deploy.serve.admission import Admission
from musiclm_deploy.serve.capacity import Capacity
from musiclm_deploy.serve.errors import Refusal
from musiclm_deploy.serve.settings import Limits

_TURN_S = 0.01
_FIRST_S, _CHUNK_S = 0.4, 0.5  # seconds of audio in a first chunk, and in another


class Clock(selectors.DefaultSelector):
    """Waits for nothing: the time for which the event loop would wait has passed at once."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now += timeout or 0.0
        return super().select(0)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in an event loop whose time does not pass."""
    clock = Clock()
    loop = asyncio.SelectorEventLoop(clock)
    loop.time = lambda: clock.now  # type: ignore[method-assign]
    try:
        loop.run_until_complete(main)
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
    finally:
        loop.close()


@dataclass(eq=False)
class Clip:
    """A stream of the machine; the attributes that places look at are those of `runtime.stream.Stream`."""

    seconds: float
    spent: float = 0.0  # seconds of work on the next chunk
    audio_s: float = 0.0
    dry: float = 0.0  # when all that was made has been played
    silence_s: float = 0.0  # longest
    first: asyncio.Event = field(default_factory=asyncio.Event)
    whole: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def made(self) -> bool:
        return self.whole.is_set()

    @property
    def progress(self) -> dict[str, tuple[float, float]]:
        return {"fine": (self.audio_s, self.seconds)}


class Machine:
    """Makes `pace` seconds of audio a second, and needs `first_s` for the first of a stream that is alone."""

    def __init__(self, pace: float, first_s: float, noise: float, draw: random.Random) -> None:
        """noise: standard deviation of the logarithm of its speed, which is drawn anew every second."""
        self._pace, self._first_s, self._noise, self._draw = pace, first_s, noise, draw
        self.clips: list[Clip] = []
        self._busy_s = self._audio_s = 0.0

    @property
    def activity(self) -> Activity:
        now = asyncio.get_running_loop().time()
        in_hand = min((one.dry - now for one in self.clips if one.first.is_set()), default=math.inf)
        silent = sum(not one.first.is_set() for one in self.clips)
        return Activity(len(self.clips), {}, in_hand, silent, 16, self._busy_s, self._audio_s)

    async def work(self) -> None:
        speed, turns = 1.0, 0
        while True:
            if turns % round(1 / _TURN_S) == 0:
                speed = math.exp(self._draw.gauss(0, self._noise))
            turns += 1
            left, self._busy_s = _TURN_S * speed, self._busy_s + (_TURN_S if self.clips else 0.0)
            while left > 1e-9 and self.clips:
                silent = [one for one in self.clips if not one.first.is_set()]
                clip = silent[0] if silent else min(self.clips, key=lambda one: one.dry)
                whole = self._first_s * (1 + 0.3 * math.sqrt(len(self.clips))) if silent else _CHUNK_S / self._pace
                done = min(left, whole - clip.spent)
                left, clip.spent = left - done, clip.spent + done
                if clip.spent >= whole - 1e-12:
                    clip.spent = 0.0
                    self._put(clip, _FIRST_S if silent else _CHUNK_S)
            await asyncio.sleep(_TURN_S)

    def _put(self, clip: Clip, seconds: float) -> None:
        now, seconds = asyncio.get_running_loop().time(), min(seconds, clip.seconds - clip.audio_s)
        if clip.first.is_set():
            clip.silence_s = max(clip.silence_s, now - clip.dry)
        clip.dry = max(clip.dry, now) + seconds
        clip.audio_s, self._audio_s = clip.audio_s + seconds, self._audio_s + seconds
        clip.first.set()
        if clip.audio_s >= clip.seconds - 1e-9:
            self.clips.remove(clip)
            clip.whole.set()


@dataclass
class Found:
    """What the clients of an overload met."""

    clips: list[Clip] = field(default_factory=list)
    off_s: list[float] = field(default_factory=list)  # first audio, later than promised
    refused: int = 0
    returned: int = 0
    taken: int = 0  # of those who came back
    seconds: float = 0.0


async def overload(
    found: Found, pace: float, first_s: float, times: float, retries: int, noise: float = 0.15, seconds: float = 60.0
) -> None:
    """Have clips of 2 to 10 s asked for at so many times the pace of a machine."""
    draw, loop = random.Random(0), asyncio.get_running_loop()
    machine, capacity = Machine(pace, first_s, noise, random.Random(1)), Capacity()
    loaded: Any = SimpleNamespace(model=machine, capacity=capacity)
    metrics: Any = SimpleNamespace(refused=lambda reason: None)
    admission = Admission(Limits(), metrics)

    async def look() -> None:
        while True:
            capacity.look(machine.activity)
            await asyncio.sleep(0.25)

    async def client(number: int, length: float) -> None:
        job: Any = SimpleNamespace(
            owner="anyone", body_sha256=str(number), asked=SimpleNamespace(arguments={"seconds": length}, seconds=length)
        )
        for attempt in range(retries + 1):
            asked = loop.time()
            try:
                async with admission.place(job, loaded) as place:
                    clip: Any = Clip(length)
                    place.stream = clip
                    machine.clips.append(clip)
                    await clip.first.wait()
                    place.reached(_FIRST_S, measured=True)
                    found.off_s.append(loop.time() - asked - place.promised_s)
                    found.taken += attempt > 0
                    found.clips.append(clip)
                    await clip.whole.wait()
                return
            except Refusal as error:
                found.refused += 1
                if error.retry_s is None or attempt == retries:
                    return
                found.returned += 1
                await asyncio.sleep(float(error.headers["Retry-After"]))

    held = [asyncio.create_task(machine.work()), asyncio.create_task(look())]
    for count in (1, 4):  # as when a bundle is opened
        warm = [Clip(1.0) for _ in range(count)]
        machine.clips += warm
        await asyncio.gather(*(one.whole.wait() for one in warm))
    capacity.note_first(first_s, 0, 0)
    began, clients = loop.time(), []
    while loop.time() < began + seconds:
        clients.append(asyncio.create_task(client(len(clients), draw.uniform(2, 10))))
        await asyncio.sleep(draw.expovariate(times * pace / 6))
    await asyncio.gather(*clients)
    found.seconds = loop.time() - began
    for task in held:
        task.cancel()
