"""The native sampler draws numpy's tokens: `runtime/sampling.py` with the noise of `runtime/noise.py`, for equal logits."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np
import pytest
from support.native import MISSING

from musiclm_deploy.kernels.decoder_step import interface
from musiclm_deploy.runtime.noise import gumbel
from musiclm_deploy.runtime.sampling import guide, sample

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

STAGE, SEED, ITEM = 2, 0xFEDCBA9876543210, 3


class Case(NamedTuple):
    cond: np.ndarray
    null: np.ndarray | None
    temperature: float
    thres: float
    scale: float
    forbid: bool
    number: int  # of the step
    noise: np.ndarray | None  # the caller's; None: the seed's


def _native(case: Case) -> int:
    given = interface.Sequence(seed=SEED, item=ITEM, temperature=case.temperature, scale=case.scale)
    V = len(case.cond)
    given.rules[8], given.rules[11] = STAGE, max(int((1 - case.thres) * V), 1)
    at = [None if array is None else array.ctypes.data for array in (case.cond, case.null, case.noise)]
    return interface.library().ds_sample(at[0], at[1], V, ctypes.byref(given), case.forbid, case.number, at[2])


def _numpy(case: Case) -> int:
    scores = case.cond[None] if case.null is None else guide(case.cond[None], case.null[None], case.scale)
    drawn = gumbel(STAGE, SEED, ITEM, case.number, 1, len(case.cond)) if case.noise is None else case.noise[None]
    return int(sample(scores, drawn, case.temperature, case.thres, case.forbid)[0])


@pytest.mark.parametrize("vocabulary", [1, 2, 14, 513, 1025])
def test_it_draws_numpys_tokens(vocabulary: int) -> None:
    """Fault: fused guidance, another k-th score, a tie that goes to another entry, other noise, an entry that is not forbidden."""
    rng, number = np.random.default_rng(vocabulary), 0
    for temperature in (0.0, 1e-30, 0.3, 1.0, 7.5):
        for thres in (0.0, 0.1, 0.5, 0.9, 0.999):
            for kind in range(8):
                number += 1
                cond, null = rng.standard_normal((2, vocabulary), np.float32) * np.float32(3)
                if kind in (1, 2):  # ties, of both zeros too
                    cond, null = np.round(cond), np.round(null) * -0.0
                if kind == 3:
                    cond[rng.random(vocabulary) < 0.5] = -np.inf
                if kind == 4:
                    cond[:] = -np.inf
                if kind == 5:
                    cond *= np.float32(1e-38)  # without the leading bit
                noise = rng.gumbel(size=vocabulary).astype(np.float32) if kind == 6 else None
                guided, forbid = null if kind % 2 else None, kind in (2, 3, 6, 7)
                case = Case(cond, guided, temperature, thres, (3.0, -0.7)[kind // 4], forbid, number * 977, noise)
                assert _native(case) == _numpy(case), (vocabulary, temperature, thres, kind)
