"""Our own interface: everything that `generate` and `stream` can do, and jobs that are made in the background."""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request, Response
from pydantic import TypeAdapter, ValidationError

from .. import bodies
from ..errors import Refusal
from ..formats import FORMATS_SERVED
from ..state import owner_of, record_of, server_of
from ..tracing import end_trace
from .common import SOUNDS, add_job, ask, collect, play, replay

T = TypeVar("T", bound=bodies.JobBody)
router = APIRouter(tags=["musiclm"])
_JSON = "application/json"
_FORM = "multipart/form-data"
_UPLOADED = ("audio", "prime")


def _described(body: type[bodies.JobBody]) -> dict[str, Any]:
    """Return what the interface's description says of a body that is JSON, or JSON and uploads."""
    schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    fields = {
        "request": {"type": "string", "description": "the JSON"},
        **{name: {"type": "string", "format": "binary"} for name in _UPLOADED},
    }
    form = {"type": "object", "required": ["request"], "properties": fields, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {_JSON: {"schema": schema}, _FORM: {"schema": form}}}}


def definitions() -> dict[str, Any]:
    """Return what the bodies described here refer to, for the components of the interface's description."""
    return bodies.Generation.model_json_schema(ref_template="#/components/schemas/{model}")["$defs"]


async def _read(request: Request, body: type[T]) -> T:
    """Return a body of JSON, or of a form whose field `request` is the JSON and whose files are sounds. Raises Refusal (400)."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (_JSON, _FORM):
        raise Refusal(415, f"the body must be {_JSON} or {_FORM}, got {kind or 'no content type'}.", code="unsupported_media_type")
    import base64

    try:
        if kind == _JSON:
            fields = json.loads(await request.body())
        else:
            async with request.form(max_files=len(_UPLOADED), max_fields=1) as form:
                if unknown := [name for name in form if name not in ("request", *_UPLOADED)]:
                    raise Refusal(
                        400, f"unknown field {unknown[0]!r}: a form has request, {' and '.join(_UPLOADED)}.", unknown[0], "unknown_field"
                    )
                fields = json.loads(str(form.get("request", "")))
                for name in _UPLOADED:
                    if (upload := form.get(name)) is not None and isinstance(fields, dict):
                        data = upload.encode() if isinstance(upload, str) else await upload.read()
                        fields[name] = {"data": base64.b64encode(data).decode()}
        return TypeAdapter(body).validate_python(fields)
    except ValidationError:
        raise
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON: {error}", code="invalid_json") from None


@router.post("/v1/audio/generations", responses=SOUNDS, response_class=Response, openapi_extra=_described(bodies.Generation))
async def generate(request: Request) -> Response:
    """Make music: a sound while it is made, or with `stream: false` a whole file."""
    body = await _read(request, bodies.Generation)
    form = FORMATS_SERVED[body.response_format]
    if not body.stream:
        return await collect(request, body, body.model, body.prompt, form, normalize=body.normalize)
    if body.normalize is not None:
        raise Refusal(400, "the loudness of a stream is not known before its end: leave out normalize, or say stream=false.", "normalize")
    return await play(request, body, body.model, body.prompt, form, body.stream_format == "sse")


@router.post("/v1/jobs", status_code=202, openapi_extra=_described(bodies.JobBody))
async def create(request: Request) -> dict[str, Any]:
    """Have music made in the background."""
    body = await _read(request, bodies.JobBody)
    server, asked = await ask(request, body, body.model, body.prompt, live=False)
    job, new = add_job(request, server, asked, body)
    if new:
        record = record_of(request.scope).follow(job)

        def ended() -> None:
            record.note_job(job)
            end_trace(record)
            record.log()

        job.on_settled = ended
        server.runner.queue(job)
    return job.record(server.runner.position(job))


@router.get("/v1/jobs")
async def jobs(request: Request) -> dict[str, Any]:
    """List the jobs of this key."""
    server, owner = server_of(request), owner_of(request)
    return {"object": "list", "data": [job.record(server.runner.position(job)) for job in server.jobs if job.owner == owner]}


@router.get("/v1/jobs/{job_id}")
async def job_state(request: Request, job_id: str) -> dict[str, Any]:
    """Say how far a job is."""
    server = server_of(request)
    job = server.jobs.get(owner_of(request), job_id)
    return job.record(server.runner.position(job))


@router.delete("/v1/jobs/{job_id}", status_code=204, response_class=Response)
async def delete(request: Request, job_id: str) -> Response:
    """Cancel a job, and forget it. A job that is not there is forgotten already."""
    server = server_of(request)
    try:
        job = server.jobs.get(owner_of(request), job_id)
    except Refusal:
        return Response(status_code=204)
    job.cancel()
    server.jobs.drop(job)
    return Response(status_code=204)


@router.get("/v1/jobs/{job_id}/audio", responses=SOUNDS, response_class=Response)
async def audio(
    request: Request,
    job_id: str,
    start_s: Annotated[float, Query(ge=0, lt=1e6, description="second of the clip with which the sound begins")] = 0.0,
    start_sample: Annotated[int | None, Query(ge=0, lt=2**40, description="the same in samples of the model's rate")] = None,
    candidate: Annotated[int | None, Query(ge=0, lt=1024)] = None,
    response_format: bodies.FormatName = "wav",
    sample_rate: Annotated[int | None, Query(ge=8000, le=192_000)] = None,
    stream_format: bodies.StreamFormat = "audio",
) -> Response:
    """Play a job that has ended, or go on with a stream that was cut off, from a second or a sample on."""
    server = server_of(request)
    job = server.jobs.get(owner_of(request), job_id)
    if start_sample is not None:
        start_s = start_sample / server.models.bundle(job.asked.model).manifest.codec.sample_hz
    if start_s >= job.asked.seconds:
        raise Refusal(416, f"the clip has {job.asked.seconds:g} s, got a start at {start_s:g} s.", "start_s", "beyond_end")
    if job.result is not None and candidate is not None and candidate >= len(job.result.candidates):
        raise Refusal(400, f"the job has {len(job.result.candidates)} candidates, got {candidate}.", "candidate", "invalid_value")
    return replay(server, job, FORMATS_SERVED[response_format], sample_rate, stream_format == "sse", start_s, candidate)
