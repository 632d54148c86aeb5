"""What TensorRT-RTX compiles for a card when an engine first runs there, kept for the processes to come.

In: a bundle, the folder of its engines. Out: a file in the user's cache. It is the library's own cache: what was compiled for another card,
driver or version is refused by it, and compiled again.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from ..aside import file_aside, remove_abandoned

_LOG = logging.getLogger(__name__)


class Compiled:
    """One cache of all engines of a folder. It goes without where the file cannot be read or written."""

    def __init__(self, bundle: str, folder: str) -> None:
        """bundle: its SHA-256; folder: the name of that of its engines."""
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "musiclm-deploy"
        self.path = root / f"{bundle[:16]}-{folder}.cache"
        self._cache: Any = None
        self._before = b""

    def set_in(self, config: Any) -> None:
        """Let a context of this IRuntimeConfig take and leave there what it compiles."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            try:
                self._before = self.path.read_bytes() if self.path.is_file() else b""
            except OSError as error:
                _LOG.warning("%s cannot be read, what TensorRT-RTX compiles is compiled again: %s", self.path, error)
            if self._before and not self._cache.deserialize(self._before):
                _LOG.info("%s is of another card, driver or version: it is made anew.", self.path)
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write what was compiled since, aside and renamed."""
        data = bytes(self._cache.serialize()) if self._cache is not None else self._before
        if data == self._before:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(self.path.parent)
            with file_aside(self.path) as file:
                file.write(data)
            self._before = data
        except OSError as error:
            _LOG.warning("%s cannot be written, the next start compiles again: %s", self.path, error)
