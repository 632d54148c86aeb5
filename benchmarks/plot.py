"""The results as pictures: a step by rows, a step by context, and whole clips; and a step on each GPU.

In: rows. Out: a PNG with three panels, of the largest model that was measured on a CPU, where a panel without rows says so; a PNG with a
panel for each GPU and model. Panels are stacked, 900 pixels wide, so that a page shows them as they are. Each line is named at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from musiclm_deploy.runtime.bench.record import Row
from musiclm_deploy.runtime.install import install_command

_COLOURS = {"graph": "tab:blue", "native": "tab:red", "eager": "tab:gray", "compiled": "tab:green", "upstream": "tab:purple"}
_NAMES = {"graph": "ONNX graph", "native": "native step", "eager": "PyTorch", "compiled": "compiled PyTorch", "upstream": "audiolm-pytorch"}
_ON_GPUS = {"kernels": "tab:red", "engines": "tab:blue", "compiled PyTorch": "tab:green", "audiolm-pytorch": "tab:purple"}
_MARKERS = {"fp32": "o", "fp16": "v", "bf16": "D", "int8": "s", "int4": "^"}
_WIDTH, _DPI = 9.0, 100  # inches, and pixels in each
_APART = 0.045  # names of lines are at least so far apart, as a share of the panel's height
_MEMORY = "dashed: what the memory allows"


def of_cpu(rows: Sequence[Row]) -> list[Row]:
    """Those of the largest model that was measured on a CPU: benchmarks of GPUs have names of their own."""
    found = [row for row in rows if not row["benchmark"].startswith("gpu ")]
    largest = max(((row["dim"], row["depth"]) for row in found), default=None)
    return [row for row in found if (row["dim"], row["depth"]) == largest]


def draw(rows: Sequence[Row], out: Path) -> None:
    """rows: of one model, some. Raises ImportError, with what to install, where matplotlib is missing."""
    model = f"dim {rows[0]['dim']} × {rows[0]['depth']}"
    steps = [row for row in rows if row["benchmark"] == "step" and row["stage"] == "coarse"]
    compared = [row for row in steps if "-" in row["form"] or row["form"] == "graph"]
    shared = max((row["context"] for row in compared if row["rows"] > 1), default=None)
    of_one = [row for row in steps if row["rows"] == 1]
    contexts = {form: {row["context"] for row in of_one if _form(row) == form} for form in map(_form, of_one)}
    factors = {_clip(row): row["real_time_factor_made"] for row in rows if row["benchmark"] in ("clip", "peer clip")}

    figure = _figure(5.2 + 4.4 + 0.8 + 0.3 * len(factors))
    by_rows, by_context, clips = figure.subplots(3, 1, height_ratios=(5.2, 4.4, 0.8 + 0.3 * len(factors)))
    _lines(by_rows, [row for row in compared if row["context"] == shared], "rows", error_bars=True)
    by_rows.set(title=f"A step of coarse by its rows: {model}, {shared} positions ({_MEMORY})", xlabel="rows in the step")
    _lines(by_context, [row for row in of_one if len(contexts[_form(row)]) > 1], "context")
    by_context.set(title=f"A step of coarse by its context: {model}, one row ({_MEMORY})", xlabel="positions before the step")
    by_rows.set_ylabel("ms, median and quarters")
    by_context.set_ylabel("ms, median")
    bars = clips.barh(list(factors), list(factors.values()))
    clips.bar_label(bars, fmt="%.2g", padding=3, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    clips.invert_yaxis()
    clips.axvline(1, color="black", linewidth=0.8, zorder=0)
    clips.set(title=f"Whole clips: {model} (left of the line: faster than it plays)", xlabel="seconds taken per second of all audio made")
    clips.set_xscale("log")
    _tick(clips.xaxis, list(factors.values()))
    clips.margins(x=0.15)
    for axis, empty in ((by_rows, not compared), (by_context, not steps), (clips, not factors)):
        if empty:
            axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center")
    figure.savefig(out, dpi=_DPI)


def draw_gpus(rows: Sequence[Row], out: Path) -> None:
    """A step of the coarse stage by rows on each GPU, ours and others', with what its memory allows. rows: some of "gpu step"."""
    steps = [row for row in rows if row["benchmark"] == "gpu step" and row["stage"] == "coarse"]
    gpus = sorted({(row["gpu"], row["dim"], row["depth"], row["context"]) for row in steps})
    figure = _figure(5.2 * len(gpus))
    for axis, panel in zip(np.ravel(figure.subplots(len(gpus), 1, squeeze=False)), gpus, strict=True):
        here, (gpu, dim, depth, context) = [row for row in steps if (row["gpu"], row["dim"], row["depth"], row["context"]) == panel], panel
        ends, values = [], []
        for form, precision in sorted({(row["form"], row["precision"]) for row in here}):
            points = {row["rows"]: row for row in here if (row["form"], row["precision"]) == (form, precision)}
            at = sorted(points)
            took = [points[one]["step_us"] for one in at]
            axis.plot(at, took, color=_ON_GPUS[form], marker=_MARKERS[precision], markersize=4)
            ends.append((took[-1], f"{form} {precision}", _ON_GPUS[form]))
            values += took
            if all(points[one].get("ceiling_ms") for one in at):
                axis.plot(at, [points[one]["ceiling_ms"] * 1e3 for one in at], "--", color=_ON_GPUS[form], linewidth=0.8)
                values += [points[one]["ceiling_ms"] * 1e3 for one in at]
        axis.set(title=f"A step of coarse, {gpu}: dim {dim} × {depth}, {context} positions ({_MEMORY})", xlabel="rows in the step")
        axis.set_ylabel("µs")
        _finish(axis, sorted({row["rows"] for row in here}), values, ends)
    figure.savefig(out, dpi=_DPI)


