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


def _number(field: str, pattern: str = "{:.4g}") -> Callable[[Row], str]:
    return lambda row: "–" if row.get(field) is None else pattern.format(row[field])


def _field(field: str) -> Callable[[Row], str]:
    return lambda row: str(row.get(field, "–"))


def _share(stage: str) -> Callable[[Row], str]:
    return lambda row: f"{row['share'][stage]:.0%}"


_MODEL: tuple[Column, ...] = (("dim × depth", lambda row: f"{row['dim']} × {row['depth']}"), ("precision", _field("precision")))
_TAILS: tuple[Column, ...] = (
    ("median ms", _number("median_ms")),
    ("quarters ms", lambda row: f"{row['p25_ms']:.4g}–{row['p75_ms']:.4g}"),
    ("p95 ms", _number("p95_ms")),
    ("p99 ms", _number("p99_ms")),
)
_SIZE = ("dim", "depth", "precision")

SECTIONS = (
    Section(
        "One step: tokens of every row in, logits out",
        "step",
        (*_SIZE, "stage", "rows", "context", "form"),
        (
            *_MODEL,
            *(("stage", _field("stage")), ("rows", _field("rows")), ("context", _field("context")), ("form", _field("form"))),
            *(("MB read", _number("mb_read")), ("GB/s", _number("gb_per_s")), ("ceiling ms", _number("ceiling_ms"))),
            *_TAILS,
            *(("of the ceiling", _number("ceiling_share", "{:.0%}")), ("logits differ", _number("logits_differ_by", "{:.0e}"))),
        ),
    ),
    Section(
        "Whole clips",
        "clip",
        (*_SIZE, "form", "seconds", "cond_scale", "steps"),
        (
            *_MODEL,
            *(("steps", _field("steps")), ("clips", _field("form")), ("s each", _field("seconds")), ("guidance", _field("cond_scale"))),
            *(("real-time factor", _number("real_time_factor")), ("of the music kept", _number("real_time_factor_of_music"))),
            *_TAILS[:2],
            *((stage, _share(stage)) for stage in ("semantic", "coarse", "fine", "codec")),
            ("codec s per s", _number("codec_s_per_s")),
        ),
    ),
    Section(
        "From a fresh process",
        "start",
        (*_SIZE, "steps", "form"),
        (*_MODEL, ("steps", _field("steps")), ("until", _field("form")), *_TAILS[:2]),
    ),
    Section(
        "Memory of a process, MB",
        "memory",
        (*_SIZE, "steps", "seconds"),
        (
            *_MODEL,
            *(("clip s", _field("seconds")), ("bundle's files", _number("weights_mb", "{:.0f}"))),
            ("caches stated", _number("caches_mb")),
            *(("imported", _number("imported_mb", "{:.0f}")), ("opened", _number("opened_mb", "{:.0f}"))),
            ("peak of a clip", _number("peak_mb", "{:.0f}")),
        ),
    ),
    Section(
        "Requests one after another in one process",
        "requests",
        (*_SIZE, "steps", "seconds"),
        (
            *_MODEL,
            *(("clip s", _field("seconds")), ("requests", _field("n"))),
            *_TAILS,
            ("second half over first", _number("later_over_earlier")),
            *(("resident MB, first", _number("resident_mb_first", "{:.0f}")), ("last", _number("resident_mb_last", "{:.0f}"))),
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


def as_text(rows: Sequence[Row]) -> str:
    """All sections for a terminal."""
    parts = []
    for section in SECTIONS:
        if table := cells(rows, section):
            widths = [max(map(len, column)) for column in zip(*table, strict=True)]
            lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
            parts.append("\n".join([section.title, *lines]))
    return "\n\n".join(parts)


def as_markdown(table: list[list[str]]) -> str:
    """Rows of text as a Markdown table, numbers and all aligned to the right."""
    head, *body = table
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["--:"] * len(head), *body))
