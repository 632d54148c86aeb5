"""A load as a picture: the first audio of each client by its arrival, and how many waited how long.

In: the row of a load and what its clients got. Out: a PNG.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.bench.record import Row
from ...runtime.install import install_command
from .clients import Got

_WIDTH, _HEIGHT, _DPI = 9.0, 7.0, 100  # inches, and pixels in each


def open_figure() -> Any:
    """Return an empty figure. Raises ImportError, with what to install, where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError(f"the picture needs matplotlib ({error}): {install_command('demo')}.") from error
    return Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")


def draw_load(row: Row, got: Sequence[Got], out: Path) -> None:
    """Draw a load."""
    figure = open_figure()
    over_time, spread = figure.subplots(2, 1)
    for name, colour, kind in (("at once", "tab:blue", False), ("after a 429", "tab:orange", True)):
        found = [(one.planned.at_s, one.first_s) for one in got if one.first_s is not None and bool(one.refusals) is kind]
        if not found:
            continue
        at, first = zip(*found, strict=True)
        over_time.plot(at, first, ".", color=colour, label=f"taken {name} ({len(found)})")
        spread.plot(np.sort(first), (np.arange(len(first)) + 1) / len(first), color=colour, label=f"taken {name}")
    for name, colour, ends in (("refused", "tab:gray", ("refused",)), ("errors", "tab:red", tuple(row["errors"]))):
        if at := [one.planned.at_s for one in got if one.end in ends]:
            over_time.plot(at, [0] * len(at), "|", color=colour, markersize=12, label=f"{name} ({len(at)})")
    over_time.set(xlabel="arrival, s", ylabel="first audio, s", ylim=(0, None))
    title = f"{row['rate']:g} requests per second, clips of {row['seconds']} s, {row['formats']}"
    over_time.set_title(f"{title}: {row['audio_s_per_s']:g} s of audio per second")
    spread.set(xlabel="first audio, s", ylabel="share of clients", ylim=(0, 1), xlim=(0, None))
    for axis in (over_time, spread):
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    figure.savefig(out, dpi=_DPI, format="png")
