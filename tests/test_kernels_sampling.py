"""The sampling kernel in Triton's interpreter, against the runtime's own functions: both are given the same logits, step by step.

Nothing is approximate: tokens, rows, coordinates and lengths are integers, and must be equal.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from support.interpreted import empty, floats, launch

from musiclm_deploy.kernels.prompt.constants import Position
from musiclm_deploy.kernels.sampling.constants import NEVER, Draw, Place, Progress, Rules, Settings
from musiclm_deploy.kernels.sampling.triton_form import gumbel_noise, kth_largest, sample
from musiclm_deploy.runtime.bundle import Bias, Decoder, Sampling, Step
from musiclm_deploy.runtime.noise import STAGE_IDS, SeededNoise
from musiclm_deploy.runtime.sampling import guide
from musiclm_deploy.runtime.sampling import sample as drawn
from musiclm_deploy.runtime.sequence import Context, Sequence, coarse_sequence, fine_sequence, place_tokens, semantic_sequence
from musiclm_deploy.runtime.sequence import Draw as Drawing

V, DIM, STREAMS, TABLE = 11, 5, 2, 80
_STEP = Step(
    8, 8, STREAMS, value_residual=True, normalised_attention=False, convolution=False, positions=None, precision="fp32", block=0, weights={}
)
_ROWS = {"padding": 0, "start": 1, "semantic": 2}
DECODER = Decoder("", None, "none", True, DIM, 1, 1, 8, V, None, None, _ROWS, None, Bias(9, 1), 99, None, _STEP)
ITEMS = [(2**63 + 5, 0, 0), (7, 1, 40), (2**64 - 1, 3, 9)]  # seed, item and number of the first token of each row


def sequences_of(stage: str, sampling: list[Sampling]) -> list[Sequence]:
    """Return three with other prompts, prefixes and, where the stage allows it, lengths."""
    rng, draws = np.random.default_rng(3), [Drawing(*item, own) for item, own in zip(ITEMS, sampling, strict=True)]
    if stage == "semantic":
        lengths = zip((6, 3, 4), (2, 0, 1), draws, strict=True)
        return [semantic_sequence(DECODER, length, True, rng.integers(0, 10, n), draw, Context()) for length, n, draw in lengths]
    rows = {"padding": 0, "semantic_start": 1, "coarse_start": 2, "fine_start": 3, "semantic": 4, "coarse": 15, "fine": 50}
    if stage == "coarse":
        decoder = replace(DECODER, rows=rows, coarse_quantizers=3)
        lengths = zip((3, 1, 0), (1, 0, 1), draws, strict=True)
        return [
            coarse_sequence(decoder, rng.integers(0, 10, n), 2, 3, True, rng.integers(0, 10, (prefix, 3)), draw, Context())
            for n, prefix, draw in lengths
        ]
    rows = {kind: row for kind, row in rows.items() if "semantic" not in kind}
    decoder = replace(DECODER, rows=rows, coarse_quantizers=3, fine_quantizers=2, bias=Bias(99, 9, frames=4))
    nothing = np.zeros((0, 2), np.int64)
    return [
        fine_sequence(decoder, rng.integers(0, 11, (n, 3)), 2, nothing, draw, Context()) for n, draw in zip((2, 1, 2), draws, strict=True)
    ]


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
def test_tokens_and_positions_are_the_runtimes(stage: str, scale: float | None, dtype: torch.dtype, temperature: float) -> None:
    """Fault: noise of another seed, item, stage or step; top-k or the forbidden entry at the wrong time; an end that does not end its
    sequence or ends its neighbours; settings or progress of another slot; a token that stands elsewhere or is embedded by another row; a
    copy without condition that is fed otherwise; padding that is sampled, or that guidance makes the largest entry; a cache that is written
    beyond its last place."""
    sampling = [Sampling(temperature=temperature, filter_thres=0.6 - 0.1 * row, cond_scale=1.0) for row in range(3)]
    if scale is not None:  # one sequence of three is not guided
        sampling[0], sampling[2] = replace(sampling[0], cond_scale=scale), replace(sampling[2], cond_scale=scale + 0.5)
    sequences = sequences_of(stage, sampling)
    total, rng = max(sequence.steps for sequence in sequences), np.random.default_rng(1)
    slots = np.array([4, 1, 0, 2, 5, 3])  # of rows: three sequences, two passes without condition, padding
    nulls = np.array([3 if sequences[0].guided else 0, 1, 4 if sequences[2].guided else 2, -1, -1, -1])
    logits = rng.standard_normal((total, len(slots), V)).astype(np.float32) * 2
    logits[0, 1, -1] = logits[3, 1, -1] = logits[2, 0, -1] = 9  # some end, where they may
    capacity = max(len(sequence.prompt) + sequence.steps for sequence in sequences) - 1  # the last token is not fed
    settings, factors = np.zeros((6, len(Settings._fields)), np.int64), np.zeros((6, 2), np.float32)
    progress, following = np.zeros((6, 3), np.int64), np.full((6, len(Position._fields)), -1)
    following[:, 0], lengths = np.arange(6), np.ones(6, np.int64)
    for row, sequence in enumerate(sequences):
        draw, rules = sequence.draw, sequence.rules
        seed = int(np.array(draw.seed, np.uint64).view(np.int64))
        known = seed, draw.item, draw.first, sequence.known, sequence.in_frames, sequence.steps
        settings[slots[row]] = Settings(*known, *rules.integers())
        factors[slots[row]] = draw.sampling.cond_scale, temperature
        progress[slots[row]] = Progress(0, 1, 0)
        lengths[row] = lengths[nulls[row]] = len(sequence.prompt)
    told = [torch.from_numpy(array) for array in (slots, nulls, settings, factors, progress)]
    ring, table = torch.full((6, total), -1), floats(rng.standard_normal((TABLE, DIM)), dtype)
    state = [
        torch.from_numpy(following),
        torch.from_numpy(lengths),
        torch.full((6,), -1),
        torch.full((6, capacity), -1),
        torch.full((6,), -1),
    ]
    going, made, place = [True] * 3, [list[int]() for _ in sequences], Position(*range(len(Position._fields)))
    for step in range(total):
        streams, before = empty(6, STREAMS, DIM), lengths.copy()
        arrays = torch.from_numpy(logits[step]), *told, ring, table, *state, streams
        launch(sample, (6,), *arrays, total, capacity, Draw(V, 4, DIM, STREAMS, 4), len(place), place)
        grows = np.zeros(6, np.int64)
        for row, sequence in enumerate(sequences):
            token = expected_token(sequence, step, logits[step, row], logits[step, nulls[row]])
            if going[row] and token != sequence.rules.end:
                made[row].append(token)
            going[row] = going[row] and token != sequence.rules.end and len(made[row]) < sequence.steps
            if not going[row]:
                continue
            fed = place_tokens(sequence.rules.place, sequence.known + step, np.array([token]))
            for one in {row, int(nulls[row])}:
                grows[one] = 1
                where = Position(int(slots[one]), int(before[one]) + 1, int(fed.ids[0]), int(fed.query[0]))
                assert where[1:] == tuple(following[slots[one], 1:].tolist())
                assert where[1:] == (lengths[one], int(state[4][one]), int(state[2][one]))
                assert int(state[3][slots[one], before[one]]) == fed.key[0]
                assert torch.equal(streams[one], table.float()[where.embedding_id].repeat(STREAMS, 1))
        np.testing.assert_array_equal(lengths - before, grows)
        assert streams[5].isnan().all() and (streams[3:5].isnan().all() == (scale is None))
    assert not progress[slots[:3], 1].any() and not progress[slots[3:]].any()
    for row in range(3):
        assert ring[slots[row], : progress[slots[row], 2]].tolist() == made[row]
    ended = [len(tokens) < sequence.steps for tokens, sequence in zip(made, sequences, strict=True)]
    assert any(ended) == (stage != "fine") and not all(ended), ended


def expected_token(sequence: Sequence, step: int, logits: np.ndarray, null: np.ndarray) -> int:
    """Return the token that the runtime's own functions draw."""
    draw = sequence.draw
    scores = guide(logits, null, draw.sampling.cond_scale) if sequence.guided else logits
    noise = SeededNoise(sequence.rules.stage, draw.seed, draw.item, V)(draw.first + step)
    return int(drawn(scores[None], noise[None], draw.sampling.temperature, draw.sampling.filter_thres, sequence.forbids_end(step))[0])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_row_of_a_real_vocabulary(temperature: float) -> None:
    """Fault: entries beyond the first 1,024, or of another row, are left out of top-k, noise or argmax. The best entry is the last one."""
    size, seed, place = 1025, 11, Position(*range(len(Position._fields)))
    logits = np.random.default_rng(2).standard_normal((1, size)).astype(np.float32)
    logits[0, -1] = 9
    rules = Rules(Place(0, 0, 1, 0, 1, 1, 0, 0), STAGE_IDS["semantic"], NEVER, -1, max(int((1 - 0.9) * size), 1))
    numbers = [torch.zeros(1, dtype=torch.int64) for _ in range(5)]
    slots, nulls, lengths, query, ids = numbers
    told = torch.tensor([[seed, 0, 3, 0, 0, 9, *rules.integers()]]), floats(np.array([[1.0, temperature]])), torch.tensor([[0, 1, 0]])
    tokens, key = torch.full((1, 4), -1), torch.full((1, 2), -1)
    arrays = floats(logits), slots, nulls, *told, tokens, floats(np.zeros((size, DIM))), torch.zeros((1, 4), dtype=torch.int64)
    launch(sample, (1,), *arrays, lengths, query, key, ids, empty(1, STREAMS, DIM), 4, 2, Draw(size, 512, DIM, STREAMS, 8), 4, place)
    gumbel = SeededNoise(STAGE_IDS["semantic"], seed, 0, size)(3)[None]
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
    expected = [
        SeededNoise(STAGE_IDS["fine"], seed, item, vocabulary)(step) for (seed, item, _), step in zip(ITEMS, steps.tolist(), strict=True)
    ]
    seeds = np.array([seed for seed, _, _ in ITEMS], np.uint64).view(np.int64)
    items = np.array([item for _, item, _ in ITEMS])
    out = empty(3, vocabulary)
    arrays, fours = (torch.from_numpy(a) for a in (seeds, items, steps)), triton.next_power_of_2(-(-vocabulary // 4))
    launch(_noise, (3,), *arrays, out, STAGE_IDS["fine"], vocabulary, Draw(vocabulary, fours, 1, 1, 1), 4 * fours)
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
