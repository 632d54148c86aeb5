"""The results as pictures: a step by rows, a step by context, and whole clips; and a step on each GPU.

In: rows. Out: a PNG with three panels, of the largest model that was measured on a CPU, where a panel without rows says so; a PNG with a
panel for each GPU and model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from musiclm_deploy.runtime.bench.record import Row
from musiclm_deploy.runtime.install import install_command

_COLOURS = {"graph": "tab:blue", "native": "tab:red", "eager": "tab:gray", "compiled": "tab:green", "upstream": "tab:purple"}
_ON_GPUS = {"kernels": "tab:red", "engines": "tab:blue", "compiled PyTorch": "tab:green", "audiolm-pytorch": "tab:purple"}
_MARKERS = {"fp32": "o", "fp16": "v", "bf16": "D", "int8": "s", "int4": "^"}


def of_cpu(rows: Sequence[Row]) -> list[Row]:
    """Those of the largest model that was measured on a CPU: benchmarks of GPUs have names of their own."""
    found = [row for row in rows if not row["benchmark"].startswith("gpu ")]
    largest = max(((row["dim"], row["depth"]) for row in found), default=None)
    return [row for row in found if (row["dim"], row["depth"]) == largest]


def draw(rows: Sequence[Row], out: Path) -> None:
    """rows: of one model, some. Raises ImportError, with what to install, where matplotlib is missing."""
    model = f"dim {rows[0]['dim']} × {rows[0]['depth']}"
    figure = _figure(15, 5.2)
    by_rows, by_context, clips = figure.subplots(1, 3)
    steps = [row for row in rows if row["benchmark"] == "step" and row["stage"] == "coarse"]
    compared = [row for row in steps if "-" in row["form"] or row["form"] == "graph"]
    shared = max((row["context"] for row in compared if row["rows"] > 1), default=None)
    _lines(by_rows, [row for row in compared if row["context"] == shared], "rows", error_bars=True)
    by_rows.set(title=f"One step of coarse, {model}, {shared} positions", xlabel="rows in the step", ylabel="median, quarters (ms)")
    of_one = [row for row in steps if row["rows"] == 1]
    contexts = {form: {row["context"] for row in of_one if _form(row) == form} for form in map(_form, of_one)}
    _lines(by_context, [row for row in of_one if len(contexts[_form(row)]) > 1], "context")
    by_context.set(title="One step of coarse, one row", xlabel="positions before the step", ylabel="median (ms)")
    for axis in (by_rows, by_context):
        axis.set(xscale="log", yscale="log")
        ticks = sorted({float(x) for line in axis.get_lines() for x in line.get_xdata()})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    factors = {}
    for row in rows:
        if row["benchmark"] in ("clip", "peer clip"):
            factors[f"{row['form']}, {row['precision']}"] = row["real_time_factor_made"]
    clips.barh(list(factors), list(factors.values()))
    clips.invert_yaxis()
    clips.axvline(1, color="black", linewidth=0.8)
    clips.set(title="Whole clips", xlabel="real-time factor: seconds taken per second of audio", xscale="log")
    for axis, empty in ((by_rows, not compared), (by_context, not steps), (clips, not factors)):
        if empty:
            axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center")
    figure.savefig(out, dpi=100)


def draw_gpus(rows: Sequence[Row], out: Path) -> None:
    """A step of the coarse stage by rows on each GPU, ours and others', with what its memory allows. rows: some of "gpu step"."""
    steps = [row for row in rows if row["benchmark"] == "gpu step" and row["stage"] == "coarse"]
    gpus = sorted({(row["gpu"], row["dim"], row["depth"], row["context"]) for row in steps})
    figure = _figure(1 + 6 * len(gpus), 5.2)
    for axis, panel in zip(np.ravel(figure.subplots(1, len(gpus), squeeze=False)), gpus, strict=True):
        here, (gpu, dim, depth, context) = [row for row in steps if (row["gpu"], row["dim"], row["depth"], row["context"]) == panel], panel
        for form, precision in sorted({(row["form"], row["precision"]) for row in here}):
            points = {row["rows"]: row for row in here if (row["form"], row["precision"]) == (form, precision)}
            at = sorted(points)
            style = {"color": _ON_GPUS[form], "marker": _MARKERS[precision], "markersize": 4}
            axis.plot(at, [points[one]["step_us"] for one in at], label=f"{form} {precision}", **style)
            if all(points[one].get("ceiling_ms") for one in at):
                axis.plot(at, [points[one]["ceiling_ms"] * 1e3 for one in at], "--", color=_ON_GPUS[form], linewidth=0.8)
        axis.set(
            title=f"One step of coarse, {gpu}\ndim {dim} × {depth}, {context} positions", xlabel="rows in the step", ylabel="a step (µs)"
        )
        axis.set(xscale="log", yscale="log")
        axis.set_xticks(sorted({row["rows"] for row in here}), [str(one) for one in sorted({row["rows"] for row in here})])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, title="dashed: what the memory allows", title_fontsize=7, ncols=3)
    figure.savefig(out, dpi=100)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError(f"the picture needs matplotlib ({error}): {install_command('demo')}.") from error
    return Figure(figsize=(width, height), layout="constrained")


def _form(row: Row) -> tuple[str, str]:
    """(native, int8) of a form, whether its name says the precision or the row does."""
    return row["form"].partition("-")[0], row["precision"]


def _lines(axis: Any, rows: Sequence[Row], x: str, error_bars: bool = False) -> None:
    """A line for each form, the last row of each point; beside ours, dashed, what the memory allows. A colour for each kind of form, a
    marker for each precision."""
    for kind, precision in sorted({_form(row) for row in rows}):
        points = {row[x]: row for row in rows if _form(row) == (kind, precision)}
        at = sorted(points)
        median = [points[one]["median_ms"] for one in at]
        quarters = [[abs(points[one][name] - points[one]["median_ms"]) for one in at] for name in ("p25_ms", "p75_ms")]
        style = {"color": _COLOURS[kind], "marker": _MARKERS[precision], "markersize": 4, "label": f"{kind} {precision}"}
        axis.errorbar(at, median, quarters if error_bars else None, linewidth=1.2, **style)
        if kind == "native" and all(points[one]["ceiling_ms"] for one in at):
            axis.plot(at, [points[one]["ceiling_ms"] for one in at], "--", color=_COLOURS[kind], linewidth=0.8)
    if rows:
        axis.legend(
            fontsize=7, title="dashed: what the memory allows", title_fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.16)
        )
