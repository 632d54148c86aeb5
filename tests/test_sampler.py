"""The native sampler draws numpy's tokens: `runtime/sampling.py` with the noise of `runtime/noise.py`, for equal logits."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from support.native import MISSING

from musiclm_deploy.kernels.decoder_step import interface
from musiclm_deploy.runtime.noise import gumbel
from musiclm_deploy.runtime.sampling import guide, sample

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

STAGE, SEED, ITEM = 2, 0xFEDCBA9876543210, 3


def _native(
    cond: np.ndarray,
    null: np.ndarray | None,
    temperature: float,
    thres: float,
    scale: float,
    forbid: bool,
    number: int,
    noise: np.ndarray | None,
) -> int:
    given = interface.Sequence(seed=SEED, item=ITEM, temperature=temperature, scale=scale)
    V = len(cond)
    given.rules[8], given.rules[11] = STAGE, max(int((1 - thres) * V), 1)
    at = [None if array is None else array.ctypes.data for array in (cond, null, noise)]
    return interface.library().ds_sample(at[0], at[1], V, ctypes.byref(given), forbid, number, at[2])


def _numpy(
    cond: np.ndarray,
    null: np.ndarray | None,
    temperature: float,
    thres: float,
    scale: float,
    forbid: bool,
    number: int,
    noise: np.ndarray | None,
) -> int:
    scores = cond[None] if null is None else guide(cond[None], null[None], scale)
    drawn = gumbel(STAGE, SEED, ITEM, number, 1, len(cond)) if noise is None else noise[None]
    return int(sample(scores, drawn, temperature, thres, forbid)[0])


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
                case = (cond, null if kind % 2 else None, temperature, thres, (3.0, -0.7)[kind // 4], kind in (2, 3, 6, 7), number * 977)
                noise = rng.gumbel(size=vocabulary).astype(np.float32) if kind == 6 else None
                assert _native(*case, noise) == _numpy(*case, noise), (vocabulary, temperature, thres, kind)
