"""What a server is told when it starts: bundles, where it listens, who may ask, and its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Limits:
    """The most that one request, one key and all together may take."""

    seconds: float = 600.0  # of a clip
    characters: int = 4096  # of all texts of a prompt
    parts: int = 16  # of a prompt
    num_samples: int = 8
    body_bytes: int = 1 << 20  # of a request without an upload
    upload_bytes: int = 16 << 20  # of a request with one
    upload_seconds: float = 60.0  # of an uploaded sound, once decoded
    connections: int = 256
    waiting: int = 64  # requests that wait for their turn
    waiting_per_key: int = 16
    wait_s: float = 1.0  # that a stream waits for its place; it is refused if that takes longer
    together: int = 8  # clips that are collected at once
    deadline_s: float = 600.0  # from a request to its last byte, if the request does not ask for less
    header_s: float = 15.0  # in which a connection must have asked something
    body_s: float = 60.0  # in which the body of a request must have come
    idle_s: float = 30.0  # a client may take to read the next bytes of its answer, or to ask again on its connection
    ahead_s: float = 30.0  # of a stream, made before its client has read it
    live_s: float = 3600.0  # of a live session, after which its music stops
    live_idle_s: float = 120.0  # after which a session ends that does not play
    live_gone_s: float = 30.0  # after which a session ends that nobody is connected to
    recording_bytes: int = 256 << 20  # of recordings of live sessions, the oldest of which go first
    jobs: int = 256  # whose tokens are kept
    keep_s: float = 3600.0  # after a job has ended

    def __post_init__(self) -> None:
        """Raise ValueError for a limit that nothing could stay within."""
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name.replace('_', '-')} must be above 0, got {value}.")


@dataclass(frozen=True)
class Settings:
    """How a server runs."""

    bundles: Mapping[str, Path]  # by the name that clients give as `model`; the first one is the default
    host: str = "127.0.0.1"
    port: int = 8000
    device: str = "auto"
    threads: int | None = None
    keys: Mapping[str, str] = field(default_factory=dict)  # key -> name of whoever has it; empty: nobody is asked for one
    origins: Sequence[str] = ()  # from which browsers may ask (CORS)
    deadlines: Mapping[str, float] = field(default_factory=dict)  # `Limits.deadline_s` of a model, where it has less
    memory_bytes: int | None = None  # of loaded bundles, the least recently used of which is let go beyond that
    drain_s: float = 30.0  # that running requests have to end in when the server is told to stop
    limits: Limits = Limits()

    def deadline_s(self, model: str) -> float:
        """Return the seconds that a request to a model has until its last byte."""
        return min(self.limits.deadline_s, self.deadlines.get(model, float("inf")))