def _figure(height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError(f"the picture needs matplotlib ({error}): {install_command('demo')}.") from error
    return Figure(figsize=(_WIDTH, height), layout="constrained")


def _form(row: Row) -> tuple[str, str]:
    """(native, int8) of a form, whether its name says the precision or the row does."""
    return row["form"].partition("-")[0], row["precision"]


def _clip(row: Row) -> str:
    if row["benchmark"] == "peer clip":
        return f"{row['form']}, {row['precision']}, {row['seconds']:g} s"
    return f"{'one clip' if row['form'] == 'one' else row['form']}, {row['precision']}, {row['seconds']:g} s"


def _lines(axis: Any, rows: Sequence[Row], x: str, error_bars: bool = False) -> None:
    """A line for each form, the last row of each point; beside ours, dashed, what the memory allows. A colour for each kind of form, a
    marker for each precision."""
    ends, values = [], []
    for kind, precision in sorted({_form(row) for row in rows}):
        points = {row[x]: row for row in rows if _form(row) == (kind, precision)}
        at = sorted(points)
        median = [points[one]["median_ms"] for one in at]
        quarters = [[abs(points[one][name] - points[one]["median_ms"]) for one in at] for name in ("p25_ms", "p75_ms")]
        style = {"color": _COLOURS[kind], "marker": _MARKERS[precision], "markersize": 4}
        axis.errorbar(at, median, quarters if error_bars else None, linewidth=1.2, **style)
        ends.append((median[-1], f"{_NAMES[kind]} {precision}", _COLOURS[kind]))
        values += median
        if kind == "native" and all(points[one]["ceiling_ms"] for one in at):
            ceiling = [points[one]["ceiling_ms"] for one in at]
            axis.plot(at, ceiling, "--", color=_COLOURS[kind], linewidth=0.8)
            values += ceiling
    if rows:
        _finish(axis, sorted({row[x] for row in rows}), values, ends)


def _finish(axis: Any, at: Sequence[float], values: Sequence[float], ends: Sequence[tuple[float, str, str]]) -> None:
    """Give logarithmic axes plain numbers, and write each line's name right of the panel, as near to its last point as neighbours allow."""
    axis.set(xscale="log", yscale="log")
    axis.set_xticks(list(at), [f"{one:g}" for one in at])
    axis.xaxis.minorticks_off()
    _tick(axis.yaxis, values)
    axis.grid(alpha=0.3)
    low, high = np.log(axis.get_ylim())
    ends = sorted(ends)
    heights = [float((np.log(value) - low) / (high - low)) for value, _, _ in ends]
    for above in range(1, len(heights)):  # upwards, then down again from the top
        heights[above] = max(heights[above], heights[above - 1] + _APART)
    heights[-1] = min(heights[-1], 1 - _APART / 2)
    for below in range(len(heights) - 2, -1, -1):
        heights[below] = min(heights[below], heights[below + 1] - _APART)
    for height, (_, name, colour) in zip(heights, ends, strict=True):
        axis.annotate(name, (1.015, height), xycoords="axes fraction", color=colour, va="center", annotation_clip=False)


def _tick(axis: Any, values: Sequence[float]) -> None:
    """Put ticks at 1, 2 and 5 times every power of ten in the range, as plain numbers."""
    if not values:
        return
    powers = range(int(np.floor(np.log10(min(values)))), int(np.ceil(np.log10(max(values)))) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    shown = [tick for tick in ticks if min(values) / 1.5 <= tick <= max(values) * 1.5]
    axis.set_ticks(shown, [f"{tick:g}" for tick in shown])
    axis.set_ticks([], minor=True)
