"""Traces for OpenTelemetry, if whoever starts the server has them collected: FastAPI makes a span of each request, and this its music's.

In: the record of a request, or of a job, that has ended. Out: a span `music` below that of its request, and below it `queue`, `prompt` and
`first audio`.
"""

from __future__ import annotations

from typing import Any

from opentelemetry import trace

from .records import Record

_TRACER = trace.get_tracer("musiclm_deploy.serve")
_HTTP = ("status", "bytes")  # which the request's span has


def begin_trace(record: Record) -> None:
    """Note the span in which a request is answered, and write the request's id on it."""
    span = trace.get_current_span()
    if span.is_recording():
        span.set_attribute("musiclm.request_id", record.request_id)
        record.span = span
        record.note(trace_id=trace.format_trace_id(span.get_span_context().trace_id))


def end_trace(record: Record) -> None:
    """Make the spans of the music that a request, or a job, has made."""
    of = record.fields
    if record.span is None or "job" not in of:
        return
    stages = of.get("stages", {})
    attributes = {f"musiclm.{name}": value for name, value in of.items() if name not in ("stages", *_HTTP)}
    attributes |= {"musiclm.request_id": record.request_id, **{f"musiclm.stage.{stage}_s": seconds for stage, seconds in stages.items()}}
    music = _span("music", record.span, record, 0.0, record.seconds, attributes)
    if of.get("reason") == "failed":
        music.set_status(trace.StatusCode.ERROR, of.get("error"))
    queue_s, prompt_s, first_s = of.get("queue_s", 0.0), stages.get("prompt", 0.0), of.get("first_audio_s", 0.0)
    for name, start, seconds in (("queue", 0.0, queue_s), ("prompt", queue_s, prompt_s), ("first audio", 0.0, first_s)):
        if seconds:
            _span(name, music, record, start, seconds, {})


def _span(name: str, below: trace.Span, record: Record, start: float, seconds: float, attributes: dict[str, Any]) -> trace.Span:
    """Make a span that began so many seconds after its request, and lasted so long."""
    at = record.began_ns + int(start * 1e9)
    span = _TRACER.start_span(name, trace.set_span_in_context(below), start_time=at, attributes=attributes)
    span.end(at + int(seconds * 1e9))
    return span
