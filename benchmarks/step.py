#!/usr/bin/env python3
"""Time of one decode step of the coarse transformer: `python benchmarks/step.py --rows 1,2,8 --context 500`.

Timed: one `DecoderRun.step` call, that is writing a row's token and position, and the graph. Not timed: sampling, noise, the prefill.
Weights are random, of the size of audiolm-pytorch's README by default; a step's time does not depend on their values. The outputs of the
first steps are checked against one long call of the same graph before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from musiclm_deploy.export.checkpoint import Checkpoint
from musiclm_deploy.export.stage import export_stage
from musiclm_deploy.export.transformers import infer_transformer
from musiclm_deploy.model.upstream import load_upstream
from musiclm_deploy.runtime.backend import open_session
from musiclm_deploy.runtime.decoder import DecoderRun
from musiclm_deploy.runtime.stages import Positions, plan_coarse

_WARM_UP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--rows", default="1,2,4,8", help="rows in a step (default: 1,2,4,8)")
    parser.add_argument("--context", default="500", help="positions before the step (default: 500)")
    parser.add_argument("--steps", type=int, default=60, help="timed steps (default: 60)")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        decoder, context = export_random(options, Path(folder))
        session = open_session(Path(folder) / decoder.graph, options.threads)
        weights = (Path(folder) / f"{decoder.graph}.data").stat().st_size
        for rows in map(int, options.rows.split(",")):
            for length in map(int, options.context.split(",")):
                repeated = {name: np.repeat(array, rows, axis=0) for name, array in context.items()}
                milliseconds = _time(session, decoder, repeated, rows, length, options.steps)
                _report(options, rows, length, weights, milliseconds)


def export_random(options: argparse.Namespace, folder: Path):
    """A coarse transformer of random weights, its decoder exported, and the context of one row."""
    load_upstream()
    import audiolm_pytorch

    torch.manual_seed(0)
    transformer = audiolm_pytorch.CoarseTransformer(
        codebook_size=1024,
        num_coarse_quantizers=3,
        num_semantic_tokens=500,
        dim=options.dim,
        depth=options.depth,
        audio_text_condition=True,
    )
    checkpoint = Checkpoint("random", transformer.state_dict(), "2.4.0")
    decoder = export_stage("coarse", checkpoint, infer_transformer("coarse", checkpoint, {"max_time_steps": 1024}), folder, 2048, 1)
    assert decoder.context
    graph = open_session(folder / decoder.context, None)
    names = [output.name for output in graph.get_outputs()]
    conditioning = np.random.default_rng(0).standard_normal((1, 8, options.dim), np.float32)
    return decoder, dict(zip(names, graph.run(names, {"conditioning": conditioning}), strict=True))


def _time(session, decoder, context: dict[str, np.ndarray], rows: int, length: int, steps: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    plan = plan_coarse(decoder, [rng.integers(0, 500, length - 2)] * rows, 1024, 3, True)
    tokens = rng.integers(0, 1024, (steps + _WARM_UP, rows))
    run = DecoderRun(session, decoder, context, rows, length + len(tokens))
    run.prefill(plan.prompts, 0)
    taken = np.zeros(len(tokens))
    for step, drawn in enumerate(tokens):
        placed = plan.place(step, drawn)
        started = time.perf_counter()
        logits = run.step(placed, plan.head(step + 1))
        taken[step] = time.perf_counter() - started
        if step == _WARM_UP:
            _check(session, decoder, context, plan, tokens[: step + 1], logits.copy())
    return taken[_WARM_UP:] * 1e3


def _check(session, decoder, context, plan, tokens: np.ndarray, logits: np.ndarray) -> None:
    """A fast wrong answer is no result: the steps so far must give what one long call gives."""
    placed = [plan.place(step, drawn) for step, drawn in enumerate(tokens)]
    prompts = [
        Positions.join(prompt, *(Positions(*(part[row : row + 1] for part in (p.rows, p.query, p.key))) for p in placed))
        for row, prompt in enumerate(plan.prompts)
    ]
    run = DecoderRun(session, decoder, context, len(prompts), len(prompts[0].rows))
    np.testing.assert_allclose(logits, run.prefill(prompts, plan.head(len(tokens))), rtol=0, atol=1e-4 * np.abs(logits).max())


def _report(options: argparse.Namespace, rows: int, length: int, weights: int, milliseconds: np.ndarray) -> None:
    sha = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    low, median, high = np.percentile(milliseconds, [5, 50, 95])
    row = {
        "rows": rows,
        "context": length,
        "median_ms": round(median, 3),
        "p5_ms": round(low, 3),
        "p95_ms": round(high, 3),
        "dim": options.dim,
        "depth": options.depth,
        "threads": options.threads,
        "weights_mb": round(weights / 1e6, 1),
        "machine": f"{platform.machine()}, {processor()}",
        "onnxruntime": onnxruntime.__version__,
        "git": sha,
        "command": " ".join(["python", "benchmarks/step.py", *sys.argv[1:]]),
    }
    print(json.dumps(row), flush=True)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
