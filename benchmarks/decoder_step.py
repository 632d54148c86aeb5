#!/usr/bin/env python3
"""The native decode step against the ONNX graph's, and against what memory allows: `python benchmarks/decoder_step.py --rows 1,2,4,8`.

Timed: one `DecoderRun.step` call. The forms take turns, some steps each, with the memory's bandwidth measured in every turn, so that what
else the machine does falls on all of them; medians are compared, minima beside them. The ceiling is the bytes of packed weights that a step
reads over the best bandwidth seen. Not timed: sampling, noise, the prefill. Weights are random, of the size of audiolm-pytorch's README.
Every form is fed the same tokens; its last logits are compared with the graph's before anything is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
from step import export_random, processor

from musiclm_deploy.kernels.decoder_step import Model, Pool
from musiclm_deploy.runtime.backend import open_session
from musiclm_deploy.runtime.decoder import DecoderRun
from musiclm_deploy.runtime.stages import plan_coarse
from musiclm_deploy.runtime.step import open_native

FORMS = {"native fp32": (32, 32), "native int8": (8, 32), "native int4": (4, 32), "native int4, blocks of 128": (4, 128)}
_WARM_UP, _TURN = 5, 10  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--rows", default="1,2,4,8", help="rows in a step (default: 1,2,4,8)")
    parser.add_argument("--context", type=int, default=500, help="positions before the first step (default: 500)")
    parser.add_argument("--steps", type=int, default=100, help="timed steps of each form (default: 100)")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        decoder, context = export_random(options, folder)
        session, pool = open_session(folder / decoder.graph, options.threads), Pool(options.threads)
        models: dict[str, Model | None] = {"graph fp32": None}
        for form, (bits, block) in FORMS.items():
            started = time.perf_counter()
            models[form] = open_native(folder, decoder, pool, bits, block)
            print(f"{form}: opened and packed in {time.perf_counter() - started:.2f} s", file=sys.stderr)
        for rows in map(int, options.rows.split(",")):
            _case(options, rows, session, decoder, {name: np.repeat(array, rows, axis=0) for name, array in context.items()}, models, pool)


def _case(options: argparse.Namespace, rows: int, session, decoder, context, models: dict[str, Model | None], pool: Pool) -> None:
    rng = np.random.default_rng(0)
    plan = plan_coarse(decoder, [rng.integers(0, 500, options.context - 2)] * rows, 1024, 3, True)
    tokens = rng.integers(0, 1024, (options.steps + _WARM_UP, rows))
    runs = {form: DecoderRun(session, decoder, context, rows, options.context + len(tokens), model) for form, model in models.items()}
    milliseconds: dict[str, list[float]] = {form: [] for form in models}
    logits = {}
    for run in runs.values():
        run.prefill(plan.prompts, 0)
    memory = np.ones(1 << 26, np.float32)  # more than any cache holds
    bandwidths = []
    for first in range(0, len(tokens), _TURN):
        started = time.perf_counter()
        pool.read(memory)
        bandwidths.append(memory.nbytes / (time.perf_counter() - started))
        for form, run in runs.items():
            for step in range(first, min(first + _TURN, len(tokens))):
                placed = plan.place(step, tokens[step])
                started = time.perf_counter()
                logits[form] = run.step(placed, plan.head(step + 1))
                milliseconds[form].append((time.perf_counter() - started) * 1e3)
    graph, scale = np.median(milliseconds["graph fp32"][_WARM_UP:]), np.abs(logits["graph fp32"]).max()
    for form, model in models.items():
        taken = np.array(milliseconds[form][_WARM_UP:])
        lost = np.abs(logits[form] - logits["graph fp32"]).max() / scale
        if form == "native fp32":
            assert lost < 1e-4, f"a fast wrong answer is no result: {lost}"
        row = {"form": form, "rows": rows, "context": options.context}
        row |= {"median_ms": round(float(np.median(taken)), 3), "min_ms": round(taken.min(), 3)}
        row |= {"p95_ms": round(float(np.percentile(taken, 95)), 3), "times_faster_than_graph": round(graph / float(np.median(taken)), 2)}
        if model is not None:
            ceiling = model.bytes_read / max(bandwidths) * 1e3
            row |= {"path": model.path, "weights_mb": round(model.bytes_read / 1e6, 1), "ceiling_ms": round(ceiling, 3)}
            row |= {"ceiling_over_median": round(ceiling / float(np.median(taken)), 2), "ceiling_over_min": round(ceiling / taken.min(), 2)}
        row |= {"gb_per_s": round(max(bandwidths) / 1e9, 1), "logits_differ_by": float(f"{lost:.1e}")}
        print(json.dumps(row | _circumstances(options)), flush=True)


def _circumstances(options: argparse.Namespace) -> dict[str, object]:
    sha = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    return {
        "dim": options.dim,
        "depth": options.depth,
        "threads": options.threads,
        "load": round(os.getloadavg()[0], 1),
        "machine": processor(),
        "onnxruntime": onnxruntime.__version__,
        "git": sha,
        "command": " ".join(["python", "benchmarks/decoder_step.py", *sys.argv[1:]]),
    }


if __name__ == "__main__":
    main()
