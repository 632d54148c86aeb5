"""Jobs: what was asked, how far it is, and the tokens it left, from which its sound can be made again from any sample on.

Every request is a job, those too whose client reads the sound as it is made: a stream that was cut off goes on from the tokens.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..runtime.music import Music, Tokens
from .errors import Refusal
from .settings import Limits

State = Literal["queued", "running", "done", "failed", "cancelled", "cut"]
ENDED = ("done", "failed", "cancelled", "cut")


@dataclass(frozen=True)
class Asked:
    """What a request asks, whichever interface it came by."""

    model: str
    arguments: Mapping[str, Any]  # of `MusicLM.generate`
    seconds: float
    prompt: str  # in words, for those who look at the job
    bytes: int  # of the sounds among the arguments
    deadline_s: float  # from the request to its last byte
    ahead_s: float | None = None  # that a stream is made ahead of its listener; None: as the server has it


@dataclass
class Result:
    """What a job left."""

    candidates: list[Tokens]
    best: int = 0
    scores: list[float | None] = field(default_factory=lambda: [None])
    timings: dict[str, float] = field(default_factory=dict)
    pcm_sha256: str | None = None  # of the best candidate as 16 bits, if all of it was made
    audio_s: float | None = None  # seconds of the best candidate, if it was collected


@dataclass(eq=False)
class Job:
    """One request on its way."""

    id: str
    owner: str  # whose key it came with
    asked: Asked
    body_sha256: str = ""  # of what the client sent
    state: State = "queued"
    created: float = field(default_factory=time.time)
    begun: float | None = None  # of one that waited for its turn
    ended: float | None = None
    progress: dict[str, tuple[int, int]] = field(default_factory=dict)  # stage -> done, total
    result: Result | None = None
    music: Music | None = None  # until the answer is sent, for who waits for all of it
    wants_music: bool = False
    begins_s: float = 0.0  # of the clip, with which its sound begins: after a prime that is left out
    error: Refusal | None = None
    cancel: Callable[[], object] = lambda: None  # frees its rows within a frame; set by who runs it
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    on_settled: Callable[[], object] = lambda: None  # set by who wants to know when nobody waits

    def settle(self, state: State, error: Refusal | None = None) -> None:
        """Note how the job ended. What was noted first holds."""
        if self.state not in ENDED:
            self.state, self.error, self.ended = state, error, time.time()
            self.settled.set()
            self.on_settled()

    @property
    def bytes(self) -> int:
        """Memory that the job holds, about."""
        tokens = [] if self.result is None else self.result.candidates
        arrays = [array for one in tokens for array in vars(one).values() if array is not None]
        return 1000 + self.asked.bytes + sum(array.nbytes for array in arrays)

    def record(self, position: int | None) -> dict[str, Any]:
        """Return the job as clients see it. position: in the queue, from 1; None once it runs."""
        record: dict[str, Any] = {
            "id": self.id,
            "object": "job",
            "state": self.state,
            "model": self.asked.model,
            "prompt": self.asked.prompt,
            "seconds": self.asked.seconds,
            "seed": self.asked.arguments.get("seed", 0),
            "created": self.created,
            "ended": self.ended,
            "position": position,
            "progress": {stage: {"done": done, "total": total} for stage, (done, total) in self.progress.items()},
        }
        if self.result is not None:
            record |= {"best": self.result.best, "scores": self.result.scores, "timings": self.result.timings}
            record |= {"pcm_sha256": self.result.pcm_sha256, "audio": f"/v1/jobs/{self.id}/audio"}
        if self.error is not None:
            record["error"] = {"message": self.error.message, "type": self.error.kind, "code": self.error.code}
        return record


class Jobs:
    """The jobs of a server, the ended ones for a while."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._jobs: dict[str, Job] = {}  # the oldest first
        self._repeats: dict[tuple[str, str], tuple[str, str]] = {}  # owner and idempotency key -> hash of the body, id

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._jobs.values()))

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def bytes(self) -> int:
        return sum(job.bytes for job in self)

    def count(self) -> Counter[str]:
        """Return how many jobs there are, by state."""
        return Counter(job.state for job in self)

    def add(self, owner: str, asked: Asked, repeat: str | None = None, body: Any = None) -> tuple[Job, bool]:
        """Return the job of a request, and whether it is new.

        repeat: the client's idempotency key; a request with the same one gets the first one's job. Raises Refusal (422) if it asks for
        something else.
        """
        self.sweep()
        hashed = hashlib.sha256(json.dumps(body, sort_keys=True, default=str).encode()).hexdigest()
        if repeat is not None and (found := self._repeats.get((owner, repeat))) is not None:
            if found[0] != hashed:
                raise Refusal(422, "this idempotency key was used for another request.", "Idempotency-Key", "idempotency_key_reused")
            return self._jobs[found[1]], False
        job = Job(f"job_{secrets.token_hex(12)}", owner, asked, hashed)
        self._jobs[job.id] = job
        if repeat is not None:
            self._repeats[owner, repeat] = hashed, job.id
        return job, True

    def get(self, owner: str, job_id: str) -> Job:
        """Return a job. Raises Refusal (404) for one that is not there, any more, or that is somebody else's."""
        self.sweep()
        job = self._jobs.get(job_id)
        if job is None or job.owner != owner:
            raise Refusal(
                404, f"there is no job {job_id!r}: jobs are kept {self._limits.keep_s:g} s after their end.", "id", "job_not_found"
            )
        return job

    def drop(self, job: Job) -> None:
        """Forget a job, and whatever it left."""
        self._jobs.pop(job.id, None)
        self._repeats = {key: found for key, found in self._repeats.items() if found[1] != job.id}

    def sweep(self) -> None:
        """Forget jobs that ended too long ago, and the oldest ended ones beyond the number that is kept."""
        now, ended = time.time(), [job for job in self if job.ended is not None]
        beyond = len(ended) - self._limits.jobs
        for index, job in enumerate(sorted(ended, key=lambda job: job.ended or 0)):
            if index < beyond or now - (job.ended or now) > self._limits.keep_s:
                self.drop(job)
