"""What a server counts, for Prometheus, under the names that engines for language and speech use.

A clip's continuity is judged as its listener hears it: chunks play one after another from when the first is sent, and what comes later
than what was sent before has played is an underrun.
"""

from __future__ import annotations

import resource
import time
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from .jobs import Job
    from .models import Models

CONTINUITY_MS = (0, 100, 500)
_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
_FACTORS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0, 4.0)


class Queue(Protocol):
    """What runs and what waits."""

    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...


class Metrics:
    """The counts of one server."""

    def __init__(self, models: Models) -> None:
        self.registry = CollectorRegistry()
        self._models = models
        self._queue: Queue | None = None
        model = ("model",)
        self._first = self._histogram("audio_ttfp_seconds", "From the request to its first audio.", model, _SECONDS)
        self._interval = self._histogram("audio_chunk_interval_seconds", "Between two chunks of a clip.", model, _SECONDS)
        self._underrun = self._histogram("audio_underrun_seconds", "Silence that a listener heard in a clip.", model, (0, *_SECONDS))
        self._factor = self._histogram("audio_rtf", "Seconds that a second of a streamed clip took.", model, _FACTORS)
        self._change = self._histogram("live_change_seconds", "From a changed prompt or setting to the ear.", model, _SECONDS)
        self._audio = Counter("musiclm_audio_seconds_total", "Audio that was sent.", model, registry=self.registry)
        self._continuous = Counter(
            "musiclm_audio_continuity_ok_total",
            "Clips without an underrun longer than the threshold.",
            ("model", "threshold_ms"),
            registry=self.registry,
        )
        self._requests = Counter("musiclm_requests_total", "Requests that ended.", ("model", "finished_reason"), registry=self.registry)
        self._refused = Counter("musiclm_requests_refused_total", "Requests that were not taken.", ("reason",), registry=self.registry)
        self.registry.register(_Now(self))

    def _histogram(self, name: str, meaning: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"musiclm_{name}", meaning, labels, buckets=buckets, registry=self.registry)

    def watch(self, queue: Queue) -> None:
        """Say how much runs and waits in it from now on."""
        self._queue = queue

    def listener(self, model: str) -> Listener:
        """Return what counts how a clip of a model is heard."""
        return Listener(self, model)

    def count(self, job: Job) -> None:
        """Count a job that has ended."""
        self._requests.labels(job.asked.model, job.state).inc()

    def changed(self, model: str, seconds: float) -> None:
        """Count a change in a live session that is heard after so many seconds."""
        self._change.labels(model).observe(seconds)

    def refused(self, reason: str) -> None:
        """Count a request that was not taken."""
        self._refused.labels(reason).inc()

    def text(self) -> bytes:
        """Return everything in Prometheus' format."""
        return generate_latest(self.registry)


class Listener:
    """How the listener of one clip hears it."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._of, self._model = metrics, model
        self._asked = time.monotonic()
        self._last = self._dry = self._first = 0.0  # when the last chunk came; until when there is music; when the first chunk came
        self._seconds = self._silence = self._longest = 0.0

    @property
    def sounds(self) -> bool:
        return self._seconds > 0

    def note(self, seconds: float) -> None:
        """Note that a chunk of so many seconds is there."""
        now = time.monotonic()
        if not self.sounds:
            self._first = self._dry = now
            self._of._first.labels(self._model).observe(now - self._asked)
        else:
            self._of._interval.labels(self._model).observe(now - self._last)
            late = max(now - self._dry, 0.0)
            self._silence, self._longest, self._dry = self._silence + late, max(self._longest, late), max(self._dry, now)
        self._last, self._dry, self._seconds = now, self._dry + seconds, self._seconds + seconds
        self._of._audio.labels(self._model).inc(seconds)

    def end(self) -> None:
        """Note that the clip has come to its end."""
        if not self.sounds:
            return
        self._of._underrun.labels(self._model).observe(self._silence)
        self._of._factor.labels(self._model).observe((time.monotonic() - self._asked) / self._seconds)
        for threshold in CONTINUITY_MS:
            if self._longest * 1000 <= threshold:
                self._of._continuous.labels(self._model, str(threshold)).inc()


class _Now(Collector):
    """What is read when it is asked for."""

    def __init__(self, metrics: Metrics) -> None:
        self._of = metrics

    def collect(self):
        """Give the gauges."""
        queue = self._of._queue
        if queue is not None:
            yield GaugeMetricFamily("musiclm_requests_running", "Requests that run.", value=queue.running)
            yield GaugeMetricFamily("musiclm_requests_waiting", "Requests that wait for their turn.", value=queue.waiting)
        rows = GaugeMetricFamily("musiclm_rows", "Sequences that run, by stage.", labels=("model", "stage"))
        pace = GaugeMetricFamily("musiclm_pace", "Audio seconds made in a second, by clips that run together.", labels=("model", "clips"))
        held = GaugeMetricFamily("musiclm_model_bytes", "Size of the open bundles.", labels=("model",))
        for loaded in self._of._models.loaded:
            for stage, count in loaded.model.activity.rows.items():
                rows.add_metric((loaded.name, stage), count)
            for clips, value in loaded.capacity.paces.items():
                pace.add_metric((loaded.name, str(clips)), value)
            held.add_metric((loaded.name,), loaded.bytes)
        yield from (rows, pace, held)
        yield GaugeMetricFamily("musiclm_resident_bytes", "Resident memory of the server.", value=_resident())


def _resident() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux: the most there ever was
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
