"""Bars on the terminal for the stages of a request, the same from the command line and from Python."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

Progress = Callable[[str, int, int], None]  # (stage, done, total)
_CLIPS = ("codec", "rank")  # stages whose unit is a clip or a part of one; the others count tokens


@contextmanager
def progress_bars(on_terminals_alone: bool = False) -> Iterator[Progress]:
    """Yield a callback that shows a bar on standard error for each stage as the stage begins; all bars are closed at the end.

    on_terminals_alone: show nothing where standard error is a file or a pipe. A notebook's is neither, and no terminal.
    """
    bars: dict[str, tqdm] = {}

    def show(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            unit = "clip" if stage in _CLIPS else "tok"
            bars[stage] = tqdm(total=total, desc=f"{stage:8}", unit=unit, file=sys.stderr, disable=None if on_terminals_alone else False)
        bars[stage].update(done - bars[stage].n)
        if done == total:
            bars[stage].close()

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()
