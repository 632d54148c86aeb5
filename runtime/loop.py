"""The decode loop, one for all stages: sample a token for every row, feed it back, until every row has its tokens or has ended.

In: a plan, a run, noise, sampling settings. Out: each item's tokens. It reads no model and no file.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .bundle import Sampling
from .decoder import DecoderRun
from .noise import NoiseSource
from .sampling import guide, sample
from .stages import Plan, Positions


def decode(
    plan: Plan, run: DecoderRun, guided: bool, sampling: Sampling, noise: NoiseSource, on_step: Callable[[int, int], None]
) -> list[np.ndarray]:
    """Returns the tokens of each item, int64 [n], without the end token.

    With `guided` the run has two rows per item: all conditioned rows, then the same without condition. `on_step(done, total)` is called
    after each token and may raise to stop.
    """
    items, V = len(plan.prompts), plan.decoder.vocabulary
    copies = 2 if guided else 1
    total = int(plan.steps.max(initial=0))
    tokens = np.zeros((items, total), np.int64)
    counts = np.zeros(items, np.int64)  # tokens each item keeps
    running = plan.steps > 0
    logits = None
    for step in range(total):
        if logits is None:
            logits = run.prefill(plan.prompts * copies, plan.head(0), without_prefix=items if guided else 0)
        else:
            # an item that has ended keeps its place in the batch and is fed the zero row
            fed = plan.place(step - 1, tokens[:, step - 1])
            rows = np.where(running, fed.rows, plan.decoder.rows["padding"])
            logits = run.step(Positions(*(np.tile(part, copies) for part in (rows, fed.query, fed.key))), plan.head(step))
        scores = guide(logits[:items], logits[items:], sampling.cond_scale) if guided else logits
        gumbel = noise.gumbel(plan.stage, step, items, V) if sampling.temperature else np.zeros((1, V), np.float32)
        tokens[:, step] = sample(scores, gumbel, sampling.temperature, sampling.filter_thres, plan.forbid_last(step))
        if plan.end is not None:
            running &= tokens[:, step] != plan.end
        counts[running] = step + 1
        running &= plan.steps > step + 1
        on_step(step + 1, total)
        if not running.any():
            break
    return [row[:count] for row, count in zip(tokens, counts, strict=True)]
