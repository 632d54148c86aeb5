"""The kernel that tells rows where they stand, in Triton's interpreter. Nothing is computed: all must be equal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.interpreted import empty, floats, launch

from musiclm_deploy.kernels.prompt.constants import Position
from musiclm_deploy.kernels.prompt.triton_form import embed

TABLE, FAR = 9, 1 << 40


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("streams", "dim"), [(2, 5), (4, 17)])
def test_rows_stand_where_they_are_told(streams: int, dim: int, dtype: torch.dtype) -> None:
    """Fault: a position of another row, slot or number; a stream left out."""
    rng, at = np.random.default_rng(0), [4, 0, 4, 2]
    table = floats(rng.standard_normal((TABLE, dim)), dtype)
    every = [Position(slot, 3 * slot + 1, (5 * slot + 2) % TABLE, slot - FAR) for slot in range(5)]
    told = torch.full((4, 4), -1)
    slots, lengths, query, ids = told
    out = empty(4, streams, dim)
    launch(embed, (4,), table, torch.tensor(every), torch.tensor(at), slots, lengths, query, ids, out, dim, streams, 4)
    for row, number in enumerate(at):
        assert Position(*(int(one[row]) for one in (slots, lengths, ids, query))) == every[number]
        assert torch.equal(out[row], table[every[number].embedding_id].float().repeat(streams, 1))
