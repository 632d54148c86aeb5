"""`musiclm load`: how a server answers requests that come at random times, whether or not it has answered those before.

In: the URL of a server and what its clients are like. Out: a row of a benchmark, and what every client got. It talks HTTP alone, so the
server may be another program that has the same interface.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from ...runtime.bench.record import Row, append, circumstances, say
from ...runtime.outputs import check_appendable, check_output
from .arrivals import INTERFACES, Load, plan
from .clients import Got, run_clients
from .report import SECTIONS, command_of, row_of


def load(settings: Load, *, json: Path | None = None, plot: Path | None = None) -> tuple[Row, list[Got]]:
    """Send the requests of a load, and return its row and what each client got.

    json: file to which the row is appended; plot: PNG to write. Raises ValueError for settings that nothing could be sent by, ImportError
    where httpx or, for a plot, matplotlib is missing, OSError for a file that cannot be written or a server that cannot be reached.
    """
    if json is not None:
        check_appendable(json)
    if plot is not None:
        from .picture import draw_load, open_figure

        check_output(plot)
        open_figure()  # what is missing is said before the load, not after it
    planned = plan(settings)
    say(f"load: {len(planned)} requests in {settings.duration_s:g} s to {settings.url}")
    got = asyncio.run(run_clients(settings, planned))
    row = row_of(settings, got) | circumstances(command_of(settings), 1) | {"threads": None}  # those of the server are not known
    if json is not None:
        append(json, [row])
    if plot is not None:
        draw_load(row, got, plot)
    return row, got


__all__ = ["INTERFACES", "SECTIONS", "Got", "Load", "load"]
