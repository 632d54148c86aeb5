"""Prompts from an argument, from standard input, or from a file that lists them.

In: TEXT and --prompts as they were given. Out: texts with their seeds, or a ValueError that names the file and the line.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..runtime.user_files import LINE_ENDS, decode_text, expanded

STANDARD_INPUT = "-"
_FIELDS = ("text", "seed")


@dataclass(frozen=True)
class Listed:
    """A prompt as it was given, alone or in a list."""

    text: str | None  # None where a sound alone is the prompt
    seed: int | None = None  # None takes the seed of the whole request


def read_text(text: str | None) -> str | None:
    """Return the prompt that TEXT stands for: "-" is all of standard input. Raises ValueError for "@file", which other programs read."""
    if text is not None and text.startswith("@"):
        raise ValueError(
            f"TEXT {text!r} begins with @, which reads no file here. Give a file of prompts as --prompts {text[1:] or 'FILE'}, "
            "and a prompt that does begin with @ by standard input, with - as TEXT."
        )
    if text != STANDARD_INPUT:
        return text
    found = " ".join(decode_text(_standard_input(), "standard input").split())
    if not found:
        raise ValueError("standard input holds no prompt: pipe a text into it.")
    return found


def read_prompts(name: str) -> list[Listed]:
    """Read the prompts of a file, or of standard input if its name is "-".

    A line is a prompt. Empty lines, and lines that begin with #, are left out. If the first of the others begins with {, each is a JSON
    object with "text" and, if the prompt has its own, "seed". Raises ValueError, which names the line that cannot be used.
    """
    where = "standard input" if name == STANDARD_INPUT else f"--prompts {name}"
    try:
        data = _standard_input() if name == STANDARD_INPUT else expanded(name).read_bytes()
    except OSError as error:
        raise ValueError(f"{where} cannot be read: {error.strerror}.") from error
    lines = enumerate(LINE_ENDS.split(decode_text(data, where)), start=1)
    kept = [(number, line.strip()) for number, line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not kept:
        raise ValueError(f"{where} holds no prompt: write one on each line.")
    if kept[0][1].startswith("[") and _is_json(" ".join(line for _, line in kept)):
        raise ValueError(f'{where}: a list in JSON. Write one object on each line, without brackets around them: {{"text": "calm piano"}}.')
    if kept[0][1].startswith("{"):
        return [_parse(line, f"{where}, line {number}") for number, line in kept]
    return [Listed(line) for _, line in kept]


def seeds_of(prompts: Sequence[Listed], seed: int | str) -> list[int]:
    """Return each prompt's seed: its own, else `seed`; for RANDOM one drawn for this prompt, of 32 bits, which are quick to type."""
    own = [prompt.seed if prompt.seed is not None else seed for prompt in prompts]
    return [secrets.randbits(32) if isinstance(number, str) else number for number in own]


def batches_of(request: dict[str, Any], estimate: Callable[..., Any]) -> tuple[list[dict[str, Any]], float, str]:
    """Split a request into parts of as many prompts as memory holds: (the parts, seconds in all, what they take in words).

    request: arguments of `MusicLM.generate`, with lists as text (or None) and seed. estimate: `MusicLM.estimate`. Raises MemoryError if
    one prompt does not fit.
    """
    count = size = len(request["seed"])
    lists = [name for name in ("text", "seed") if request[name] is not None]
    while True:
        parts = [request | {name: request[name][at : at + size] for name in lists} for at in range(0, count, size)]
        try:
            found = estimate(**parts[0])
        except MemoryError:
            if size == 1:
                raise
            size = -(-size // 2)
            continue
        seconds, each = (0.0, "a few seconds") if found is None else (found.total * count / size, str(found))
        return parts, seconds, each if len(parts) == 1 else f"{len(parts)} batches of {size} prompts, as memory allows, each {each}"


def _standard_input() -> bytes:
    if sys.stdin is None:  # closed by the caller
        raise ValueError("standard input is closed: pipe a text into it.")
    return sys.stdin.buffer.read()


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _parse(line: str, where: str) -> Listed:
    try:
        values: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{where}: not a JSON object, as the first line is: {error}. Write {{"text": "calm piano"}}.') from error
    if not isinstance(values, dict) or not isinstance(values.get("text"), str) or not values["text"].strip():
        raise ValueError(f'{where}: expected an object with a "text" that is not empty, got {line[:60]!r}.')
    if unknown := [name for name in values if name not in _FIELDS]:
        raise ValueError(f"{where}: unknown field {', '.join(map(repr, unknown))}; known are {' and '.join(_FIELDS)}.")
    seed = values.get("seed")
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**64):
        raise ValueError(f"{where}: seed must be a whole number from 0 to 2**64 - 1, got {seed!r}.")
    return Listed(values["text"], seed)
