"""The page at `/`: an instrument for people, made of the files in serve/page.

In: the name of a file. Out: its bytes, with headers that forbid whatever the page does not need. The names are those that the folder had
when it was first read: no path of a request reaches the file system. The files tell nothing of the server, so they need no key.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response

from ..errors import Refusal

router = APIRouter(include_in_schema=False)
PAGE = Path(__file__).resolve().parent.parent / "page"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' blob: data:",
        "media-src 'self' blob:",
        "worker-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


@dataclass(frozen=True)
class PageFile:
    """A file of the page."""

    data: bytes
    headers: dict[str, str]


@cache
def page_files() -> dict[str, PageFile]:
    """Read the page's files, by name."""
    files = {}
    for path in sorted(PAGE.iterdir()):
        if path.suffix in MEDIA_TYPES:
            data = path.read_bytes()
            headers = {
                "Content-Type": f"{MEDIA_TYPES[path.suffix]}; charset=utf-8",
                "ETag": f'"{hashlib.sha256(data).hexdigest()[:32]}"',
                "Cache-Control": "no-cache",  # kept, and asked for again with the ETag: a new version is seen at once
                "Content-Security-Policy": POLICY,
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
            }
            files[path.name] = PageFile(data, headers)
    return files


@router.api_route("/", methods=["GET", "HEAD"])
async def index(request: Request) -> Response:
    """Send the page."""
    return _answer(request, "index.html")


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
async def file(request: Request, name: str) -> Response:
    """Send a file of the page. Raises Refusal (404) for a name that is not one of them."""
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    found = page_files().get(name)
    if found is None:
        raise Refusal(404, f"the page has no file {name!r}.", "name")
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if found.headers["ETag"] in known or "*" in known:
        return Response(status_code=304, headers=found.headers)
    return Response(found.data, headers=found.headers)
