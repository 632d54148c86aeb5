"""The sampling kernel in Triton's interpreter, against the runtime's own decode loop: both are given the same logits, step by step.

Nothing is approximate: tokens, rows, coordinates and lengths are integers, and must be equal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from support.interpreted import empty, floats, launch

from musiclm_deploy.kernels.sampling.constants import NEVER, Draw, Place, Rules
from musiclm_deploy.kernels.sampling.triton_form import gumbel_noise, kth_largest, sample
from musiclm_deploy.runtime.bundle import Bias, Decoder, Sampling, Step
from musiclm_deploy.runtime.loop import decode
from musiclm_deploy.runtime.noise import STAGE_IDS, PhiloxNoise
from musiclm_deploy.runtime.sampling import sample as drawn
from musiclm_deploy.runtime.stages import FAR, Plan, plan_coarse, plan_fine, plan_semantic

V, DIM, STREAMS, TABLE = 11, 5, 2, 80
_STEP = Step(dim_head=8, inner=8, streams=STREAMS, value_residual=True, precision="fp32", block=0, weights={})
DECODER = Decoder("", None, "none", True, DIM, 1, 1, 8, V, 3, 2, {"padding": 0, "start": 1, "semantic": 2}, Bias(9, 1), 99, _STEP)
ITEMS = [(2**63 + 5, 0), (7, 1), (2**64 - 1, 3)]
FIRST = np.array([0, 40, 9])  # index of each row's first token in its item's whole stage


def plan_of(stage: str) -> Plan:
    rng = np.random.default_rng(3)
    if stage == "semantic":
        return plan_semantic(DECODER, 3, np.array([6, 3, 4]), True, primes=[rng.integers(0, 10, n) for n in (2, 0, 1)])
    rows = {"padding": 0, "semantic_start": 1, "coarse_start": 2, "fine_start": 3, "semantic": 4, "coarse": 15, "fine": 50}
    if stage == "coarse":
        decoder = Decoder(**{**vars(DECODER), "rows": rows})
        primes = [rng.integers(0, 10, (n, 3)) for n in (1, 0, 1)]
        return plan_coarse(decoder, [rng.integers(0, 10, n) for n in (3, 1, 0)], 2, 3, True, primes)
    decoder = Decoder(**{**vars(DECODER), "rows": {k: v for k, v in rows.items() if "semantic" not in k}, "bias": Bias(99, 9, frames=4)})
    return plan_fine(decoder, [rng.integers(0, 11, (n, 3)) for n in (2, 1, 2)], 2, None)


@dataclass
class Scripted:
    """A decoder whose logits are known; it notes what it is fed."""

    logits: np.ndarray  # [steps, rows, V]
    held: np.ndarray  # the rows that have not been dropped
    fed: list[tuple[np.ndarray, ...]] = field(default_factory=list)

    def prefill(self, prompts, head: int, without_prefix: int = 0) -> np.ndarray:
        return self.logits[0]

    def keep(self, rows: np.ndarray) -> None:
        self.held = self.held[rows]

    def step(self, positions, head: int, growing) -> np.ndarray:
        growing = np.ones(len(self.held), bool) if growing is None else growing
        self.fed.append((self.held, positions.rows, positions.query, positions.key, growing))
        return self.logits[len(self.fed), self.held]


def place_of(plan: Plan) -> Place:
    rows, shift = plan.decoder.rows, plan.bias_shift
    if plan.stage == "semantic":
        return Place(rows["semantic"], V, 1, 1, 1, 1, shift, 0)
    if plan.stage == "coarse":
        return Place(rows["coarse"], V - 1, 3, FAR + 1, 1, 1, shift, 0)
    return Place(rows["fine"], V, 2, 3, 2, 2 * 5 - 1, shift, 0)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(
    ("stage", "scale", "dtype"),
    [
        ("semantic", None, torch.float32),
        ("coarse", 2.5, torch.float16),
        ("coarse", 0.0, torch.float32),
        ("coarse", -1.5, torch.float32),
        ("fine", None, torch.bfloat16),
    ],
)
def test_tokens_and_positions_are_the_loops(stage: str, scale: float | None, dtype: torch.dtype, temperature: float) -> None:
    """Fault: noise of another seed, item, stage or step; top-k or the forbidden entry at the wrong time; an end that does not end its row
    or ends its neighbours; a token that stands elsewhere or is embedded by another row; a copy without condition that is fed otherwise;
    padding that guidance makes the largest entry; a cache that is written beyond its last place."""
    guided = scale is not None
    plan, copies, B = plan_of(stage), 1 + guided, 3
    total = int(plan.steps.max())
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((total, copies * B, V)).astype(np.float32) * 2
    logits[0, 1, -1] = logits[3, 1, -1] = logits[2, 0, -1] = 9  # some rows end, where they may
    sampling = Sampling(temperature=temperature, filter_thres=0.6, cond_scale=scale if guided else 1.0)
    noise, script = PhiloxNoise(ITEMS), Scripted(logits, np.arange(copies * B))
    run: Any = script
    expected = decode(plan, run, guided, sampling, lambda step, rows: noise.rows(stage, rows, FIRST[rows] + step, V), lambda *_: None)

    plans = np.zeros((B, 6), np.int64)
    plans[:, 0] = np.array([seed for seed, _ in ITEMS], np.uint64).view(np.int64)
    plans[:, 1], plans[:, 2], plans[:, 3] = [item for _, item in ITEMS], FIRST, plan.primed
    plans[:, 4], plans[:, 5] = plan.primed * plan.counts_prime, plan.steps
    states = torch.from_numpy(np.stack([np.zeros(B), plan.steps > 0, np.zeros(B)], axis=1).astype(np.int64))
    frame = plan.frame_tokens if stage != "semantic" else NEVER
    before = np.array([len(prompt.rows) for prompt in plan.prompts] * copies)
    lengths, tokens = torch.from_numpy(before.copy()), torch.full((B, total), -1)
    capacity = int((before[:B] + plan.steps).max()) - 1  # the last token is not fed
    query, ids, key = torch.full((copies * B,), -1), torch.full((copies * B,), -1), torch.full((copies * B, capacity), -1)
    rules = Rules(place_of(plan), STAGE_IDS[stage], frame, -1 if plan.end is None else plan.end, 4)
    integers = torch.tensor(rules.integers())
    table = floats(rng.standard_normal((TABLE, DIM)), dtype)
    for step in range(len(script.fed) + 1):
        streams, old = empty(copies * B, STREAMS, DIM), lengths.clone()
        launch(
            sample,
            (B,),
            *(
                torch.from_numpy(logits[step]),
                torch.from_numpy(plans),
                states,
                tokens,
                table,
                lengths,
                query,
                key,
                ids,
                streams,
                integers,
                floats(np.array([sampling.cond_scale, temperature])),
            ),
            *(B, total, capacity),
            Draw(V, 4, copies, DIM, STREAMS, 4),
        )
        if step == len(script.fed):
            break
        held, rows, at_query, at_key, growing = script.fed[step]
        np.testing.assert_array_equal((lengths - old)[held], growing)
        np.testing.assert_array_equal(query[held], at_query)
        np.testing.assert_array_equal(ids[held], rows)
        np.testing.assert_array_equal(key[held, lengths[held] - 1], at_key)
        np.testing.assert_array_equal(streams[held], np.repeat(table.float()[rows][:, None], STREAMS, axis=1))
    assert not states[:, 1].any()
    for row in range(B):
        np.testing.assert_array_equal(tokens[row, : states[row, 2]], expected[row])
    ended = [len(row) < steps for row, steps in zip(expected, plan.steps, strict=True)]
    assert any(ended) == (stage == "semantic" or scale == 2.5) and not all(ended), ended
    assert stage != "coarse" or capacity == lengths.max()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_row_of_a_real_vocabulary(temperature: float) -> None:
    """Fault: entries beyond the first 1,024, or of another row, are left out of top-k, noise or argmax. The best entry is the last one."""
    size, seed = 1025, 11
    logits = np.random.default_rng(2).standard_normal((1, size)).astype(np.float32)
    logits[0, -1] = 9
    rules = Rules(Place(0, 0, 1, 0, 1, 1, 0, 0), STAGE_IDS["semantic"], NEVER, -1, max(int((1 - 0.9) * size), 1))
    numbers = (torch.zeros(1, dtype=torch.int64) for _ in range(3))
    tokens, plans = torch.full((1, 4), -1), torch.tensor([[seed, 0, 3, 0, 0, 9]])
    arrays = (floats(logits), plans, torch.tensor([[0, 1, 0]]), tokens, floats(np.zeros((size, DIM))), *numbers)
    lengths, query, ids = arrays[5:]
    key, streams = torch.full((1, 2), -1), empty(1, STREAMS, DIM)
    told = torch.tensor(rules.integers()), floats(np.array([1.0, temperature]))
    launch(sample, (1,), *arrays[:5], lengths, query, key, ids, streams, *told, 1, 4, 2, Draw(size, 512, 1, DIM, STREAMS, 8))
    gumbel = PhiloxNoise([(seed, 0)]).rows("semantic", np.array([0]), np.array([3]), size)
    assert tokens[0, 0] == drawn(logits, gumbel, temperature, 0.9, False)[0]


@triton.jit
def _noise(seeds, items, steps, out, stage, vocabulary, sizes: tl.constexpr, PADDED: tl.constexpr):
    b, v = tl.program_id(0), tl.arange(0, PADDED)
    gumbel = gumbel_noise(tl.load(seeds + b), tl.load(items + b), stage, tl.load(steps + b), sizes)
    tl.store(out + b * vocabulary + v, gumbel, mask=v < vocabulary)


@pytest.mark.parametrize("vocabulary", [1, 6, 37])
def test_noise_is_the_runtimes(vocabulary: int) -> None:
    """Fault: another bit of Philox, words in another order, a seed cut to 32 bits, logarithms in fp32. Equal to the last bit."""
    steps = np.array([0, 31, 5_000_000])
    expected = PhiloxNoise(ITEMS).rows("fine", np.arange(3), steps, vocabulary)
    seeds = np.array([seed for seed, _ in ITEMS], np.uint64).view(np.int64)
    items = np.array([item for _, item in ITEMS])
    out = empty(3, vocabulary)
    arrays, fours = (torch.from_numpy(a) for a in (seeds, items, steps)), triton.next_power_of_2(-(-vocabulary // 4))
    launch(_noise, (3,), *arrays, out, STAGE_IDS["fine"], vocabulary, Draw(vocabulary, fours, 1, 1, 1, 1), 4 * fours)
    np.testing.assert_array_equal(out.numpy(), expected)


@triton.jit
def _kth(scores, out, count, k, SIZE: tl.constexpr):
    v = tl.arange(0, SIZE)
    found = kth_largest(tl.load(scores + v, mask=v < count, other=float("nan")), v < count, k)
    tl.store(out + tl.arange(0, 1), found)


def test_the_kth_largest_is_found_among_all_floats() -> None:
    """Fault: negative numbers in reverse, infinity or zero out of order, padding counted, an edge of k."""
    scores = np.array([3, -2, 0, -0.0, 1e-40, -1e-40, np.inf, -np.inf, -np.inf, 3, -7.25, 1e30], np.float32)
    for k in (1, 2, 3, 6, 7, 8, 10, 11, 12):
        out = empty(1)
        launch(_kth, (1,), torch.from_numpy(scores), out, len(scores), k, 16)
        assert out.item() == np.sort(scores)[-k], k
