"""What is known of a request when it has ended: its line in the log, and its trace.

In: what the layers that it passes note. Out: fields by name, and the same as a sentence. No prompt and no key is among them.
"""

from __future__ import annotations

import logging
import time
from typing import Any
from urllib.parse import quote

from .jobs import Job
from .keys import OPEN_FOLDER

_LOG = logging.getLogger("musiclm_deploy.serve.access")
_QUIET_PATHS = ("/health", "/ready", "/metrics")  # asked every few seconds by what watches servers
_STAGES = {"prompt": "mulan", "semantic": "semantic", "coarse": "coarse", "fine": "fine", "codec": "codec"}  # ours: of a job's timings


def is_quiet(path: str) -> bool:
    """Return whether a request for a path is not worth a line in the log, or a span: what watches servers, and each file of the page."""
    return path in _QUIET_PATHS or path.startswith(OPEN_FOLDER)


class Record:
    """A request, or a job that goes on after its request has been answered."""

    def __init__(self, request_id: str, method: str, path: str) -> None:
        self.request_id, self.method = request_id, method
        self.path = quote(path, safe="/:@!$&'()*+,;=~")  # a path may hold line breaks
        self.span: Any = None  # OpenTelemetry's, of the request, if somebody collects them
        self.began_ns, self._began = time.time_ns(), time.monotonic()
        self.fields: dict[str, Any] = {}

    @property
    def seconds(self) -> float:
        """How long ago it came."""
        return time.monotonic() - self._began

    def note(self, **fields: Any) -> None:
        """Add what is known; None is not."""
        for name, value in fields.items():
            if value is not None:
                self.fields[name] = round(value, 4) if isinstance(value, float) else value

    def note_job(self, job: Job) -> None:
        """Add how a job stands, or how it ended."""
        self.note(job=job.id, model=job.asked.model, reason=job.state, error=job.error and (job.error.code or job.error.kind))
        self.note(queue_s=None if job.begun is None else job.begun - job.created)
        if job.result is not None:
            self.note_stages(job.result.timings)
            self.note(audio_s=job.result.audio_s)

    def note_stages(self, timings: dict[str, float]) -> None:
        """Add the seconds that each stage took."""
        self.note(stages={ours: round(timings[name], 4) for ours, name in _STAGES.items() if name in timings})

    def note_sound(self, seconds: float, first: float | None) -> None:
        """Add the seconds of audio that were sent. first: when the first of it was there, by the monotonic clock."""
        self.note(audio_s=seconds, first_audio_s=None if first is None else first - self._began)

    def follow(self, job: Job) -> Record:
        """Return the record of a job that goes on after this request."""
        record = Record(self.request_id, "JOB", f"/v1/jobs/{job.id}")
        record.span = self.span
        return record

    def log(self) -> None:
        """Log it."""
        self.note(seconds=self.seconds)
        known = {"request_id": self.request_id, "method": self.method, "path": self.path, **self.fields}
        quiet = is_quiet(self.path) and self.fields.get("status", 0) < 400
        _LOG.log(logging.DEBUG if quiet else logging.INFO, "%s", self._sentence(), extra={"fields": known})

    def _sentence(self) -> str:
        """Return the fields in words: `POST /v1/music 200 in 0.307 s: done, 4.0 s of music, the first after 0.038 s (req_1, job_2)`."""
        of = self.fields
        told = [str(of[name]) for name in ("reason", "error") if name in of]
        if "audio_s" in of:
            told.append(f"{of['audio_s']:.1f} s of music")
        if "first_audio_s" in of:
            told.append(f"the first after {of['first_audio_s']:.3f} s")
        if "queue_s" in of:
            told.append(f"{of['queue_s']:.3f} s in the queue")
        shown = [self.method, self.path, *([str(of["status"])] if "status" in of else []), f"in {of['seconds']:.3f} s"]
        ids = ", ".join([self.request_id, *([of["job"]] if "job" in of else [])])
        return f"{' '.join(shown)}{': ' if told else ''}{', '.join(told)} ({ids})"
