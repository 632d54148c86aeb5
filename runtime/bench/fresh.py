"""The fresh process of `start`: it opens a bundle, makes a first token, perhaps a clip and many requests, and prints what it saw.

In: the arguments of `main`, on the command line. Out: one line of JSON on standard output.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from ..config import GenerationConfig
from ..musiclm import MusicLM, load
from ..needs import needed_bytes
from ..request import make_request
from .clips import TEXT, clip_of, guidance, unknown_words_unsaid
from .start import SHORT_S


def memory_mb(field: str) -> float | None:
    """Of this process, in MB: "VmRSS" now, "VmHWM" the peak since it began. None where the system has no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((round(int(line.split()[1]) * 1024 / 1e6, 1) for line in lines if line.startswith(f"{field}:")), None)


def stated_mb(model: MusicLM, config: GenerationConfig) -> dict[str, float]:
    """What a clip should take, in MB: the bundle's files, as `musiclm inspect` gives them, and the most that a stage takes beside them, as
    the runtime reckons it before a request runs."""
    manifest = model.bundle.manifest
    needed = needed_bytes(model.backend, make_request(manifest, config, TEXT))
    weights = sum(record.bytes for record in manifest.files.values())
    return {"weights_mb": round(weights / 1e6, 1), "stated_mb": round(max(needed.values()) / 1e6, 1)}


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
        facts = {"precision": manifest.coarse.step.precision, "steps": "native" if model.backend.native else "graph"}
        facts |= {"dim": manifest.coarse.dim, "depth": manifest.coarse.depth}
        found = {"seconds": [], "resident_mb": []}
        if int(requests):
            scale = float(cond_scale) if cond_scale else None
            request = clip_of(model, scale)
            config = GenerationConfig(seconds=float(seconds), sampling=guidance(manifest, scale))
            request(1, 1, float(seconds))
            memory |= {"peak_mb": memory_mb("VmHWM"), **stated_mb(model, config)}
            for _ in range(int(requests)):
                began = time.perf_counter()
                request(1, 1, SHORT_S)
                found["seconds"].append(time.perf_counter() - began)
                found["resident_mb"].append(memory_mb("VmRSS"))
    print(json.dumps({"at": at, "memory": memory, "requests": found, "facts": facts}))


if __name__ == "__main__":
    main(*sys.argv[1:])
