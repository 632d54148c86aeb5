"""Start-up and memory, each in a fresh process: opening a bundle, the first semantic token, a clip, and whether many requests stay flat.

In: a bundle's directory. Out: rows. The files of the bundle are in the system's cache, as they are on a machine that serves; a first open
after a boot takes longer by the reading of the disk. What such a process does is in `fresh`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from .record import Row, say, spread

REQUESTS = 10  # after a first one, for flatness
SHORT_S = 0.2  # of each


def time_start(bundle_root: Path, seconds: float, cond_scale: float | None, repeats: int, threads: int) -> list[Row]:
    """Fresh processes, one after another: each opens the bundle and makes its first token; the last goes on to a clip and many requests."""
    seen = []
    for repeat in range(repeats):
        say(f"start: fresh process {repeat + 1} of {repeats}")
        requests = REQUESTS if repeat == repeats - 1 else 0
        options = [str(bundle_root), str(seconds), "" if cond_scale is None else str(cond_scale), str(threads), str(requests)]
        command = [sys.executable, "-m", f"{__package__}.fresh", str(time.monotonic()), *options]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(f"the fresh process ended with status {done.returncode}; what it said is above.")
        seen.append(json.loads(done.stdout))
    last = seen[-1]
    rows: list[Row] = []
    for what in ("imported", "opened", "first semantic token"):
        rows.append({"benchmark": "start", "form": what, **spread([one["at"][what] for one in seen]), **last["facts"]})
    rows.append({"benchmark": "memory", "seconds": seconds, **last["memory"], **last["facts"]})
    times, resident = last["requests"]["seconds"], last["requests"]["resident_mb"]
    half = len(times) // 2
    rows.append(
        {
            "benchmark": "requests",
            "seconds": SHORT_S,
            **spread(times),
            "later_over_earlier": round(sum(times[half:]) / (len(times) - half) / (sum(times[:half]) / half), 3),
            "resident_mb_first": resident[0],
            "resident_mb_last": resident[-1],
            **last["facts"],
        }
    )
    return rows
