"""What every interface does with a request once it is read: a job, and its answer."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response

from .. import asked as asking
from .. import bodies
from ..answers import EventAnswer, Gone, SoundAnswer, until_settled
from ..errors import Refusal
from ..formats import FORMATS_SERVED, Format, whole_file
from ..jobs import Asked, Job
from ..runner import refusing
from ..state import Server, owner_of, record_of, server_of

SOUNDS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the sound",
        "content": {
            **{form.media_type: {"schema": {"type": "string", "format": "binary"}} for form in FORMATS_SERVED.values()},
            "text/event-stream": {"schema": {}},
        },
    }
}
REPEAT = "idempotency-key"


async def ask(request: Request, body: bodies.Ours, model: str | None, prompt: Any, live: bool) -> tuple[Server, Asked]:
    """Return what a body asks, once the model has seen that it can be made. Raises Refusal."""
    server = server_of(request)
    bundle = server.models.bundle(model)
    with refusing():
        name, settings = model or server.models.default, server.settings
        asked = asking.make_asked(body, name, prompt, bundle, settings.limits, settings.deadline_s(name), live)
    await server.runner.check(asked)
    return server, asked


def add_job(request: Request, server: Server, asked: Asked, body: bodies.Ours) -> tuple[Job, bool]:
    """Return the job of a request, and whether it is new; a repeated request finds the first one's."""
    job, new = server.jobs.add(owner_of(request), asked, request.headers.get(REPEAT), body.model_dump())
    record_of(request.scope).note(job=job.id, model=asked.model)
    return job, new


async def play(
    request: Request, body: bodies.Ours, model: str | None, prompt: Any, form: Format, events: bool = False, kbps: int | None = None
) -> Response:
    """Answer with a sound while it is made."""
    if body.num_samples > 1:
        raise Refusal(
            400, "a stream is one clip: ask for one candidate, or for the whole sound (stream=false).", "num_samples", "invalid_value"
        )
    server, asked = await ask(request, body, model, prompt, live=True)
    job, new = add_job(request, server, asked, body)
    if not new:
        return replay(server, job, form, body.sample_rate, events)
    kind = EventAnswer if events else SoundAnswer
    return kind(lambda: server.runner.play(job), form, headers_of(server, job), server.settings.limits, body.sample_rate, kbps)


def replay(
    server: Server, job: Job, form: Format, rate: int | None, events: bool = False, start_s: float = 0.0, candidate: int | None = None
) -> Response:
    """Answer with the sound of a job that ended or was cut off, from a second on; what it lacks is made."""
    if job.result is None or job.state == "running":
        told = "it has not ended" if job.error is None else job.error.message
        raise Refusal(409, f"job {job.id} has no sound yet: {told}.", "id", "job_not_ready", retry_s=2 if job.error is None else None)
    kind = EventAnswer if events else SoundAnswer
    index = job.result.best if candidate is None else candidate
    return kind(lambda: server.runner.play(job, index, start_s), form, headers_of(server, job), server.settings.limits, rate)


async def collect(
    request: Request,
    body: bodies.Ours,
    model: str | None,
    prompt: Any,
    form: Format,
    kbps: int | None = None,
    normalize: float | None = None,
) -> Response:
    """Answer with a whole sound."""
    server, asked = await ask(request, body, model, prompt, live=False)
    job, new = add_job(request, server, asked, body)
    if new:
        job.wants_music = True
        server.runner.queue(job)
    try:
        await until_settled(job, request.receive)
    except Gone:
        record_of(request.scope).note(reason="cancelled")
        return Response(status_code=499)
    record_of(request.scope).note_job(job)
    music, job.music = job.music, None
    if job.error is not None:
        raise job.error
    if music is None:
        return replay(server, job, form, body.sample_rate)
    try:
        data = whole_file(music, form, body.sample_rate, kbps, normalize)
    except ValueError as error:
        raise Refusal(400, str(error), "sample_rate", "invalid_value") from error
    rates = {"X-Sample-Rate": str(form.rate(body.sample_rate or music.sample_rate)), "X-Model-Sample-Rate": str(music.sample_rate)}
    assert job.result is not None
    more = {"X-PCM-SHA256": job.result.pcm_sha256 or "", "X-Best": str(job.result.best)}
    return Response(data, media_type=form.media_type, headers={**headers_of(server, job), **rates, **more})


def headers_of(server: Server, job: Job) -> dict[str, str]:
    """Return what every sound says of itself."""
    return {
        "X-Job-Id": job.id,
        "X-Seed": str(job.asked.arguments.get("seed", 0)),
        "X-Model": job.asked.model,
        "X-Bundle-SHA256": server.models.bundle(job.asked.model).sha256,
        "X-Accel-Buffering": "no",
        "Cache-Control": "no-store",
    }
