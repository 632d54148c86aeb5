"""The decode loop on a device: launches run ahead of the host, tokens come back some at a time, and no step waits for one.

In: a stage on a device, a plan, its conditioning, what its rows draw. Out: each row's tokens, those of `runtime.loop` on the same noise.
Prompts, coordinates and lengths are uploaded once. The prompt is fed several positions of every row at a time; then every token is one
replay of the launches of its output projection, at whose end `sample` leaves what the next one begins with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...kernels.sampling.constants import ALWAYS, NEVER, PLAN, STATE, Place, Rules
from ..bundle import Sampling
from ..noise import STAGE_IDS
from ..stages import PREFIX_KEY, Plan
from .model import DeviceModel, Lane


def decode(
    model: DeviceModel,
    plan: Plan,
    context: dict[str, np.ndarray],
    guided: bool,
    sampling: Sampling,
    draws: Sequence[tuple[int, int, int]],
    on_step: Callable[[int, int], None],
) -> list[np.ndarray]:
    """Returns the tokens sampled for each row, int64 [n], without its prime and the end token.

    context: outputs of the stage's context graph, for every sequence: with `guided` first all rows, then the same without condition.
    draws: (seed, item, first) of each row: what its noise is drawn by, and the number of its first token there. on_step(done, total) is
    called after each chunk of tokens and may raise to stop.
    """
    total, rows, copies = int(plan.steps.max(initial=0)), len(plan.prompts), 2 if guided else 1
    if not total:
        return [np.zeros(0, np.int64)] * rows
    prefix = context.get("prefix_embeddings")
    told = 0 if prefix is None else prefix.shape[1]
    keys = 0 if prefix is not None or not context else context["context.0.value"].shape[1]
    lane = model.lane(rows * copies, told + plan.capacity, keys, told, copies)
    _upload(model, lane, plan, sampling, copies, context, draws)
    if told:
        model.driver.replay(lane.recorded["prefix"])
    rounds = -(-(max(len(prompt.rows) for prompt in plan.prompts) - 1) // lane.positions)
    model.driver.replay(*[lane.recorded["prompt"]] * rounds, lane.recorded["begin"])

    chunks: list[np.ndarray] = []
    kept = np.zeros(rows, np.int64)
    coming = None  # the chunk before the one that runs
    try:
        for first in (*range(0, total, model.ring), total):
            model.driver.replay(*(lane.steps[plan.head(step)] for step in range(first, min(first + model.ring, total))))
            before, coming = coming, model.driver.download([lane.buffers["tokens"], lane.buffers["states"]]) if first < total else None
            if before is not None:
                tokens, states = before()
                chunks.append(tokens)
                kept = states[:, 2]
                on_step(int(states[0, 0]), total)
                if not states[:, 1].any():
                    break
    finally:
        if coming is not None:  # memory of the host must stay while something is on its way to it
            coming()
    return [row[:count] for row, count in zip(np.concatenate(chunks, axis=1), kept, strict=True)]


def _upload(
    model: DeviceModel,
    lane: Lane,
    plan: Plan,
    sampling: Sampling,
    copies: int,
    context: dict[str, np.ndarray],
    draws: Sequence[tuple[int, int, int]],
) -> None:
    batch, rows = lane.batch, len(plan.prompts)
    ids, query, key = np.zeros((3, batch.sequences, batch.capacity), np.int64)
    first = np.repeat([batch.prefix, 0], rows)[: batch.sequences]  # where a sequence's positions begin: the last copy has no prefix
    for sequence, prompt in enumerate(plan.prompts * copies):
        here = slice(first[sequence], first[sequence] + len(prompt.rows))
        ids[sequence, here], query[sequence, here], key[sequence, here] = prompt.rows, prompt.query, prompt.key
        key[sequence, : first[sequence]] = PREFIX_KEY
    plans, states = np.zeros((rows, PLAN), np.int64), np.zeros((rows, STATE), np.int64)
    plans[:, :3] = draws
    plans[:, 3], plans[:, 4], plans[:, 5] = plan.primed, plan.primed * plan.counts_prime, plan.steps
    states[:, 1] = plan.steps > 0
    arrays = {"prompt.ids": ids, "prompt.coordinates": query, "key_coordinates": key, "plans": plans, "states": states}
    arrays["integers"] = np.array(rules_of(plan, sampling).integers())
    arrays["factors"] = np.array([sampling.cond_scale, sampling.temperature], np.float32)
    # a launch adds the positions that it feeds to a length before it reads it
    arrays["prompt.lengths"] = (first[:, None] + np.arange(1 - lane.positions, 1)).ravel()
    arrays["lengths"] = first + [len(prompt.rows) - 1 for prompt in plan.prompts * copies]
    if batch.prefix:
        told = model.keys_and_values(context["prefix_embeddings"].reshape(rows * batch.prefix, -1))
        arrays |= {f"prefix.{layer}": array for layer, array in enumerate(told)}
        arrays["prefix.lengths"] = np.tile(np.arange(1, batch.prefix + 1), rows)
    elif batch.context:
        for name, array in context.items():
            arrays[name] = model.context_array(name, array)
    for name, array in arrays.items():
        model.driver.upload(lane.buffers[name], np.ascontiguousarray(array))


def rules_of(plan: Plan, sampling: Sampling) -> Rules:
    """What `sample` is told of a plan."""
    V = plan.decoder.vocabulary
    frame = plan.frame_tokens
    if plan.stage == "semantic":
        frame = NEVER if plan.end_allowed else ALWAYS
    elif plan.end is not None and not plan.end_allowed:
        frame = ALWAYS
    end = -1 if plan.end is None else plan.end
    return Rules(place_of(plan), STAGE_IDS[plan.stage], frame, end, max(int((1 - sampling.filter_thres) * V), 1))


def place_of(plan: Plan) -> Place:
    """Where the plan's tokens stand, as numbers: found by placing a token on each quantizer and one on the first of the next round."""
    Q = plan.quantizers
    placed = plan.place(np.arange(Q + 1)[:, None], np.zeros((Q + 1, len(plan.prompts)), np.int64))
    rows, query, key = placed.rows[:, 0].tolist(), placed.query[:, 0].tolist(), placed.key[:, 0].tolist()
    stride = key[Q] - key[0]
    origin = key[0] - int(plan.primed[0]) // Q * stride
    return Place(rows[0], rows[1] - rows[0] if Q > 1 else 0, Q, origin, Q, stride, query[0] - key[0], plan.decoder.rows["padding"])
