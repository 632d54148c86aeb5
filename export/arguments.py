"""The arguments of the export in Python, checked before anything is read.

In: what a caller gives. Out: paths and plain containers, or an ExportError that says what was expected.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..runtime.arguments import number
from ..runtime.user_files import expanded
from .errors import ExportError
from .transformers import STAGES


def path_of(value: Any, name: str) -> Path:
    """Return a path. name: of the argument, for messages."""
    if isinstance(value, str | os.PathLike) and os.fspath(value) != "":
        return expanded(value)
    live = hasattr(value, "state_dict") or isinstance(value, Mapping)
    advice = " Save it with torch.save first, or export a whole MusicLM with export_musiclm." if live else ""
    raise ExportError(f"{name} must be a path, got {type(value).__name__ if value != '' else 'an empty text'}.{advice}")


def sources_of(files: Mapping[str, Any], optional: Mapping[str, Any], quantizer: Any) -> dict[str, Path]:
    """Return the path of every checkpoint by the name that `collect` has for it. optional: None for what was not given."""
    sources = {name: path_of(file, name) for name, file in files.items()}
    sources |= {name: path_of(file, name) for name, file in optional.items() if file is not None}
    quantizers = quantizer if isinstance(quantizer, Mapping) else {"": quantizer}
    for stage, file in quantizers.items():
        if stage not in ("", *STAGES):
            raise ExportError(f"quantizer of {stage!r}: the stages that have one are {', '.join(STAGES)}.")
        name = f"quantizer.{stage}" if stage else "quantizer"
        sources[name] = path_of(file, name)
    return sources


def overrides_of(config: Any) -> dict[str, Any]:
    """Return the overrides of each part, whose own values `collect` checks."""
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        advice = " Read the file with json.load first." if isinstance(config, str | os.PathLike) else ""
        raise ExportError(
            f"config must be a dict of parts, as in {{'semantic': {{'max_length': 250}}}}, got {type(config).__name__}.{advice}"
        )
    return {part: _plain(values) for part, values in config.items()}


def _plain(value: Any) -> Any:
    """Return a value with numbers of numpy and PyTorch, at any depth, as Python's own."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value] if isinstance(value, list) else tuple(map(_plain, value))
    found = number(value)
    return value if found is None else found


def list_of(values: Any, name: str) -> list[Any]:
    """Return the items of a list; a text alone is none."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise ExportError(f"{name} must be a list, got {values!r}.")
    return list(values)
