"""The benchmark of libmusiclm runs, compares what it times, and its rows are shown. No time is asserted: machines differ in that."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support import embed

from benchmarks import embed as benchmark
from benchmarks.report import EMBED, markdown
from musiclm_deploy.runtime.bench import record
from musiclm_deploy.runtime.bench.table import SECTIONS, cells

MISSING = embed.MISSING + [name for name in ("strip",) if shutil.which(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"libmusiclm is built with {', '.join(MISSING)}, which this machine lacks")


def test_rows(tiny_bundle: Path) -> None:
    """Fault: a plan that is left out, a figure that is missing or cannot be, rows that no table of the page shows."""
    rows = benchmark.measure(tiny_bundle, embed.built(), 0.2, 4, 2, 1)
    rows = [row | record.circumstances("python -m benchmarks.embed", 1) for row in rows]
    assert [(row["benchmark"], row["form"]) for row in rows] == [
        ("embed", "trained"),
        ("embed", "low_latency"),
        ("ratio", "a clip of 0.2 s: libmusiclm over Python"),
    ]
    for row in rows[:2]:
        assert row["n"] == 2 and 0 < row["opened_ms"] < row["median_ms"] and row["min_ms"] <= row["p25_ms"] <= row["p75_ms"]
        assert 1 < row["weights_mb"] < row["peak_mb"] and row["beyond_mb"] == pytest.approx(row["peak_mb"] - row["weights_mb"], abs=0.11)
        assert 30 < row["shipped_mb"] < 40, "what is aimed at"
    assert rows[2]["n"] == 2 and rows[2]["ratio"] > 0 and rows[2]["fine_window"] == 4
    assert len(cells(rows, EMBED)) == 3 and EMBED.title in markdown(rows, "results.png")
    assert cells(rows, next(section for section in SECTIONS if section.kind == "ratio"))[1][3] == rows[2]["form"]


def test_a_wrong_clip_is_no_result(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: two clips of different work are timed."""
    monkeypatch.setattr(benchmark, "TEXT", "another prompt")  # of the library alone: Python's clips have their own
    with pytest.raises(RuntimeError, match="samples differ from Python's"):
        benchmark.measure(tiny_bundle, embed.built(), 0.2, None, 1, 1)
