"""What the clients of a load ask for, and when: all of it is drawn before the first request is sent, from one seed.

Arrivals are a Poisson process. They do not wait for answers (an open loop): a slow server gets no fewer requests for being slow.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np

INTERFACES = ("generations", "speech")
COUNTED = ("wav", "pcm")  # formats in which every sample has the same number of bytes, so that bytes are seconds
PROMPTS = ("calm piano in a ballroom", "brass band with drums", "slow strings, dark and warm", "fast electronic dance music")
_MOST = 100_000  # requests of a load
_CLIP_SEEDS = 2**32


@dataclass(frozen=True)
class Load:
    """A load."""

    url: str
    rate: float = 1.0  # requests per second, on average
    duration_s: float = 30.0  # in which requests are sent
    seconds: tuple[float, float] = (2.0, 10.0)  # shortest and longest clip; lengths between them are equally likely
    cancel: float = 0.0  # share of clients that go away in the middle of their clip
    slow: float = 0.0  # share of clients that read as fast as the clip plays, and not faster
    prompts: tuple[str, ...] = PROMPTS
    formats: tuple[str, ...] = ("wav",)
    interface: str = "generations"
    model: str | None = None
    key: str | None = None
    seed: int = 0
    retries: int = 0  # times that a client comes back after a 429, when its Retry-After has passed
    timeout_s: float = 120.0  # in which an answer must have ended

    def __post_init__(self) -> None:
        """Raise ValueError for a load that cannot be sent."""
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).netloc:
            raise ValueError(f"the server's URL is like http://127.0.0.1:8000, got {self.url!r}.")
        for name, value in (("rate", self.rate), ("duration", self.duration_s), ("timeout", self.timeout_s)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be above 0, got {value:g}.")
        if not 0 < self.seconds[0] <= self.seconds[1] < float("inf"):
            raise ValueError(f"seconds are the shortest and the longest clip, above 0 and in this order, got {self.seconds}.")
        for name, value in (("cancel", self.cancel), ("slow", self.slow)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is a share from 0 to 1, got {value:g}.")
        if self.interface not in INTERFACES:
            raise ValueError(f"interface is {' or '.join(INTERFACES)}, got {self.interface!r}.")
        if not self.prompts or not self.formats:
            raise ValueError("at least one prompt and one format are needed.")
        if self.slow and not set(COUNTED) & set(self.formats):
            raise ValueError(f"slow clients read {' or '.join(COUNTED)}, of which a second has so many bytes, got {self.formats}.")
        if self.rate * self.duration_s > _MOST:
            raise ValueError(f"at most {_MOST} requests, got {self.rate:g} per second for {self.duration_s:g} s.")


@dataclass(frozen=True)
class Planned:
    """One request to come."""

    at_s: float  # since the load began
    seconds: float
    seed: int
    prompt: str
    form: str
    slow: bool
    leaves_at: float | None  # share of the clip after which the client goes away


def plan(load: Load) -> list[Planned]:
    """Return the requests of a load in their order."""
    draw, planned, at_s = np.random.default_rng(load.seed), [], 0.0
    counted = [form for form in load.formats if form in COUNTED]
    while (at_s := at_s + draw.exponential(1 / load.rate)) < load.duration_s:
        slow = bool(draw.random() < load.slow)
        leaves = bool(draw.random() < load.cancel)
        planned.append(
            Planned(
                at_s,
                round(float(draw.uniform(*load.seconds)), 3),
                int(draw.integers(_CLIP_SEEDS)),
                load.prompts[int(draw.integers(len(load.prompts)))],
                (formats := counted if slow else load.formats)[int(draw.integers(len(formats)))],
                slow,
                float(draw.random()) if leaves else None,
            )
        )
    return planned
