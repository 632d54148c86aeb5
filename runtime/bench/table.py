"""Rows of benchmarks as tables: the same columns on a terminal and in Markdown.

In: rows (`record`). Out: text. Of rows that time the same thing the last one counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .record import Row

Column = tuple[str, Callable[[Row], Any]]


@dataclass(frozen=True)
class Section:
    """title: of the table; kind: of its rows (`benchmark`); key: the fields that say what a row times."""

    title: str
    kind: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]


def number(name: str, pattern: str = "{:.4g}") -> Callable[[Row], str]:
    return lambda row: "–" if row.get(name) is None else pattern.format(row[name])


def field(name: str) -> Callable[[Row], str]:
    return lambda row: str(row.get(name, "–"))


def share(stage: str) -> Callable[[Row], str]:
    return lambda row: f"{row['share'][stage]:.0%}"


MODEL: tuple[Column, ...] = (("dim × depth", lambda row: f"{row['dim']} × {row['depth']}"), ("precision", field("precision")))
_TAILS: tuple[Column, ...] = (
    ("median ms", number("median_ms")),
    ("quarters ms", lambda row: f"{row['p25_ms']:.4g}–{row['p75_ms']:.4g}"),
    ("p95 ms", number("p95_ms")),
    ("p99 ms", number("p99_ms")),
)
SIZE = ("dim", "depth", "precision")

SECTIONS = (
    Section(
        "One step: tokens of every row in, logits out",
        "step",
        (*SIZE, "stage", "rows", "context", "form"),
        (
            *MODEL,
            *(("stage", field("stage")), ("rows", field("rows")), ("context", field("context")), ("form", field("form"))),
            *(("MB read", number("mb_read")), ("GB/s", number("gb_per_s")), ("ceiling ms", number("ceiling_ms"))),
            *_TAILS,
            *(("of the ceiling", number("ceiling_share", "{:.0%}")), ("logits differ", number("logits_differ_by", "{:.0e}"))),
        ),
    ),
    Section(
        "Whole clips",
        "clip",
        (*SIZE, "form", "seconds", "cond_scale", "fine_window", "steps"),
        (
            *MODEL,
            *(("steps", field("steps")), ("clips", field("form")), ("s each", field("seconds")), ("guidance", field("cond_scale"))),
            ("fine window", field("fine_window")),
            *(("real-time factor (made)", number("real_time_factor_made")), ("real-time factor (kept)", number("real_time_factor_kept"))),
            *_TAILS[:2],
            *((stage, share(stage)) for stage in ("semantic", "coarse", "fine", "codec")),
            ("codec s per s", number("codec_s_per_s")),
        ),
    ),
    Section(
        "One client that listens",
        "stream",
        (*SIZE, "steps", "form", "seconds", "cond_scale", "fine_window"),
        (
            *MODEL,
            *(("steps", field("steps")), ("plan", field("form")), ("clip s", field("seconds")), ("first audio ms", number("median_ms"))),
            *(("quarters ms", _TAILS[1][1]), ("gap p50", number("gap_p50")), ("p95", number("gap_p95")), ("p99", number("gap_p99"))),
            *(("underruns", field("underruns")), ("underruns of a player", field("underruns_played"))),
            ("real-time factor", number("real_time_factor_made")),
        ),
    ),
    Section(
        "Clients at once",
        "clients",
        (*SIZE, "steps", "form", "clients", "seconds", "cond_scale", "fine_window"),
        (
            *MODEL,
            *(("steps", field("steps")), ("clips", field("form")), ("clients", field("clients")), ("clip s", field("seconds"))),
            *(("audio s per s", number("audio_s_per_s")), ("quarters", lambda row: f"{row['p25']:.4g}–{row['p75']:.4g}")),
        ),
    ),
    Section(
        "A step beyond the transformer, µs",
        "host",
        (*SIZE, "form", "rows"),
        (
            *MODEL,
            *(("clips", field("form")), ("at once", field("rows")), ("rows of a step", field("rows_of_a_step")), ("steps", field("n"))),
            *(("Python", number("python_us")), ("sampler", number("sampler_us")), ("both", number("host_us"))),
        ),
    ),
    Section(
        "Ratios, of cases that were timed turn about",
        "ratio",
        (*SIZE, "steps", "form"),
        (
            *MODEL,
            *(("steps", field("steps")), ("ratio of", field("form")), ("median", number("ratio", "{:.3g}"))),
            *(("quarters", lambda row: f"{row['ratio_p25']:.3g}–{row['ratio_p75']:.3g}"), ("pairs", field("n"))),
        ),
    ),
    Section(
        "From a fresh process",
        "start",
        (*SIZE, "steps", "form"),
        (*MODEL, ("steps", field("steps")), ("until", field("form")), *_TAILS[:2]),
    ),
    Section(
        "Memory of a process, MB",
        "memory",
        (*SIZE, "steps", "seconds"),
        (
            *MODEL,
            *(("clip s", field("seconds")), ("bundle's files", number("weights_mb", "{:.0f}"))),
            ("stated beside them", number("stated_mb")),
            *(("imported", number("imported_mb", "{:.0f}")), ("opened", number("opened_mb", "{:.0f}"))),
            ("peak of a clip", number("peak_mb", "{:.0f}")),
        ),
    ),
    Section(
        "Requests one after another in one process",
        "requests",
        (*SIZE, "steps", "seconds"),
        (
            *MODEL,
            *(("clip s", field("seconds")), ("requests", field("n"))),
            *_TAILS,
            ("second half over first", number("later_over_earlier")),
            *(("resident MB, first", number("resident_mb_first", "{:.0f}")), ("last", number("resident_mb_last", "{:.0f}"))),
        ),
    ),
)


def latest(rows: Sequence[Row], section: Section) -> list[Row]:
    """The rows of a section, of each key the last one, in the order of the keys' first appearance."""
    found: dict[tuple, Row] = {}
    for row in rows:
        if row["benchmark"] == section.kind:
            found[tuple(row.get(name) for name in section.key)] = row
    return list(found.values())


def cells(rows: Sequence[Row], section: Section) -> list[list[str]]:
    """A section as rows of text, the names of the columns first; empty where there is nothing to show."""
    shown = latest(rows, section)
    return [[name for name, _ in section.columns], *([value(row) for _, value in section.columns] for row in shown)] if shown else []


def as_text(rows: Sequence[Row], sections: Sequence[Section] = SECTIONS) -> str:
    """These sections for a terminal."""
    parts = []
    for section in sections:
        if table := cells(rows, section):
            widths = [max(map(len, column)) for column in zip(*table, strict=True)]
            lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
            parts.append("\n".join([section.title, *lines]))
    return "\n\n".join(parts)


def as_markdown(table: list[list[str]]) -> str:
    """Rows of text as a Markdown table, numbers and all aligned to the right."""
    head, *body = table
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["--:"] * len(head), *body))
