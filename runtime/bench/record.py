"""What every row of a benchmark carries, and where rows are kept.

In: times, commands. Out: rows, dicts of plain values: what was timed, its spread, and the circumstances; appended to a file of JSON lines.
It does not know what is timed.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...kernels.decoder_step import Pool
from ..outputs import append_output
from ..user_files import LINE_ENDS, read_text

Row = dict[str, Any]
_READ = 1 << 26  # float32 numbers in a reading of the memory: 256 MB, more than any cache holds
_FIRST_READINGS = 8
_PACKAGES = ("numpy", "onnxruntime", "torch", "audiolm-pytorch")


def spread(seconds: Sequence[float]) -> Row:
    """Median, least, quarter points and tails of times in seconds, as milliseconds."""
    milliseconds = np.asarray(seconds) * 1e3
    names = {"median_ms": 50, "p25_ms": 25, "p75_ms": 75, "p95_ms": 95, "p99_ms": 99}
    points = np.percentile(milliseconds, list(names.values()))
    return {"n": len(milliseconds), "min_ms": _round(milliseconds.min())} | dict(zip(names, map(_round, points), strict=True))


def ratio(what: str, above: Sequence[float], below: Sequence[float]) -> Row:
    """Return the row of a ratio of times that were taken in pairs, turn about: the median of the pairs' ratios, and its quarter points."""
    points = np.percentile(np.asarray(above) / np.asarray(below), [50, 25, 75])
    return {
        "benchmark": "ratio",
        "form": what,
        "n": len(above),
        **dict(zip(("ratio", "ratio_p25", "ratio_p75"), map(_round, points), strict=True)),
    }


class Memory:
    """The bandwidth of the memory, read in the same run as what is timed: by all threads, with the widest loads the processor has."""

    def __init__(self, pool: Pool | None) -> None:
        """pool: None where the native step was not built; there is then no ceiling to compare with."""
        self.best: float | None = None  # bytes a second, of all readings so far
        self._pool = pool
        self._data = np.ones(_READ if pool else 0, np.float32)
        for _ in range(_FIRST_READINGS):
            self.read()

    def read(self) -> None:
        """One more reading."""
        if self._pool is not None:
            started = time.perf_counter()
            self._pool.read(self._data)
            self.best = max(self.best or 0.0, self._data.nbytes / (time.perf_counter() - started))


def ceiling(bytes_read: float, bandwidth: float | None, seconds: Sequence[float]) -> Row:
    """What the memory allows first: bytes that must be read over its bandwidth; then the share of that speed which the median reached.

    A share above 1 means that bytes came from a cache and not from the memory.
    """
    row: Row = {"mb_read": _round(bytes_read / 1e6)}
    if bandwidth is None:
        return row | {"gb_per_s": None, "ceiling_ms": None, "ceiling_share": None}
    least = bytes_read / bandwidth
    return row | {
        "gb_per_s": _round(bandwidth / 1e9),
        "ceiling_ms": _round(least * 1e3),
        "ceiling_share": _round(least / float(np.median(seconds))),
    }


def circumstances(command: str, threads: int) -> Row:
    """Machine, versions, revision, date, and the command that repeats the row."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores, {_memory_gb()} GB, {platform.system()} {platform.machine()}",
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "threads": threads,
        "versions": {"musiclm-deploy": __version__, "python": platform.python_version(), **versions},
        "git": _revision(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
    }


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to a file of JSON lines; what is there is never changed."""
    append_output(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read(paths: Iterable[Path]) -> list[Row]:
    """The rows of files of JSON lines, in their order. ValueError names the line that is none."""
    rows = []
    for path in paths:
        for number, line in enumerate(LINE_ENDS.split(read_text(path)), start=1):
            try:
                rows += [json.loads(line)] if line else []
            except ValueError as error:
                raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
    return rows


def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def say(text: str) -> None:
    """Progress, for people: on standard error, where it does not mix with results."""
    print(text, file=sys.stderr, flush=True)


def _memory_gb() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9)
    except (AttributeError, ValueError, OSError):
        return None


def _revision() -> str | None:
    """The revision of the checkout that this file is in, marked where it was changed since; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "setup.py").is_file():
        return None
    try:
        found = subprocess.run(["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=root, capture_output=True, text=True)
    except OSError:
        return None
    return found.stdout.strip() or None


def _round(value: float) -> float:
    """To four digits: no time here is known better."""
    return float(f"{value:.4g}")
