"""Who runs when: streams at once or not at all, collected clips from a queue that is fair between keys.

In: jobs that were checked. Out: chunks for a listener, or a result; the rows of a job are free within a frame of its cancel.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from ..runtime.memory import OutOfMemory
from ..runtime.music import Music
from ..runtime.pipeline import GenerationCancelled
from ..runtime.scheduler import QueueFull
from ..runtime.stream import Stream
from ..runtime.track import Chunk
from .admission import Admission, Place
from .errors import Refusal, stopping
from .formats import pcm_sha256
from .jobs import ENDED, Asked, Job, Jobs, Result
from .metrics import Metrics
from .models import Loaded, Models
from .settings import Limits

_LOG = logging.getLogger(__name__)


class Playing:
    """A job whose chunks somebody reads as they are made."""

    def __init__(self, job: Job, stream: Stream, place: Place | None, metrics: Metrics, start_s: float = 0.0) -> None:
        """place: None for a job that is done, and is decoded again; start_s: second of the clip with which it begins."""
        self.job, self.stream, self._place, self._metrics = job, stream, place, metrics
        self.audio_s = 0.0  # given so far
        self._start_s = start_s
        self.first_at: float | None = None  # when the first of it was there, by the monotonic clock
        if place is not None:
            place.stream = stream

    @property
    def sample_rate(self) -> int:
        return self.stream.sample_rate

    @property
    def promised_s(self) -> float | None:
        """Seconds from the request to the first audio, as far as was known when it was admitted."""
        return None if self._place is None else self._place.promised_s

    @property
    def samples(self) -> int | None:
        """How many samples will come; None for a clip that may end early, or that does not begin with its first sample."""
        unknown = self.job.asked.arguments.get("stop") == "eos" or self._start_s > 0 or "prime" in self.job.asked.arguments
        return None if unknown else round(self.job.asked.seconds * self.sample_rate)

    async def chunks(self) -> AsyncIterator[Chunk]:
        """Give the chunks as they are made. Raises what making them raised."""
        heard = self._metrics.listener(self.job.asked.model)
        async for chunk in self.stream:
            if not heard.sounds:
                self.first_at = time.monotonic()
                if self.job.result is None:
                    self.job.begins_s = chunk.start_s
            heard.note(seconds := len(chunk.audio) / chunk.sample_rate)
            self.audio_s += seconds
            if self._place is not None:
                self._place.reached(chunk.start_s + seconds, measured=self.job.result is None)
            self.job.progress = self.stream.progress
            yield chunk
        if self.job.error is not None:  # it was cancelled: what was sent is not all
            raise self.job.error
        heard.end()

    def cancel(self) -> None:
        """End the stream; whoever listens gets an error, as the clip is not whole."""
        self.job.settle("cancelled", Refusal(503, "this request was cancelled.", code="cancelled"))
        self._metrics.count(self.job)
        self.stream.cancel()

    async def finish(self, pcm_sha256: str) -> None:
        """Note that the clip has come to its end. pcm_sha256: of what was sent, as 16 bits.

        Called before the last byte is sent: whoever has the whole sound finds its job done.
        """
        if self.job.state == "running":
            tokens = await asyncio.to_thread(lambda: self.stream.tokens)
            whole = self.job.result is None
            self.job.result = Result([tokens], timings=self.stream.timings, pcm_sha256=pcm_sha256 if whole else None)
            self.job.settle("done")
            self._metrics.count(self.job)


class Runner:
    """Runs jobs."""

    def __init__(self, models: Models, jobs: Jobs, limits: Limits, metrics: Metrics) -> None:
        self._models, self._jobs, self._limits, self._metrics = models, jobs, limits, metrics
        self._admissions: defaultdict[str, Admission] = defaultdict(lambda: Admission(limits, metrics))  # by model
        self._decoding = 0  # jobs that are done and are played again
        self._waiting: dict[str, deque[Job]] = {}  # by owner; the owner whose turn is next first
        self._collecting: dict[Job, asyncio.Task[None]] = {}
        self.draining = False
        metrics.watch(self)

    @property
    def running(self) -> int:
        return sum(len(one.places) for one in self._admissions.values()) + len(self._collecting) + self._decoding

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values())) + sum(one.waiting for one in self._admissions.values())

    def position(self, job: Job) -> int | None:
        """Return a job's place in the queue, from 1, if it waits."""
        order, queues = [], [list(queue) for queue in self._waiting.values()]
        while any(queues):
            order += [queue.pop(0) for queue in queues if queue]
        return order.index(job) + 1 if job in order else None

    async def check(self, asked: Asked) -> None:
        """Raise Refusal for what the model cannot make, before anything is promised."""
        self._open_for_more()
        async with self._models.use(asked.model) as loaded:
            with refusing():
                await asyncio.to_thread(loaded.model.check, **asked.arguments)

    # --- streams

    @asynccontextmanager
    async def play(self, job: Job, candidate: int | None = None, start_s: float = 0.0) -> AsyncIterator[Playing]:
        """Hold a stream of a job open, its chunks to be read as they are made; when it is let go before its end it is cancelled.

        candidate: of a job that left tokens, the one to play from `start_s` of its clip on. Raises Refusal (429) if somebody's stream
        would run dry by it.
        """
        again, complete = job.result if candidate is not None else None, job.state == "done"
        stream: Stream | None = None
        try:
            async with self._models.use(job.asked.model) as loaded, self._place(job, None if complete else loaded) as place:
                self._open_for_more()
                arguments = {**job.asked.arguments, "ahead_s": job.asked.ahead_s or self._limits.ahead_s}
                arguments.pop("num_samples", None)
                if again is not None and candidate is not None:
                    arguments |= {"tokens": again.candidates[candidate], "start_s": max(start_s, job.begins_s)}
                    prime = arguments.pop("prime", None)  # the tokens begin with it
                    if prime is not None and not {"text", "audio"} & arguments.keys():
                        arguments["audio"] = prime
                with refusing():
                    stream = await asyncio.to_thread(loaded.model.stream, **arguments)
                playing = Playing(job, stream, place, self._metrics, start_s)
                if not complete:
                    job.state, job.cancel = "running", playing.cancel
                try:
                    async with asyncio.timeout(job.asked.deadline_s):
                        yield playing
                except BaseException as error:
                    stream.cancel()
                    if not complete and job.state not in ENDED:
                        await self._cut(job, stream, error)  # before its place is free: who sees that nothing runs sees how it ended
                        self._metrics.count(job)
                    if isinstance(error, TimeoutError):
                        raise _late() from error
                    raise
        except BaseException:
            if stream is None and again is None:  # nothing was begun: the same request may be taken later
                self._jobs.drop(job)
            raise

    @asynccontextmanager
    async def _place(self, job: Job, loaded: Loaded | None) -> AsyncIterator[Place | None]:
        """Count a job among those that run; loaded: its model, if it must be admitted. Raises Refusal (429)."""
        if loaded is not None:
            async with self._admissions[loaded.name].place(job, loaded) as place:
                yield place
            return
        self._decoding += 1
        try:
            yield None
        finally:
            self._decoding -= 1

    async def _cut(self, job: Job, stream: Stream, error: BaseException) -> None:
        """Note how a stream ended that did not come to its end, and keep its tokens, from which it can go on."""
        if isinstance(error, TimeoutError):
            job.settle("cancelled", _late())
        elif isinstance(error, asyncio.CancelledError | GeneratorExit | OSError):
            with suppress(Exception):
                job.result = Result([await asyncio.shield(asyncio.to_thread(lambda: stream.tokens))], timings=stream.timings)
            job.settle("cut")
        else:
            _LOG.error("job %s failed", job.id, exc_info=error)
            job.settle("failed", Refusal(500, f"{type(error).__name__}: {error}"))

    # --- collected clips

    def queue(self, job: Job) -> None:
        """Have a job run when its turn comes. Raises Refusal (429) when too many wait."""
        self._open_for_more()
        own = self._waiting.setdefault(job.owner, deque())
        for count, most, whose in ((self.waiting, self._limits.waiting, ""), (len(own), self._limits.waiting_per_key, " of this key")):
            if count >= most:
                self._jobs.drop(job)
                self._metrics.refused("queue")
                raise Refusal(
                    429, f"{count} requests{whose} are waiting already.", code="rate_limit_exceeded", retry_s=self._queue_s() / (count + 1)
                )
        own.append(job)
        job.cancel = lambda: self._withdraw(job)
        self._next()

    def _queue_s(self) -> float:
        """Return the seconds in which what is waiting now will be made, as far as is known."""
        seconds: defaultdict[str, float] = defaultdict(float)
        for job in (job for queue in self._waiting.values() for job in queue):
            seconds[job.asked.model] += job.asked.seconds
        paces = {one.name: one.capacity.pace(self._limits.together) or 1.0 for one in self._models.loaded}
        return sum(length / paces.get(name, 1.0) for name, length in seconds.items())

    def _withdraw(self, job: Job) -> None:
        """Take a job that waits out of the queue."""
        with suppress(KeyError, ValueError):
            self._waiting[job.owner].remove(job)
        job.settle("cancelled")

    def _next(self) -> None:
        """Begin the jobs whose turn it is: one of each owner after another."""
        while len(self._collecting) < self._limits.together and (owner := next((who for who, own in self._waiting.items() if own), None)):
            own = self._waiting.pop(owner)
            job = own.popleft()
            self._waiting = {who: queue for who, queue in self._waiting.items() if queue}
            if own:
                self._waiting[owner] = own  # behind all others
            self._collecting[job] = asyncio.create_task(self._collect(job))

    async def _collect(self, job: Job) -> None:
        cancel = threading.Event()
        job.state, job.cancel, job.begun = "running", cancel.set, time.time()
        left = job.asked.deadline_s - (time.time() - job.created)
        try:
            async with self._models.use(job.asked.model) as loaded, asyncio.timeout(left):
                with refusing():
                    music = await _in_thread(loaded, job, cancel)
            job.result, job.music = _result(music), music if job.wants_music else None
            job.settle("done")
        except TimeoutError:
            job.settle("cancelled", _late())
        except (GenerationCancelled, asyncio.CancelledError):
            job.settle("cancelled")
        except Refusal as error:
            job.settle("failed", error)
        except Exception as error:
            _LOG.exception("job %s failed", job.id)
            job.settle("failed", Refusal(500, f"{type(error).__name__}: {error}"))
        finally:
            cancel.set()
            del self._collecting[job]
            self._metrics.count(job)
            self._next()

    # --- the end

    async def drain(self, seconds: float) -> None:
        """Take nothing more, and wait for what runs; after so many seconds end it."""
        self.draining = True
        for queue in self._waiting.values():
            while queue:
                queue[0].cancel()
        stop = time.monotonic() + seconds
        while self.running and time.monotonic() < stop:
            await asyncio.sleep(0.05)
        self.cancel_all()
        await asyncio.gather(*self._collecting.values(), return_exceptions=True)

    def cancel_all(self) -> None:
        """End what runs."""
        playing = [place.job for one in self._admissions.values() for place in one.places]
        for job in [*playing, *self._collecting]:
            job.cancel()

    def _open_for_more(self) -> None:
        if self.draining:
            raise stopping()


def _late() -> Refusal:
    return Refusal(504, "the deadline has passed.", code="deadline_exceeded")


async def _in_thread(loaded: Loaded, job: Job, cancel: threading.Event) -> Music:
    def report(stage: str, done: int, total: int) -> None:
        job.progress[stage] = done, total

    task = asyncio.create_task(asyncio.to_thread(loaded.model.generate, **job.asked.arguments, progress=report, cancel=cancel))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:  # the thread is waited for: its rows must be free when the job has ended
        cancel.set()
        with suppress(Exception):
            await task
        raise


def _result(music: Music) -> Result:
    scores = [one.score for one in music.candidates]
    seconds = len(music.audio) / music.sample_rate
    return Result([one.tokens for one in music.candidates], music.best, scores, music.timings, pcm_sha256(music.audio), seconds)


@contextmanager
def refusing() -> Iterator[None]:
    """Turn the errors of a model about its arguments into refusals."""
    try:
        yield
    except OutOfMemory as error:
        raise Refusal(413, str(error), code="does_not_fit") from error
    except QueueFull as error:
        raise Refusal(429, str(error), code="rate_limit_exceeded", retry_s=10) from error
    except (ValueError, TypeError) as error:
        raise Refusal(400, str(error), code="invalid_value") from error
