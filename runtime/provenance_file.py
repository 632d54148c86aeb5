"""The record in a sound file: reading it, checking it, and describing it in words.

In: a file of any program. Out: a record that `runtime.provenance` can repeat, or a ValueError that says why there is none.
"""

from __future__ import annotations

import json
import os
import shlex
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from .. import __version__
from .arguments import MOST_ITEMS
from .audio import check_readable, reason_of
from .bundle import STAGES
from .config import GenerationConfig
from .provenance import VERSION, VERSION_FIELD, shown
from .sampling import SamplingConfig
from .user_files import expanded
from .windows import Window

_MOST_LIST_BYTES = 1 << 20  # longer RIFF lists are skipped; our comments are far shorter
_FIELDS: dict[str, Any] = {
    **dict.fromkeys(("prompt", "stop", "bundle", "bundle_sha256", "device", "step", "audio_sha256"), str),
    **dict.fromkeys(("seed", "num_samples", "candidate", "best", "sample_rate"), int),
    **dict.fromkeys(("include_prime", "own_noise"), bool),
    **dict.fromkeys(("sampling", "windows", "precision", "versions"), dict),
    **dict.fromkeys(("prime", "tokens"), dict | None),
    **{
        "seconds": int | float | None,
        "normalize": int | float | None,
        "parts": list | None,
        "compat": str | None,
        "max_semantic_tokens": int | None,
    },
}


def read_record(path: str | os.PathLike) -> dict[str, Any]:
    """Read the record of a sound file. Raises ValueError for a file that has none, with the reason as far as it can be known."""
    import soundfile

    path = expanded(path)
    check_readable(path)
    try:
        with path.open("rb") as file:
            comment = _wav_comment(file)
        if comment is None:
            with soundfile.SoundFile(path) as file:
                comment = file.comment
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: not a sound file that can be read ({reason_of(error)})") from error
    try:
        record = json.loads(comment)
        version = record[VERSION_FIELD]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(
            f"{path} does not say how it was made: it is not from musiclm-deploy, or a program that changed it left the comment out."
        ) from None
    if version != VERSION:
        raise ValueError(f"{path} has a record of version {version!r}, this musiclm-deploy {__version__} reads version {VERSION}.")
    if wrong := [name for name, kinds in _FIELDS.items() if not isinstance(record.get(name, ...), kinds)]:
        raise ValueError(f"{path}: its record is damaged, in {', '.join(wrong)}.")
    try:
        _check_inside(record)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its record is damaged: {error!r}") from error
    return record


def describe_record(path: Path, record: Mapping[str, Any]) -> str:
    """Describe a file's record in lines, each ended by a newline."""
    loudness = "" if record["normalize"] is None else f", normalized to {record['normalize']:g} LUFS"
    length = "without end" if record["seconds"] is None else f"{record['seconds']:g} s"
    lines = [f"{path}: {length} asked for, at {record['sample_rate']} Hz{loudness}"]
    for part in record["parts"] or [{"text": record["prompt"], "weight": 1.0}]:
        weight = "" if part["weight"] == 1 else f", weight {part['weight']:g}"
        lines.append(f"  prompt    {shown(part['sound']) if 'sound' in part else repr(part['text'])}{weight}")
    if record["prime"]:
        lines.append(f"  prime     {shown(record['prime'])}, {'in the file' if record['include_prime'] else 'left out'}")
    if record["tokens"]:
        lines.append(f"  tokens    {shown(record['tokens'])}")
    best = ", the best by MuLaN" if record["candidate"] == record["best"] and record["num_samples"] > 1 else ""
    lines.append(f"  seed      {record['seed']}{', noise of the caller' if record['own_noise'] else ''}")
    lines.append(f"  candidate {record['candidate'] + 1} of {record['num_samples']}{best}")
    for stage, values in record["sampling"].items():
        named = ", ".join(f"{name} {value:g}" for name, value in values.items() if value is not None)
        window = record["windows"].get(stage)
        asked = "" if window is None else ", window " + ", ".join(f"{name} {value}" for name, value in window.items() if value is not None)
        lines.append(f"  {stage:9} {named}{asked}")
    limits = {"stop": record["stop"], "compat": record["compat"], "plan": record.get("plan"), "at most": record["max_semantic_tokens"]}
    named = [f"{name} {value!s:.99}" for name, value in limits.items() if value is not None]
    lines.append(f"  length    {', '.join(named)}{' semantic tokens' if limits['at most'] is not None else ''}")
    made_by = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    types = ", ".join(f"{stage} {kind}" for stage, kind in record["precision"].items())
    lines.append(f"  made by   {made_by}")
    lines.append(f"  made on   {record['device']}, steps {record['step']}; {types}")
    lines.append(f"  bundle    {record['bundle']}, SHA-256 {record['bundle_sha256']}")
    lines.append(f"  samples   SHA-256 {record['audio_sha256']}, as generated")
    given = [f"{option} FILE" for option, used in _given(record) if used]
    lines.append(f"repeat it: {' '.join(['musiclm generate BUNDLE --again', shlex.quote(str(path)), *given])}")
    return "".join(f"{_printable(line)}\n" for line in lines)


def _given(record: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Return the options that give what the file does not hold, and for each whether the request had it."""
    sounds = {part["sound"]["sha256"] for part in record["parts"] or () if "sound" in part}
    prime = record["prime"]
    return [
        ("--prime", prime is not None),
        ("--audio", bool(sounds - {prime and prime["sha256"]})),
        ("--tokens", record["tokens"] is not None),
    ]


def _printable(line: str) -> str:
    """Replace characters that a terminal would obey: a file may come from a stranger."""
    return "".join(character if character.isprintable() else "?" for character in line)


def _check_inside(record: dict[str, Any]) -> None:
    """Raise an error, of any kind, if a field that `generate_arguments` or `describe_record` reads is wrong inside."""
    for made, stages in ((SamplingConfig, record["sampling"]), (Window, record["windows"])):
        for values in stages.values():
            made(**values)
    GenerationConfig(**{name: record[name] for name in ("plan", "first_window_s", "window_growth") if name in record})
    for stage in STAGES:
        _ = record["sampling"][stage], record["precision"][stage] + ""
    for part in record["parts"] or ():
        _ = shown(part["sound"]) if "sound" in part else part["text"] + "", float(part["weight"])
    for given in ("prime", "tokens"):
        shown(record[given])
    if not 0 <= record["candidate"] < record["num_samples"] <= MOST_ITEMS:
        raise ValueError(f"candidate {record['candidate']} of {record['num_samples']}")


def _wav_comment(file: BinaryIO) -> str | None:
    """Return the whole comment of a wav, of which libsndfile reads the first 2 kB only; None for another kind of file."""
    if file.read(12)[:4] != b"RIFF":
        return None
    while len(header := file.read(8)) == 8:
        kind, size = struct.unpack("<4sI", header)
        if kind != b"LIST" or size > _MOST_LIST_BYTES:
            file.seek(size + size % 2, 1)
            continue
        entries, at = file.read(size + size % 2), 4
        while entries[:4] == b"INFO" and at + 8 <= len(entries):
            name, length = struct.unpack_from("<4sI", entries, at)
            if name == b"ICMT":
                return entries[at + 8 : at + 8 + length].rstrip(b"\0").decode(errors="replace")
            at += 8 + length + length % 2
    return ""
