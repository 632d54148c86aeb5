"""The decode loop, one for all stages: sample a token for every row, feed it back, until every row has its tokens or has ended.

In: a plan, a run, noise, sampling settings. Out: each row's tokens. It reads no model and no file.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .bundle import Sampling
from .decoder import DecoderRun
from .sampling import guide, sample
from .stages import Plan, Positions


def decode(
    plan: Plan,
    run: DecoderRun,
    guided: bool,
    sampling: Sampling,
    gumbel: Callable[[int], np.ndarray],
    on_step: Callable[[int, int], None],
) -> list[np.ndarray]:
    """Returns the tokens sampled for each row, int64 [n], without its prime and the end token.

    With `guided` the run has two rows per row of the plan: all conditioned ones, then the same without condition. `gumbel(step)` gives the
    noise of a step, float32 [rows, V]. `on_step(done, total)` is called after each token and may raise to stop.
    """
    rows, V = len(plan.prompts), plan.decoder.vocabulary
    copies = 2 if guided else 1
    total = int(plan.steps.max(initial=0))
    tokens = np.zeros((rows, total), np.int64)
    counts = np.zeros(rows, np.int64)  # tokens each row keeps
    running = plan.steps > 0
    logits = None
    for step in range(total):
        if logits is None:
            logits = run.prefill(plan.prompts * copies, plan.head(0), without_prefix=rows if guided else 0)
        else:
            # a row that has ended keeps its place in the batch: it is fed the zero row and grows no longer
            fed = plan.place(step - 1, tokens[:, step - 1])
            row_ids = np.where(running, fed.rows, plan.decoder.rows["padding"])
            positions = Positions(*(np.tile(part, copies) for part in (row_ids, fed.query, fed.key)))
            logits = run.step(positions, plan.head(step), np.tile(running, copies))
        scores = guide(logits[:rows], logits[rows:], sampling.cond_scale) if guided else logits
        noise = gumbel(step) if sampling.temperature else np.zeros((1, V), np.float32)
        tokens[:, step] = sample(scores, noise, sampling.temperature, sampling.filter_thres, plan.forbid_last(step))
        if plan.end is not None:
            running &= tokens[:, step] != plan.end
        counts[running] = step + 1
        running &= plan.steps > step + 1
        on_step(step + 1, total)
        if not running.any():
            break
    return [row[:count] for row, count in zip(tokens, counts, strict=True)]
