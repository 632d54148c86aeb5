"""Parsers of options' values, with their checks: numbers, numbers by stage, windows, a file of settings."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

RANDOM = "random"


def count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,5}", text):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def seed(text: str) -> int | str:
    """Parse a whole number, or RANDOM, for which seeds are drawn when the number of prompts is known."""
    if text == RANDOM:
        return RANDOM
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a whole number, or random, got {text!r}") from error


def stage_value(text: str) -> tuple[str, float]:
    stage, _, value = text.rpartition("=")
    try:
        return stage, float(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a number, or STAGE=number, got {text!r}") from error


def stage_window(text: str) -> tuple[str, tuple[int | None, int | None]]:
    match = re.fullmatch(r"(\w+)=(\d{1,9})?(?::(\d{1,9}))?", text)
    if match is None or match[2] is match[3] is None:
        raise argparse.ArgumentTypeError(f"expected STAGE=LENGTH:OVERLAP, STAGE=LENGTH or STAGE=:OVERLAP, whole numbers, got {text!r}")
    length, overlap = (None if number is None else int(number) for number in match.group(2, 3))
    return match[1], (length, overlap)


def read_config(path: Path | None) -> dict[str, Any]:
    from ..export.errors import ExportError
    from ..runtime.user_files import expanded, read_text

    if path is None:
        return {}
    try:
        config = json.loads(read_text(expanded(path), f"--config {path}"))
    except OSError as error:
        raise ExportError(f"--config {path} cannot be read: {error.strerror}.") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ExportError(f"--config {path}: {error}") from error
    except ValueError as error:
        raise ExportError(str(error)) from error
    if not isinstance(config, dict):
        raise ExportError(f"--config {path}: expected a JSON object, got {type(config).__name__}.")
    return config
