"""MuLaN's losses against musiclm-pytorch itself: equal weights and batches must give equal losses and equal gradients everywhere.

fp32. Losses are of the order of one to a hundred and gradients up to that size, so that the tolerance is relative to the largest entry.
"""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from support.contrastive import HIERARCHIES, LOSSES, assert_equal, assert_same_step
from support.mulan import build, pair, tokens, upstream, waves
from torch import Tensor
from torch.nn import functional as F

import musiclm_deploy.model as ours
from musiclm_deploy.model.contrastive import MultiLayerContrastiveLoss, SigmoidContrastiveLearning, SoftmaxContrastiveLearning


@pytest.mark.parametrize("loss, hierarchy", [*product(LOSSES, HIERARCHIES)])
def test_loss_and_gradients_equal_upstreams(loss: str, hierarchy: str) -> None:
    """A pair left in or out of a sum, a mean for a sum, another layer's latents, a parameter that the loss does not reach."""
    theirs, mine = pair("magnitudes", **LOSSES[loss], **HIERARCHIES[hierarchy])
    assert_same_step(theirs, mine)


@pytest.mark.parametrize("variant", ["default", "magnitudes"])
def test_all_layers_equal_upstreams(variant: str) -> None:
    """The last layer among the others, or the first one missing."""
    theirs, mine = pair(variant)
    wavs, texts = waves(3, 901), tokens(3, 7)
    for name, argument in (("get_audio_latents", wavs), ("get_text_latents", texts)):
        expected, actual = getattr(theirs, name)(argument, return_all_layers=True), getattr(mine, name)(argument, return_all_layers=True)
        assert actual[1].shape == expected[1].shape
        for one, other in zip(actual, expected, strict=True):
            assert_equal(one, other, name)
    with pytest.raises(ValueError, match="depth of 2 and more"):
        ours.TextTransformer(dim=8, depth=1, num_tokens=9)(torch.ones(1, 2, dtype=torch.long), return_all_layers=True)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("name", ["SoftmaxContrastiveLearning", "SigmoidContrastiveLearning", "MultiLayerContrastiveLoss"])
def test_constructors_equal_upstreams(name: str, layers: int) -> None:
    """Another name, shape, order or fresh value of what a loss learns."""
    arguments: dict[str, Any] = dict(layers=layers) | (dict(audio_dim=6, text_dim=5, dim_latent=4) if name.startswith("Multi") else {})
    theirs, mine = getattr(upstream.musiclm_pytorch, name)(**arguments), getattr(ours.contrastive, name)(**arguments)
    expected, actual = theirs.state_dict(), mine.state_dict()
    assert list(actual) == list(expected)
    for key, tensor in expected.items():
        assert actual[key].shape == tensor.shape and actual[key].dtype == tensor.dtype
        assert "latent_" in key or torch.equal(actual[key], tensor), key


def latents(batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Unit latents, each text near its clip."""
    generator = torch.Generator().manual_seed(1)
    audio = torch.randn(batch, 16, generator=generator, dtype=torch.float64)
    text = audio + torch.randn(batch, 16, generator=generator, dtype=torch.float64)
    audio, text = (F.normalize(t, dim=-1).to(dtype).requires_grad_() for t in (audio, text))
    return audio, text


@pytest.mark.parametrize("temperature", [10, 100, 400])
@pytest.mark.parametrize("decoupled", [False, True])
def test_softmax_holds_at_high_temperatures(temperature: float, decoupled: bool) -> None:
    """Infinite losses in fp32 from similarity x temperature = 88 on. The reference is the plain formula in float64, which reaches 709."""
    audio, text = latents(6, torch.float64)
    scores = audio @ text.T * temperature
    others = scores.exp() * (1 - torch.eye(6)) if decoupled else scores.exp()
    expected = (-scores.diagonal() + 0.5 * (others.sum(0).log() + others.sum(1).log())).mean()
    expected.backward()
    low_audio, low_text = latents(6, torch.float32)
    loss = SoftmaxContrastiveLearning(init_temp=temperature, decoupled_contrastive_learning=decoupled)
    actual = loss(low_audio, low_text)
    actual.backward()
    scale = temperature * 1e-6  # fp32: the scores carry temperature x 6e-8, and a gradient is a difference of exponentials of them
    np.testing.assert_allclose(actual.item(), expected.item(), rtol=0, atol=scale)
    assert audio.grad is not None and low_audio.grad is not None
    np.testing.assert_allclose(low_audio.grad, audio.grad, rtol=0, atol=temperature * scale)


def test_perfect_and_useless_latents() -> None:
    """Sign or scale: with all latents equal, softmax is log B, decoupled log(B - 1), and sigmoid follows from temperature 10, bias -10."""
    same = F.normalize(torch.ones(5, 7), dim=-1)
    assert SoftmaxContrastiveLearning()(same, same).item() == pytest.approx(np.log(5), abs=1e-5)
    assert SoftmaxContrastiveLearning(decoupled_contrastive_learning=True)(same, same).item() == pytest.approx(np.log(4), abs=1e-5)
    assert SigmoidContrastiveLearning()(same, same).item() == pytest.approx(5 * np.log(2), abs=1e-4)
    axes = torch.eye(5)
    assert SoftmaxContrastiveLearning()(axes, axes).item() == pytest.approx(np.log1p(4 * np.exp(-10)), abs=1e-6)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: SoftmaxContrastiveLearning(decoupled_contrastive_learning=True)(torch.ones(1, 3), torch.ones(1, 3)), "batches of 2"),
        (lambda: SigmoidContrastiveLearning()(torch.ones(2, 3), torch.ones(1, 3)), r"got \[2, 3\] and \[1, 3\]"),
        (lambda: build(ours).eval()(waves(3, 901), tokens(2, 5)), "one text for each clip"),
    ],
)
def test_losses_refuse(call: Any, message: str) -> None:
    """Clips without their texts, broadcast into a loss; a denominator without entries."""
    with pytest.raises(ValueError, match=message):
        call()


def test_loss_falls_in_training() -> None:
    """A gradient of the wrong sign through either tower."""
    loss = MultiLayerContrastiveLoss(audio_dim=6, text_dim=5, dim_latent=8, layers=2, decoupled_contrastive_learning=True)
    torch.manual_seed(0)
    layers = dict(audio_layers=torch.randn(2, 8, 3, 6), text_layers=torch.randn(2, 8, 4, 5))
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-2)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(**layers)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0] - 2, values
