"""The parts of a running server that its routes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from fastapi import Request

from .jobs import Jobs
from .keys import name_of
from .live.sessions import Sessions
from .metrics import Metrics
from .models import Models
from .records import Record
from .runner import Runner
from .settings import Settings


@dataclass
class Server:
    """One server."""

    settings: Settings
    models: Models
    jobs: Jobs
    metrics: Metrics
    runner: Runner
    live: Sessions

    @staticmethod
    def make(settings: Settings) -> Server:
        """Return a server of these settings. Raises BundleError for a damaged bundle."""
        models, jobs = Models(settings), Jobs(settings.limits)
        metrics = Metrics(models)
        live = Sessions(settings.limits)
        return Server(settings, models, jobs, metrics, Runner(models, jobs, settings.limits, metrics), live)


def server_of(request: Request) -> Server:
    """Return the server that a request came to."""
    return cast(Server, request.app.state.server)


def owner_of(request: Request) -> str:
    """Return whose key a request came with."""
    return name_of(request.headers, server_of(request).settings.keys)


def request_id(scope: Any) -> str:
    """Return the id of a request."""
    return scope.get("state", {}).get("request_id", "")


def record_of(scope: Any) -> Record:
    """Return what is known of a request so far."""
    return scope["state"]["record"]
