"""Files that one run of the tests makes once, in whichever of its processes asks first, and that all processes read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

FOLDER = "MUSICLM_TESTS_SHARED"  # environment variable that every process of a run inherits


def shared(name: str, make: Callable[[Path], object]) -> Path:
    """Return the path `name` of the run's folder, made by `make(path)` if no process has made it yet. Whoever asks meanwhile waits."""
    path = Path(os.environ[FOLDER]) / name
    with FileLock(path.with_name(f"{name}.lock")):
        if not path.exists():
            aside = path.with_name(f"{name}.partial")
            make(aside)
            aside.rename(path)
    return path
