"""Why a request is refused, in the words of the interface that it came by.

In: a `Refusal` raised anywhere below a route. Out: a status, headers, and JSON of the form that the client's own library reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

MOST_RETRY_S = 120  # the official clients do not wait longer, whatever they are told


@dataclass(eq=False)
class Refusal(Exception):
    """A request that gets no music. status: of HTTP; message: what was got, what is possible, what to do; param: the field at fault."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_s: float | None = None  # after which the same request may be taken; None: never as it is
    challenge: bool = False  # whether a key is missing

    def __str__(self) -> str:
        return self.message

    @property
    def headers(self) -> dict[str, str]:
        """Return what tells a client whether to ask again."""
        headers = {"x-should-retry": "false" if self.retry_s is None else "true"}
        if self.retry_s is not None:
            headers["Retry-After"] = str(min(max(math.ceil(self.retry_s), 1), MOST_RETRY_S))
        if self.challenge:
            headers["WWW-Authenticate"] = "Bearer"
        return headers

    def answer(self, path: str, request_id: str) -> tuple[int, dict[str, Any]]:
        """Return the status and the JSON for a client of a path."""
        if path.startswith("/v1/music"):  # ElevenLabs', whose clients expect 422 for a field
            return 422 if self.status == 400 else self.status, {
                "detail": {"status": self.kind, "message": self.message, "param": self.param, "request_id": request_id}
            }
        fault = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code, "request_id": request_id}
        return self.status, {"error": fault}

    @property
    def kind(self) -> str:
        """The kind of error, in the words of OpenAI's interface."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        return kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")


def stopping() -> Refusal:
    """Return what is answered while the server is being stopped."""
    return Refusal(503, "this server is being stopped.", code="shutting_down", retry_s=5)
