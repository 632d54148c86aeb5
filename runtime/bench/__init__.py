"""`musiclm bench`: what a bundle costs on this machine. Steps, whole clips, start-up and memory, as rows that say how they were got.

In: a bundle's directory. Out: rows (`record`), also as a table (`table`). benchmarks/ uses the same parts where torch is needed.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...kernels.decoder_step import Pool
from ..backend import BackendError, available_processors, open_session, useful_threads
from ..bundle import STAGES, Bundle
from ..outputs import check_appendable
from ..step import choose_step, open_native, open_pool
from .clips import check_clip, time_clips
from .record import Memory, Row, append, circumstances, say
from .start import time_start
from .steps import Form, begin, bytes_of_step, check_prefill, graph_weights, make_case, random_context, sizes, turn_about

PARTS = ("steps", "clips", "start")
ROWS, CONTEXTS = (1, 2, 4, 8), (100, 500, 1000, 2000)
CONTEXT, _FEWER = 500, (10, 20, 50, 200)  # that each number of rows is timed at, or the next shorter one that the trained window holds


def bench(
    root: Path,
    parts: Sequence[str] = PARTS,
    *,
    seconds: float = 2.0,
    cond_scale: float | None = None,
    fine_window: int | None = None,
    steps: int = 40,
    repeats: int = 3,
    threads: int | None = None,
    json: Path | None = None,
) -> list[Row]:
    """Measure the bundle at `root`; the rows of each part are appended to `json` as soon as it is done.

    seconds: of the clips; cond_scale: guidance, the bundle's own by default; fine_window: frames of a window of
    the fine stage, the trained window by default; steps: timed in each case; repeats: of each clip and start.
    """
    if json is not None:
        check_appendable(json)
    bundle = Bundle.open(root)
    check_clip(bundle.manifest, seconds, cond_scale, fine_window)
    threads = useful_threads(threads) or available_processors()
    guided = "" if cond_scale is None else f" --cond-scale {cond_scale:g}"
    window = "" if fine_window is None else f" --fine-window {fine_window}"
    options = f"--seconds {seconds:g}{guided}{window} --steps {steps} --repeats {repeats} --threads {threads}"
    common: Row = {"bundle": bundle.sha256[:12], "name": root.resolve().name}
    rows: list[Row] = []
    for part in parts:
        if part == "steps":
            made = time_steps(bundle, steps, threads)
        elif part == "clips":
            made = time_clips(bundle, seconds, cond_scale, fine_window, repeats, threads)
        else:
            made = time_start(root, seconds, cond_scale, repeats, threads)
        around = circumstances(f"musiclm bench {shlex.quote(str(root))} --only {part} {options}", threads)
        made = [row | common | around for row in made]
        if json is not None:
            append(json, made)
        rows += made
    return rows


def time_steps(bundle: Bundle, steps: int, threads: int, rows: Sequence[int] = ROWS, contexts: Sequence[int] = CONTEXTS) -> list[Row]:
    """One step of every stage: each number of rows at one context, then one row at each context that the trained window holds."""
    decoders = [getattr(bundle.manifest, stage) for stage in STAGES]
    pool = _pool(threads)
    memory, found = Memory(pool), []
    for stage, decoder in zip(STAGES, decoders, strict=True):
        data = bundle.data_to_map()
        session = open_session(bundle.path(decoder.graph), threads, data=data)
        context_graph = decoder.context and open_session(bundle.path(decoder.context), threads, data=data)
        _, conditioned = random_context(bundle.manifest, stage, context_graph)
        use = pool is not None and choose_step("auto", [decoder]).native
        model = open_native(bundle.root, decoder, pool) if use and pool is not None else None
        checked = False
        held = [length for length in sorted({*contexts, *_FEWER}) if make_case(bundle.manifest, stage, 1, length, steps)]
        if not held:
            say(f"steps: {stage}'s trained window ({decoder.max_length}) is too short for {steps} steps")
            continue
        context = max((length for length in held if length <= CONTEXT), default=held[0])
        lengths = [length for length in held if length in contexts and length != context]
        for count, length in [*((count, context) for count in rows), *((1, length) for length in lengths)]:
            case = make_case(bundle.manifest, stage, count, length, steps)
            assert case is not None
            say(f"steps: {stage}, {count} rows at {length} positions")
            if not checked:
                check_prefill(session, decoder, conditioned, case)
                checked = True
            weights: dict[str, tuple[Any, int, Row]] = {"graph": (session, graph_weights(bundle, decoder), {})}
            if model is not None:
                weights["native"] = model, model.bytes_read, {"path": model.path}
            forms = {
                name: Form(
                    begin(transformer, decoder, conditioned, case),
                    bytes_of_step(decoder, case, conditioned, read),
                    decoder.step.precision,
                    facts,
                )
                for name, (transformer, read, facts) in weights.items()
            }
            found += [row | sizes(decoder) for row in turn_about(case, forms, memory)]
    return found


def _pool(threads: int) -> Pool | None:
    """None where there is no native step: the graph is timed then, without a ceiling."""
    try:
        return open_pool(threads) if choose_step("auto").native else None
    except BackendError:
        return None


__all__ = ["PARTS", "bench", "time_steps"]
