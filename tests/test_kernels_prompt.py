"""The kernel that begins a list over the positions of prompts, in Triton's interpreter. Nothing is computed: all must be equal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.interpreted import empty, floats, launch

from musiclm_deploy.kernels.prompt.triton_form import embed

CAPACITY, TABLE, FAR = 8, 9, 1 << 40


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("positions", "streams", "dim"), [(4, 2, 5), (1, 4, 17)])
def test_rounds_go_through_the_prompts(positions: int, streams: int, dim: int, dtype: torch.dtype) -> None:
    """Fault: a position of another sequence or round; a stream left out."""
    rng = np.random.default_rng(0)
    table = floats(rng.standard_normal((TABLE, dim)), dtype)
    ids = torch.from_numpy(rng.integers(0, TABLE, (2, CAPACITY)))
    coordinates = torch.from_numpy(rng.integers(-3, 3, (2, CAPACITY)) + rng.choice([0, FAR], (2, CAPACITY)))
    lengths = torch.arange(1 - positions, 1).repeat(2)
    query, rows = torch.zeros(2, 2 * positions, dtype=torch.int64)
    out = empty(2 * positions, streams, dim)
    wanted = table[ids].float()
    for first in range(0, CAPACITY, positions):
        now = slice(first, first + positions)
        launch(embed, (2 * positions,), table, ids, coordinates, lengths, query, rows, out, CAPACITY, positions, dim, streams, 4)
        for stream in range(streams):
            assert torch.equal(out[:, stream], wanted[:, now].reshape(-1, dim))
        assert torch.equal(query, coordinates[:, now].reshape(-1)) and torch.equal(rows, ids[:, now].reshape(-1))
        assert lengths.tolist() == 2 * list(range(first + 1, first + positions + 1))
