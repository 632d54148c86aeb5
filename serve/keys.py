"""Who asks: keys compared in constant time, from `Authorization: Bearer` or `xi-api-key`."""

from __future__ import annotations

import hmac
import logging
import stat
from collections.abc import Mapping
from pathlib import Path

from .errors import Refusal

_LOG = logging.getLogger(__name__)
ANYONE = "anyone"
_LEAST = 16  # characters of a key
OPEN_PATHS = ("/health", "/ready", "/")  # which tell nothing, and are asked by what starts and stops servers, and by browsers
OPEN_FOLDER = "/page/"  # of the page's files


def read_keys(path: Path) -> dict[str, str]:
    """Return the keys of a file, key -> name: a line each, `name: key`, empty lines and those that begin with # left out.

    Warns of a file that other users of this machine can read.

    Raises ValueError for a line of another form, a short key, and one that stands twice.
    """
    keys: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, key = (part.strip() for part in line.partition(":"))
        if not colon or not name or len(key) < _LEAST or not key.isascii():
            raise ValueError(f"{path}, line {number}: a line is `name: key` with a key of at least {_LEAST} ASCII characters.")
        if key in keys or name in keys.values():
            raise ValueError(f"{path}, line {number}: this key, or the name {name!r}, stands there already.")
        keys[key] = name
    if not keys:
        raise ValueError(f"{path} holds no key: write `name: key` a line each.")
    if path.is_file() and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        _LOG.warning("%s can be read by other users of this machine: chmod 600 %s.", path, path)
    return keys


def is_open(path: str) -> bool:
    """Return whether a path is answered without a key."""
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)


def name_of(headers: Mapping[str, str], keys: Mapping[str, str]) -> str:
    """Return whose request this is. Raises Refusal (401) for a key that is missing or wrong, where keys are needed."""
    if not keys:
        return ANYONE
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    given = headers.get("xi-api-key") or (bearer.strip() if scheme.lower() == "bearer" else "")
    found = None
    for key, name in keys.items():  # all of them, so that the time does not tell how far a guess got
        if hmac.compare_digest(key.encode(), given.encode("utf-8", "surrogateescape")):
            found = name
    if found is None:
        told = "this key is not known" if given else "a key is needed"
        raise Refusal(401, f"{told}: send `Authorization: Bearer KEY` or `xi-api-key: KEY`.", code="invalid_api_key", challenge=True)
    return found
