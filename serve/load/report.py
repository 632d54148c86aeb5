"""What came of a load, as a row of a benchmark (`runtime.bench.record`) and as tables.

In: what each client got. Out: a row, which holds percentiles, counts and shares, and no client's own times.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...runtime.bench.record import Row
from ...runtime.bench.table import Column, Section, field, number
from .arrivals import PROMPTS, Load
from .clients import Got

SILENCES_S = (0.0, 0.1)  # silences longer than that are counted
_WANTED = ("done", "left")  # ends that are as planned

_WHERE: tuple[Column, ...] = (
    ("interface", field("interface")),
    *(("per s", number("rate")), ("for s", number("duration_s")), ("clip s", field("seconds")), ("formats", field("formats"))),
)
_KEY = ("url", "bundle", "interface", "rate", "duration_s", "seconds", "formats", "cancel", "slow", "retries", "seed", "date")
SECTIONS = (
    Section(
        "First audio and playing",
        "load",
        _KEY,
        (
            *_WHERE,
            *(("first audio ms: p50", number("first_p50_ms")), ("p95", number("first_p95_ms")), ("p99", number("first_p99_ms"))),
            *(("clips played", field("played")), ("with a silence", field("underruns")), ("> 100 ms", field("underruns_100ms"))),
            *(("longest ms", number("longest_silence_ms")), ("audio s per s", number("audio_s_per_s"))),
        ),
    ),
    Section(
        "Answers",
        "load",
        _KEY,
        (
            *(("requests", field("requests")), ("done", field("done")), ("left", field("left")), ("refused", field("refused"))),
            ("errors", lambda row: ", ".join(f"{kind} {count}" for kind, count in row["errors"].items()) or "0"),
            *(
                ("429s", field("answers_429")),
                ("came back", field("returned")),
                ("and were taken", number("returned_admitted_share", "{:.0%}")),
            ),
            *(("promised ms off: p50", number("promise_off_p50_ms")), ("p95", number("promise_off_p95_ms"))),
            ("sent late ms p99", number("late_p99_ms")),
        ),
    ),
)


def row_of(load: Load, got: Sequence[Got]) -> Row:
    """Return the row of a load."""
    firsts = [one.first_s for one in got if one.first_s is not None]
    silences = [one.longest_s for one in got if one.longest_s is not None]
    off = [one.first_s - one.promised_s for one in got if one.first_s is not None and one.promised_s is not None]
    ends = Counter(one.end for one in got)
    returned = sum(_returns(one) for one in got)
    taken = sum(one.admitted and bool(one.refusals) for one in got)
    wall = max((one.ended_s for one in got), default=0.0) - min((one.planned.at_s for one in got), default=0.0)
    row: Row = {
        "benchmark": "load",
        "url": load.url,
        "bundle": next((one.bundle[:12] for one in got if one.bundle), None),
        **{name: getattr(load, name) for name in ("interface", "model", "rate", "duration_s", "cancel", "slow", "retries", "seed")},
        "seconds": "-".join(f"{one:g}" for one in dict.fromkeys(load.seconds)),
        "formats": ",".join(load.formats),
        "requests": len(got),
        "done": ends["done"],
        "left": ends["left"],
        "refused": ends["refused"],
        "errors": {kind: count for kind, count in sorted(ends.items()) if kind not in (*_WANTED, "refused")},
        **_percentiles("first", firsts, (50, 95, 99)),
        "played": len(silences),
        "underruns": sum(one > SILENCES_S[0] for one in silences),
        "underruns_100ms": sum(one > SILENCES_S[1] for one in silences),
        "longest_silence_ms": _ms(max(silences, default=0.0)),
        "audio_s_per_s": round(sum(one.audio_s for one in got) / wall, 3) if wall > 0 else 0.0,
        "answers_429": sum(len(one.refusals) for one in got),
        "returned": returned,
        "returned_admitted_share": round(taken / returned, 4) if returned else None,
        **_percentiles("promise_off", off, (50, 95)),
        **_percentiles("late", [one.late_s for one in got], (99,)),
    }
    return row


def command_of(load: Load) -> str:
    """Return the command that repeats a load; a key is left out."""
    low, high = load.seconds
    options: list[Any] = ["--rate", f"{load.rate:g}", "--duration", f"{load.duration_s:g}", "--seconds", f"{low:g}:{high:g}"]
    options += ["--cancel", f"{load.cancel:g}", "--slow", f"{load.slow:g}", "--interface", load.interface, "--seed", load.seed]
    options += ["--retries", load.retries, "--timeout", f"{load.timeout_s:g}"]
    options += [part for form in load.formats for part in ("--format", form)]
    options += [part for prompt in load.prompts for part in ("--prompt", prompt)] if load.prompts != PROMPTS else []
    options += [] if load.model is None else ["--model", load.model]
    return shlex.join(["musiclm", "load", load.url, *map(str, options)])


def _returns(got: Got) -> int:
    """Return how often a client came back after the time that it was told."""
    return len(got.refusals) - (got.end == "refused")


def _percentiles(name: str, seconds: Sequence[float], points: Sequence[int]) -> Row:
    values = np.percentile(seconds, points) if seconds else [None] * len(points)
    return {f"{name}_p{point}_ms": None if value is None else _ms(value) for point, value in zip(points, values, strict=True)}


def _ms(seconds: float) -> float:
    return float(f"{seconds * 1e3:.4g}")
