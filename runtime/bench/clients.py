"""Several clients of one loaded model at once, each in a thread of its own: those that listen and those that collect.

In: a loaded model, settings of their clips. Out: what each client got. Client n asks for seed n, so that what it gets is the same alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from ..music import Tokens
from ..musiclm import MusicLM
from .clips import TEXT, unknown_words_unsaid

_BUFFER_S = 0.1  # that a player holds: it takes the next chunk when less is left to be played


@dataclass
class Got:
    """The clip that a client got, and when it got it."""

    audio: np.ndarray  # float32 [t]
    tokens: Tokens
    taken_s: float  # from the request to the last sample
    first_audio_s: float = 0.0  # from the request to the first chunk
    underruns: int = 0  # chunks that came when a listener had heard all before them
    gaps: list[float] = field(default_factory=list)  # seconds between chunks, over the seconds that the second one plays


def collect(model: MusicLM, clients: int, **settings: Any) -> list[Got]:
    """Have so many clients generate a clip each."""

    def client(number: int) -> Got:
        started = time.perf_counter()
        music = model.generate(TEXT, seed=number, **settings)
        return Got(music.audio, music.tokens, time.perf_counter() - started)

    return _together(client, clients)


def listen(model: MusicLM, clients: int, plays: bool = False, **settings: Any) -> list[Got]:
    """Have so many clients stream a clip each, taking chunks as soon as they are made, or as a player does."""

    def client(number: int) -> Got:
        started = time.perf_counter()
        with model.stream(TEXT, seed=number, **settings) as stream:
            chunks, came, underruns, dry = [], [], 0, 0.0
            for chunk in stream:
                now, length = time.perf_counter(), len(chunk.audio) / chunk.sample_rate
                underruns += bool(chunks) and now > dry
                dry = max(dry, now) + length
                chunks.append(chunk.audio)
                came.append((now, length))
                if plays:
                    time.sleep(max(dry - _BUFFER_S - now, 0.0))
            taken = time.perf_counter() - started
            gaps = [(now - before) / length for (before, _), (now, length) in pairwise(came)]
            return Got(np.concatenate(chunks), stream.tokens, taken, came[0][0] - started, underruns, gaps)

    return _together(client, clients)


def _together(client: Callable[[int], Got], clients: int) -> list[Got]:
    """Run the clients. Raises the first one's error."""
    got: dict[int, Got] = {}
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            got[number] = client(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    with unknown_words_unsaid():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    return [got[number] for number in range(clients)]
