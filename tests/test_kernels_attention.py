"""The attention kernel in Triton's interpreter, against the reference that its ONNX form is tested with.

Two measures. Given what the cache's type can hold, the kernel computes in fp32: values are of order 1, sums have at most 64 terms, and
3e-6 is some twenty roundings, where a wrong key, bias or length is of order 0.1. Given what it cannot, the kernel loses no more than a
plain version in that type, by torch, does; in fp32, where both lose only roundings in another order, at most three times as much.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from support.interpreted import empty, floats, launch

from musiclm_deploy.kernels.attention import reference
from musiclm_deploy.kernels.attention.constants import Parts
from musiclm_deploy.kernels.attention.triton_form import append, attend, merge, nothing

FP32 = 3e-6
CAPACITY, ENTRIES = 13, 6
FAR, PREFIX_KEY = 1 << 40, 1 << 42  # as runtime.stages marks them
DTYPES = {torch.float32: 3.0, torch.float16: 1.0, torch.bfloat16: 1.0}  # of the plain version's error


@triton.jit
def _merged(inputs, sizes: tl.constexpr, out, count, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    b = tl.arange(0, ROWS)[:, None]
    k = tl.arange(0, WIDTH)[None, :]
    there = (b < count) & (k < width)
    tl.store(out + b * width + k, merge(inputs, sizes, nothing(inputs, sizes, b, count), b, k, there), mask=there)


def _moved(array: torch.Tensor, slots: np.ndarray, count: int) -> torch.Tensor:
    """Return `count` slots, of which each row has one."""
    made = torch.full((count, *array.shape[1:]), torch.nan if array.is_floating_point() else -(1 << 50), dtype=array.dtype)
    made[torch.from_numpy(slots)] = array
    return made


class Case:
    """Rows of random queries, keys and values; every row's cache holds NaN where it has no keys yet."""

    def __init__(self, lengths: list[int], heads: int, dim: int, biased: bool, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.lengths, self.heads, self.dim, self.biased = np.array(lengths), heads, dim, biased
        B = len(lengths)
        self.query = rng.standard_normal((B, heads, dim)).astype(np.float32)
        self.keys, self.values = rng.standard_normal((2, B, CAPACITY, dim)).astype(np.float32)
        self.first = rng.standard_normal((B, dim)).astype(np.float32)
        self.table = rng.standard_normal((heads, ENTRIES)).astype(np.float32)
        self.cq = rng.integers(-3, ENTRIES + 3, B) + rng.choice([0, 0, FAR], B)
        self.ck = rng.integers(-3, 3, (B, CAPACITY)) + rng.choice([0, 0, 0, FAR, -FAR, PREFIX_KEY], (B, CAPACITY))
        self.scale = dim**-0.5

    def expected(self, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
        """float64 [B, H, D]"""
        bias = reference.table_bias(self.table, self.cq[:, None], self.ck) if self.biased else None
        return reference.attention(self.query[:, None], keys, values, self.lengths, self.scale, bias)[:, 0]

    def plain(self, dtype: torch.dtype) -> np.ndarray:
        """The same by torch, all of it in `dtype`."""
        query, keys, values = (torch.from_numpy(a).to(dtype) for a in (self.query, self.keys, self.values))
        score = torch.einsum("bhd,btd->bht", query, keys) * self.scale
        if self.biased:
            score += torch.from_numpy(reference.table_bias(self.table, self.cq[:, None], self.ck)[:, :, 0]).to(dtype)
        unused = torch.arange(CAPACITY) >= torch.from_numpy(self.lengths)[:, None]
        weights = score.masked_fill(unused[:, None], float("-inf")).softmax(-1)
        return torch.einsum("bht,btd->bhd", weights, values).double().numpy()

    def run(self, dtype: torch.dtype, splits: int, append: bool = True, residual: bool = False, block: int = 4) -> np.ndarray:
        """float32 [B, H, D] by the kernel; leaves the caches in `self.caches`."""
        B, H, D = self.query.shape
        rows, last = np.arange(B), self.lengths - 1
        old = torch.arange(CAPACITY) < torch.from_numpy(last + (not append))[:, None]
        keys, values = (torch.where(old[..., None], torch.from_numpy(a), torch.nan).to(dtype) for a in (self.keys, self.values))
        key, value = self.keys[rows, last], self.values[rows, last] - (0.5 * self.first if residual else 0)
        projected = np.concatenate([self.query.reshape(B, -1), key, value], axis=1)
        first = np.concatenate([np.full((B, H * D + D), np.nan, np.float32), self.first], axis=1)
        statistics = empty(B, splits, H, 2)
        partial = empty(B, splits, H, D)
        held, slots = B + 1, (rows + 1) % (B + 1)  # rows are in other slots than their numbers
        keys, values, ck = (_moved(one, slots, held) for one in (keys, values, torch.from_numpy(self.ck)))
        arrays = (*map(torch.from_numpy, (slots, self.lengths, self.table, self.cq)), ck)
        launch(
            attend,
            (B, H, splits),
            *(torch.from_numpy(projected), torch.from_numpy(first), keys, values, *arrays, partial, statistics),
            *(projected.shape[1], CAPACITY, ENTRIES, self.scale, H, D),
            *(triton.next_power_of_2(D), block, splits, append, self.biased, residual),
        )
        self.caches = keys[slots], values[slots]
        out = empty(B, H * D)
        powers = triton.next_power_of_2(B), triton.next_power_of_2(H * D)
        launch(_merged, (1,), (partial, statistics), Parts(H, D, splits), out, B, H * D, *powers)
        return out.reshape(B, H, D).numpy()


CASES = [
    ([5, 1, 8], 3, 8, True, 3),
    ([CAPACITY], 8, 64, True, 2),
    ([CAPACITY, 1, CAPACITY - 1, 2], 2, 24, False, 1),
    ([1], 5, 8, True, 4),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("lengths", "heads", "dim", "biased", "splits"), CASES, ids=str)
def test_a_new_position_attends_to_its_row(lengths, heads: int, dim: int, biased: bool, splits: int, dtype: torch.dtype) -> None:
    """Fault: a row reads another's keys, length or stale cache; a split is lost or counted twice; a coordinate clips wrongly; the last
    position cannot be used; the new key is not there to be attended to, or lands elsewhere in the cache; sums in less than fp32."""
    case = Case(lengths, heads, dim, biased)
    out = case.run(dtype, splits)
    held = [torch.from_numpy(a).to(dtype).float().numpy() for a in (case.keys, case.values)]
    np.testing.assert_allclose(out, case.expected(*held), rtol=0, atol=FP32)
    exact = case.expected(case.keys, case.values)
    assert np.abs(out - exact).max() <= DTYPES[dtype] * np.abs(case.plain(dtype) - exact).max() + 1e-7
    for cache, wanted in zip(case.caches, held, strict=True):
        used = np.arange(CAPACITY) < case.lengths[:, None]
        found = cache.float().numpy()
        np.testing.assert_array_equal(found[used], wanted[used])
        assert np.isnan(found[~used]).all()


def test_every_coordinate_clips_as_the_reference_does() -> None:
    """Fault: the cases above never reach an end of the table."""
    distances = np.concatenate([(case.cq[:, None] - case.ck).ravel() for case in (Case(*arguments[:4]) for arguments in CASES)])
    assert distances.min() < -FAR and ((distances < 0) & (distances > -9)).any()
    assert distances.max() > FAR - 9 and ((distances >= ENTRIES) & (distances < 19)).any()


def test_a_row_is_the_same_alone_and_in_a_batch() -> None:
    """Fault: where a row's keys are split depends on its neighbours, and so do its last bits."""
    case = Case([7, 12, 3], 3, 8, True)
    together = case.run(torch.float16, 3)
    for row in range(3):
        alone = Case([7, 12, 3], 3, 8, True)
        for name in ("lengths", "query", "keys", "values", "first", "cq", "ck"):
            setattr(alone, name, getattr(alone, name)[row : row + 1])
        np.testing.assert_array_equal(alone.run(torch.float16, 3)[0], together[row])


def test_values_of_the_first_layer_are_added() -> None:
    """Fault: the value residual is missing, halved twice, or taken from the first layer's keys."""
    case = Case([4, 9], 3, 8, True)
    np.testing.assert_allclose(case.run(torch.float32, 2, residual=True), case.expected(case.keys, case.values), rtol=0, atol=FP32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "dim"), [(3, 20), (1, 8), (8, 64)])
def test_cross_attention_reads_all_its_keys(heads: int, dim: int, dtype: torch.dtype) -> None:
    """Fault: the kernel appends where it must not, or leaves out the last conditioning key; head sizes that no vector divides."""
    case = Case([CAPACITY, CAPACITY], heads, dim, False)
    held = [torch.from_numpy(a).to(dtype).float().numpy() for a in (case.keys, case.values)]
    np.testing.assert_allclose(case.run(dtype, 1, append=False), case.expected(*held), rtol=0, atol=FP32)
    for cache, wanted in zip(case.caches, held, strict=True):
        np.testing.assert_array_equal(cache.float().numpy(), wanted)


def test_large_scores_do_not_overflow() -> None:
    """Fault: exponentials are taken of scores themselves: at 400 they are infinite in fp32."""
    case = Case([11, 2], 3, 8, True)
    case.query *= 400
    np.testing.assert_allclose(case.run(torch.float32, 3), case.expected(case.keys, case.values), rtol=0, atol=400 * FP32)


@pytest.mark.parametrize(("lengths", "positions"), [([1, 6, 4], 4), ([CAPACITY - 1], 2)])
def test_positions_of_a_prompt_are_appended_then_attended(lengths: list[int], positions: int) -> None:
    """Fault: a position that reads another sequence's cache, sees those behind it, or misses those before it that are computed with it."""
    heads, dim, count = 3, 8, len(lengths)
    rows = [Case([length + at for at in range(positions)], heads, dim, True, seed) for seed, length in enumerate(lengths)]
    projected, first, queries = [], [], []
    for case in rows:
        case.keys[:], case.values[:], case.ck[:] = case.keys[0], case.values[0], case.ck[0]  # one sequence
        last = case.lengths - 1
        projected.append(
            np.concatenate([case.query.reshape(positions, -1), case.keys[0, last], case.values[0, last] - 0.5 * case.first], axis=1)
        )
        first.append(np.concatenate([np.full((positions, heads * dim + dim), np.nan, np.float32), case.first], axis=1))
        queries.append(case.cq)
    B, stride = count * positions, (heads + 2) * dim
    slots = torch.arange(count).repeat_interleave(positions)
    keys, values = (torch.full((count, CAPACITY, dim), torch.nan) for _ in range(2))
    for row, case in enumerate(rows):
        before = case.lengths[0] - 1
        keys[row, :before], values[row, :before] = torch.from_numpy(case.keys[0, :before]), torch.from_numpy(case.values[0, :before])
    shared = [floats(np.concatenate(projected)), floats(np.concatenate(first)), keys, values]
    shared += [slots, torch.from_numpy(np.concatenate([case.lengths for case in rows]))]
    launch(append, (B,), *shared, stride, CAPACITY, heads, dim, 8, True)
    arrays = rows[0].table, np.concatenate(queries), np.stack([case.ck[0] for case in rows])
    partial, statistics = empty(B, 2, heads, dim), empty(B, 2, heads, 2)
    for case in rows:
        case.table = rows[0].table
    numbers = stride, CAPACITY, ENTRIES, rows[0].scale, heads, dim, 8, 4, 2, False, True, False
    launch(attend, (B, heads, 2), *shared, *map(torch.from_numpy, arrays), partial, statistics, *numbers)
    out = empty(B, heads * dim)
    launch(_merged, (1,), (partial, statistics), Parts(heads, dim, 2), out, B, heads * dim, triton.next_power_of_2(B), 32)
    expected = np.concatenate([case.expected(case.keys, case.values) for case in rows])
    np.testing.assert_allclose(out.reshape(B, heads, dim).numpy(), expected, rtol=0, atol=FP32)
    for row, case in enumerate(rows):
        np.testing.assert_allclose(keys[row, : case.lengths[-1]], case.keys[0, : case.lengths[-1]], rtol=0, atol=FP32)
        assert keys[row, case.lengths[-1] :].isnan().all()
