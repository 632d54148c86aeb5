"""`musiclm bench`: the cost of a bundle on this machine. Steps, clips, streams, start-up and memory, as rows that say how they were got.

In: a bundle's directory. Out: rows (`record`), also as a table (`table`). benchmarks/ uses the same parts where torch is needed.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ...kernels.decoder_step import Pool
from ..backend import BackendError, available_processors, open_session, useful_threads
from ..bundle import STAGES, Bundle
from ..forcing import HostBatch
from ..host.graph import GraphBatch
from ..host.native import NativeBatch
from ..outputs import check_appendable
from ..step import choose_step, open_native, open_pool
from .clips import check_clip, time_clips
from .host import time_host
from .record import Memory, Row, append, circumstances, say
from .start import time_start
from .steps import Form, begin, bytes_of_step, check_prefill, compare_cases, graph_weights, make_case, random_context, sizes, turn_about
from .stream import time_stream

PARTS = ("steps", "clips", "stream", "start")
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
            made += time_host(bundle, seconds, threads) if choose_step("auto", [bundle.manifest.coarse]).native else []
        elif part == "clips":
            made = time_clips(bundle, seconds, cond_scale, fine_window, repeats, threads)
        elif part == "stream":
            made = time_stream(bundle, seconds, cond_scale, fine_window, repeats, threads)
        else:
            made = time_start(root, seconds, cond_scale, repeats, threads)
        around = circumstances(f"musiclm bench {shlex.quote(str(root))} --only {part} {options}", threads)
        made = [row | common | around for row in made]
        if json is not None:
            append(json, made)
        rows += made
    return rows


def time_steps(bundle: Bundle, steps: int, threads: int, rows: Sequence[int] = ROWS, contexts: Sequence[int] = CONTEXTS) -> list[Row]:
    """One step of every stage: each number of rows at one context, then one row at each context that the trained window holds.

    Then, turn about: all rows over one, and the longest context over the shortest.
    """
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
        held = [length for length in sorted({*contexts, *_FEWER}) if make_case(bundle.manifest, stage, 1, length, steps)]
        if not held:
            say(f"steps: {stage}'s trained window ({decoder.max_length}) is too short for {steps} steps")
            continue
        context = max((length for length in held if length <= CONTEXT), default=held[0])
        lengths = [length for length in held if length in contexts and length != context]
        cases = {
            key: case
            for key in [*((count, context) for count in rows), *((1, length) for length in lengths)]
            if (case := make_case(bundle.manifest, stage, *key, steps)) is not None
        }
        check_prefill(session, decoder, conditioned, next(iter(cases.values())))
        batches: dict[str, Callable[[], HostBatch]] = {"graph": partial(GraphBatch, session, decoder)}
        weights: dict[str, tuple[int, Row]] = {"graph": (graph_weights(bundle, decoder), {})}
        if model is not None:
            batches["native"] = partial(NativeBatch, model)
            weights["native"] = model.bytes_read, {"path": model.path}
        for case in cases.values():
            say(f"steps: {stage}, {case.rows} rows at {case.context} positions")
            forms = {
                name: Form(
                    begin(batches[name](), decoder, conditioned, case),
                    bytes_of_step(decoder, case, conditioned, read),
                    decoder.step.precision,
                    facts,
                )
                for name, (read, facts) in weights.items()
            }
            found += [row | sizes(decoder) for row in turn_about(case, forms, memory)]
        best = list(batches)[-1]
        compared = {
            f"{count} rows over one": ((count, context), (1, context)) for count in rows[-1:] if count > 1 and (1, context) in cases
        }
        if len(of_one := sorted(length for count, length in cases if count == 1)) > 1:
            compared[f"{of_one[-1]} positions over {of_one[0]}"] = (1, of_one[-1]), (1, of_one[0])
        for what, keys in compared.items():
            say(f"steps: {stage}, {what}")
            above, below = ((cases[key], begin(batches[best](), decoder, conditioned, cases[key])) for key in keys)
            named = {"stage": stage, "steps": best, "precision": decoder.step.precision}
            found.append(compare_cases(f"a step of {stage}: {what}", above, below) | named | sizes(decoder))
    return found


def _pool(threads: int) -> Pool | None:
    """None where there is no native step: the graph is timed then, without a ceiling."""
    try:
        return open_pool(threads) if choose_step("auto").native else None
    except BackendError:
        return None


__all__ = ["PARTS", "bench", "time_steps"]
