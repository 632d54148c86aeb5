"""The fresh process of `stream`: how much memory several clients take at once, and how much the runtime says that they will.

In: the arguments of `main`, on the command line. Out: one line of JSON on standard output. Counted is memory of the process's own, without
files that are mapped: from when the weights are loaded to the most that it has while the clients listen.
"""

from __future__ import annotations

import json
import sys
import threading

from ..bundle import STAGES
from ..config import GenerationConfig
from ..musiclm import MusicLM, load
from ..needs import needed_bytes
from ..request import make_request
from .clients import listen
from .clips import TEXT, guidance
from .fresh import memory_mb

_LOOK_S, _AHEAD_S = 0.01, 10.0  # between two looks at the memory; see `MusicLM.stream`


def main(root: str, seconds: str, cond_scale: str, threads: str, clients: str) -> None:
    with load(root, "cpu", threads=int(threads)) as model:
        manifest = model.bundle.manifest
        sampling = guidance(manifest, float(cond_scale) if cond_scale else None)
        config = GenerationConfig(seconds=float(seconds), sampling=sampling)
        needed = needed_bytes(model.backend, make_request(manifest, config, TEXT), _AHEAD_S)
        _load_weights(model)
        before, most, ended = memory_mb("RssAnon") or 0.0, 0.0, threading.Event()

        def look() -> None:
            nonlocal most
            while not ended.wait(_LOOK_S):
                most = max(most, memory_mb("RssAnon") or 0.0)

        looking = threading.Thread(target=look)
        looking.start()
        try:
            listen(model, int(clients), seconds=float(seconds), sampling=sampling, ahead_s=_AHEAD_S)
        finally:
            ended.set()
            looking.join()
    stated = int(clients) * max(needed.values()) / 1e6
    print(json.dumps({"taken_mb": round(max(most - before, 0.0), 1), "stated_mb": round(stated, 1), "clients": int(clients)}))


def _load_weights(model: MusicLM) -> None:
    """Open what a request of a text uses."""
    manifest = model.bundle.manifest
    for stage in STAGES:
        model.backend.batch(stage).close()
    contexts = (getattr(manifest, stage).context for stage in STAGES)
    for graph in filter(None, (manifest.mulan.text, manifest.conditioner.graph, manifest.codec.stream, *contexts)):
        model.graphs.session(graph)


if __name__ == "__main__":
    main(*sys.argv[1:])
