"""The decode loop, one for all stages: sample a token for every row, feed it back, until every row has its tokens or has ended.

In: a plan, a run, noise, sampling settings. Out: each row's tokens. It reads no model and no file.
A native step of one row takes less than a millisecond, so whatever does not depend on the tokens is computed for all steps at once.
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
    gumbel: Callable[[int, np.ndarray], np.ndarray],
    on_step: Callable[[int, int], None],
) -> list[np.ndarray]:
    """Returns the tokens sampled for each row, int64 [n], without its prime and the end token.

    With `guided` the run has two rows per row of the plan: all conditioned ones, then the same without condition. `gumbel(step, rows)`
    gives the noise of a step for these rows of the plan, int64 [n], as float32 [n, V]. `on_step(done, total)` is called after each token
    and may raise to stop. A row that has ended is not sampled any more; when half of the run's rows have ended they leave it.
    """
    at_most, total = plan.steps.tolist(), int(plan.steps.max(initial=0))
    every_step = np.arange(total)[:, None]
    places = plan.place(every_step, np.zeros((total, len(plan.prompts)), np.int64))  # of token 0; token t's row in the table is t further
    forbidden = plan.forbid_last(every_step)
    tokens: list[list[int]] = [[] for _ in plan.prompts]
    held = np.arange(len(plan.prompts))  # rows of the plan that the run computes
    live = np.flatnonzero(plan.steps > 0)  # and those that still get tokens
    grows = np.isin(held, live)  # one for each that is held
    all_grow = bool(grows.all())
    logits, sampled = np.zeros(0), live

    def both(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array, array]) if guided else array

    for step in range(total):
        if step == 0:
            logits = run.prefill(plan.prompts * (2 if guided else 1), plan.head(0), without_prefix=len(held) if guided else 0)
        else:
            if 2 * len(live) <= len(held):
                run.keep(both(grows))
                places, forbidden = Positions(*(part[:, grows] for part in (places.rows, places.query, places.key))), forbidden[:, grows]
                held, grows, all_grow = live, np.ones(len(live), bool), True
            if all_grow:
                row_ids = places.rows[step - 1] + sampled
            else:
                row_ids = np.full(len(held), plan.decoder.rows["padding"])  # what a row is fed that has ended and is not dropped yet
                row_ids[grows] = places.rows[step - 1, grows] + sampled
            fed = Positions(both(row_ids), both(places.query[step - 1]), both(places.key[step - 1]))
            logits = run.step(fed, plan.head(step), None if all_grow else both(grows))
        scores = guide(logits[: len(held)], logits[len(held) :], sampling.cond_scale) if guided else logits
        scores, forbid_last = (scores, forbidden[step]) if all_grow else (scores[grows], forbidden[step, grows])
        noise = gumbel(step, live) if sampling.temperature else np.zeros((1, scores.shape[1]), np.float32)
        sampled = sample(scores, noise, sampling.temperature, sampling.filter_thres, forbid_last)
        goes_on = []
        for row, token in zip(live.tolist(), sampled.tolist(), strict=True):
            if token != plan.end:
                tokens[row].append(token)
            goes_on.append(token != plan.end and len(tokens[row]) < at_most[row])
        on_step(step + 1, total)
        if not all(goes_on):
            live, sampled = live[goes_on], sampled[goes_on]
            grows, all_grow = np.isin(held, live), False
            if not len(live):
                break
    return [np.array(row, np.int64) for row in tokens]
