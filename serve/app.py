"""The application: routes, who may ask, and how refusals are answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from .. import __version__
from . import bodies
from .errors import Refusal, stopping
from .limits import Gate, refused
from .records import is_quiet
from .routes import elevenlabs, generations, live, openai, page, status
from .settings import Settings
from .state import Server, request_id

REFUSALS = (400, 401, 404, 405, 408, 409, 413, 415, 416, 422, 429, 500, 503, 504)


def create_app(settings: Settings) -> FastAPI:
    """Return the ASGI application of a server. Raises BundleError for a damaged bundle."""
    server = Server.make(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with server.models.use(None):  # a request does not wait for the default model
            pass
        try:
            yield
        finally:
            await server.live.end_all(stopping())
            await server.runner.drain(0.0)
            await server.models.close()

    app = FastAPI(
        title="musiclm-deploy",
        version=__version__,
        description="Music from text, while it is made.",
        lifespan=lifespan,
        telemetry={"exclude": lambda scope: is_quiet(scope["path"])},
    )
    app.state.server = server
    for router in (generations.router, openai.router, elevenlabs.router, live.router, status.router):
        app.include_router(router, responses=refusals(bodies.RefusedMusic if router is elevenlabs.router else bodies.Refused))
    app.include_router(page.router)
    described = app.openapi

    def openapi() -> dict[str, Any]:
        schema = described()
        schema["components"]["schemas"] |= generations.definitions()
        return schema

    app.openapi = openapi
    app.add_middleware(Gate, settings=settings)
    if settings.origins:  # around the gate: a page may read why it was refused
        exposed = ["X-Request-Id", "X-Job-Id", "X-Sample-Rate", "X-Seed", "Retry-After"]
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.origins), allow_methods=["*"], allow_headers=["*"], expose_headers=exposed
        )

    @app.exception_handler(Refusal)
    async def on_refusal(request: Request, error: Refusal) -> Response:
        return refused(error, request.scope, request_id(request.scope))

    @app.exception_handler(ValidationError)
    @app.exception_handler(RequestValidationError)
    async def on_fields(request: Request, error: ValidationError | RequestValidationError) -> Response:
        return await on_refusal(request, bodies.refusal_of(error))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        answer = await on_refusal(request, Refusal(error.status_code, str(error.detail)))
        answer.headers.update(error.headers or {})
        if error.status_code == 405:  # of all routes of this path, not of the first alone
            methods = [route.methods or () for route in app.routes if isinstance(route, Route) and route.path_regex.match(request.url.path)]
            answer.headers["Allow"] = ", ".join(sorted(set().union(*methods)))
        return answer

    @app.exception_handler(ClientDisconnect)
    async def on_gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # its body was cut off; nobody reads this

    return app


def refusals(form: type) -> dict[int | str, dict[str, Any]]:
    """Return the refusals that every route may answer with, for the interface's description."""
    return {status: {"model": form, "description": HTTPStatus(status).phrase} for status in REFUSALS}
