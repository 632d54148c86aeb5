"""From logits to a token, against audiolm-pytorch's own sampling on the same noise, and against the distribution it must follow."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from support.seeded import Seeded

from musiclm_deploy.model.upstream import load_upstream
from musiclm_deploy.runtime.sampling import SamplingConfig, guide, sample

load_upstream()
from audiolm_pytorch import audiolm_pytorch as upstream  # noqa: E402 (imports only after load_upstream)


@pytest.mark.parametrize("forbid_last", [False, True])
@pytest.mark.parametrize(("batch", "vocab"), [(1, 2), (5, 7), (1, 64), (3, 1025)])
def test_tokens_are_upstreams(monkeypatch, batch: int, vocab: int, forbid_last: bool) -> None:
    """Fault: k is rounded otherwise, or the filter, the temperature and the noise are applied in another order."""
    rng = np.random.default_rng(vocab)
    for thres, temperature in itertools.product((0.0, 0.1, 1 / 3, 0.5, 0.9, 0.99), (0.05, 0.7, 1.0, 2.5)):
        logits, gumbel = rng.standard_normal((batch, vocab)).astype(np.float32) * 3, rng.gumbel(size=(batch, vocab)).astype(np.float32)
        monkeypatch.setattr(upstream, "gumbel_noise", lambda t, gumbel=gumbel: torch.from_numpy(gumbel))
        scores = torch.from_numpy(logits.copy())
        if forbid_last:
            scores[:, -1] = float("-inf")
        expected = upstream.gumbel_sample(upstream.top_k(scores, thres=thres), temperature=temperature)
        logits.setflags(write=False)  # the caller's logits are the decoder's buffer
        tokens = sample(logits, gumbel, temperature, thres, forbid_last)
        assert tokens.tolist() == expected.tolist(), (thres, temperature)
        assert tokens.dtype == np.int64


@pytest.mark.parametrize("temperature", [0, 0.5, 3.0])
@pytest.mark.parametrize("thres", [0.0, 0.9, 0.999])
def test_the_forbidden_entry_is_never_drawn(temperature: float, thres: float) -> None:
    """Fault: an end token, or a code that does not exist, where it is excluded; here it has all the probability and all the noise."""
    logits, gumbel = np.random.default_rng(0).standard_normal((2, 50, 11)).astype(np.float32)
    logits[:, -1] = gumbel[:, -1] = 1e9
    assert (sample(logits, gumbel, temperature, thres, forbid_last=False) == 10).all()
    assert (sample(logits, gumbel, temperature, thres, forbid_last=True) < 10).all()


def test_greedy_and_the_smallest_k_ignore_noise() -> None:
    """Fault: temperature 0 divides by zero, or a threshold near 1 leaves no entry to draw."""
    logits = np.array([[1, 5, 3, 4], [-7, -9, -8, -6]], np.float32)
    gumbel = np.array([[90, 0, 90, 90], [90, 90, 90, 0]], np.float32)
    assert sample(logits, gumbel, 0, 0.0, forbid_last=False).tolist() == [1, 3]
    assert sample(logits, gumbel, 0, 0.0, forbid_last=True).tolist() == [1, 0]
    for thres in (0.76, 0.99, 1 - 1e-9):
        assert sample(logits, gumbel, 1.0, thres, forbid_last=False).tolist() == [1, 3]


def test_equal_logits_at_the_edge_all_stay() -> None:
    """Fault: which of several equal entries survive top-k depends on a machine's order of sorting, and so does the music."""
    gumbel = np.eye(5, dtype=np.float32)
    assert sample(np.zeros((5, 5), np.float32), gumbel, 1.0, 0.8, forbid_last=False).tolist() == [0, 1, 2, 3, 4]


def test_extreme_temperatures_stay_ordered() -> None:
    """Fault: the smallest temperature that is accepted overflows, and an infinite score wins by its place."""
    temperature = SamplingConfig(temperature=1e-30).temperature
    assert temperature is not None
    logits = np.array([[-50, 0, 1000, 1001, 900]], np.float32)
    with np.errstate(all="raise"):
        assert sample(logits, np.zeros_like(logits), temperature, 0.0, forbid_last=False).tolist() == [3]


def test_guidance() -> None:
    """Fault: the scale moves away from the wrong side. Worked by hand."""
    cond, null = np.array([[3, -1]], np.float32), np.array([[1, 2]], np.float32)
    assert guide(cond, null, 3.0).tolist() == [[7, -7]]
    assert guide(cond, null, 1.0).tolist() == cond.tolist()
    assert guide(cond, null, 0.0).tolist() == null.tolist()
    assert guide(cond, null, 3.0).dtype == np.float32


@pytest.mark.parametrize(("temperature", "thres", "kept"), [(1.0, 0.0, 8), (0.6, 0.0, 8), (2.0, 0.5, 4)])
def test_draws_follow_the_softmax(temperature: float, thres: float, kept: int) -> None:
    """Fault: draws that follow another distribution than softmax(top-k logits / temperature). Fixed seed; chi-square's 0.1 % points."""
    critical = {8: 24.32, 4: 16.27}[kept]  # kept - 1 degrees of freedom
    logits = np.array([0.3, -1.2, 1.5, 0.0, 0.9, -0.4, 1.1, -2.0], np.float32)
    rows = 1000
    source = Seeded([(5, item) for item in range(rows)])
    batch = np.tile(logits, (rows, 1))
    tokens = np.concatenate([sample(batch, source.gumbel("semantic", step, rows, 8), temperature, thres, False) for step in range(32)])

    most_likely = np.argsort(-logits)[:kept]
    odds = np.exp(logits[most_likely].astype(np.float64) / temperature)
    expected = odds / odds.sum() * tokens.size
    drawn = np.bincount(tokens, minlength=8)
    assert drawn.sum() == drawn[most_likely].sum()
    assert ((drawn[most_likely] - expected) ** 2 / expected).sum() < critical


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", (-0.1, 1e-31, float("inf"), float("nan"))),
        ("filter_thres", (-0.01, 1.0, 1, float("nan"))),
        ("cond_scale", (float("inf"), float("-inf"), float("nan"))),
    ],
)
def test_a_setting_that_cannot_work_is_refused(name: str, values: tuple[float, ...]) -> None:
    """Fault: NaN or infinity goes through and comes out as noise; each message names the setting and what it got."""
    for value in values:
        with pytest.raises(ValueError, match=rf"^{name} must be .*, got {value}\.$"):
            SamplingConfig(**{name: value})
    SamplingConfig(temperature=0, filter_thres=0.0, cond_scale=-1.0)
    SamplingConfig(temperature=5.0, filter_thres=0.99, cond_scale=0)
