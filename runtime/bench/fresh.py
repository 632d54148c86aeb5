"""The fresh process of `start`: it opens a bundle, makes a first token, perhaps a clip and many requests, and prints what it saw.

In: the arguments of `main`, on the command line. Out: one line of JSON on standard output.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from ..bundle import Manifest
from ..memory import decoder_bytes, largest_runs
from ..musiclm import load
from ..request import make_request
from ..sampling import SamplingConfig
from ..token_stages import is_guided
from .clips import TEXT, clip_of, guidance, unknown_words_unsaid
from .start import SHORT_S


def memory_mb(field: str) -> float | None:
    """Of this process, in MB: "VmRSS" now, "VmHWM" the peak since it began. None where the system has no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((round(int(line.split()[1]) * 1024 / 1e6, 1) for line in lines if line.startswith(f"{field}:")), None)


def stated_mb(manifest: Manifest, seconds: float, sampling: Mapping[str, SamplingConfig], native: bool) -> dict[str, float]:
    """What a clip should take, in MB: the bundle's files, as `musiclm inspect` gives them, and the caches of the largest stage, as the
    runtime reckons them before a request runs."""
    request = make_request(manifest, "x", seconds, 0, 1, "exact", None, None, sampling, None)
    caches = max(
        decoder_bytes(getattr(manifest, stage), rows * (1 + is_guided(manifest, request, stage)), prompt, capacity, native)
        for stage, (rows, prompt, capacity) in largest_runs(manifest, request).items()
    )
    return {"weights_mb": round(sum(record.bytes for record in manifest.files.values()) / 1e6, 1), "caches_mb": round(caches / 1e6, 1)}


def main(started: str, root: str, seconds: str, cond_scale: str, threads: str, requests: str) -> None:
    """The fresh process; `started` is the clock when its parent began it."""
    at: dict[str, float] = {}

    def note(what: str) -> None:
        at.setdefault(what, time.monotonic() - float(started))

    note("imported")
    memory: dict[str, float | None] = {"imported_mb": memory_mb("VmRSS")}
    with load(root, "cpu", threads=int(threads)) as model:
        note("opened")
        memory["opened_mb"] = memory_mb("VmRSS")
        with unknown_words_unsaid():
            model.generate(TEXT, seconds=SHORT_S, progress=lambda stage, done, total: note("first semantic token"))
        manifest = model.bundle.manifest
        facts = {"precision": manifest.coarse.step.precision, "steps": "native" if model.step.native else "graph"}
        facts |= {"dim": manifest.coarse.dim, "depth": manifest.coarse.depth}
        found = {"seconds": [], "resident_mb": []}
        if int(requests):
            scale = float(cond_scale) if cond_scale else None
            request = clip_of(model, scale)
            request(1, 1, float(seconds))
            memory |= {"peak_mb": memory_mb("VmHWM"), **stated_mb(manifest, float(seconds), guidance(manifest, scale), model.step.native)}
            for _ in range(int(requests)):
                began = time.perf_counter()
                request(1, 1, SHORT_S)
                found["seconds"].append(time.perf_counter() - began)
                found["resident_mb"].append(memory_mb("VmRSS"))
    print(json.dumps({"at": at, "memory": memory, "requests": found, "facts": facts}))


if __name__ == "__main__":
    main(*sys.argv[1:])
