"""Training mode of MuLaN's audio tower: after one seed the masks, the patches kept, the loss and every gradient are upstream's."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from support.contrastive import HIERARCHIES, LOSSES, assert_equal, assert_same_step
from support.mulan import TOKENS, randomise, upstream, waves

import musiclm_deploy.model as ours
from musiclm_deploy.model import AudioSpectrogramTransformer
from musiclm_deploy.model.augmentation import Masking, kept_patches, stretch_time
from musiclm_deploy.model.spectrogram import Spectrogram, music_spectrogram
from musiclm_deploy.model.upstream import load_upstream

load_upstream()
import torchaudio  # noqa: E402 (imports only after load_upstream)


def train_pair(audio: dict[str, Any] | None = None, dropout: float = 0.0, **mulan: Any) -> tuple[Any, Any]:
    """Upstream's MuLaN and ours in training mode, with equal random weights; masks narrow enough to leave something to learn from."""

    def build(package: Any) -> Any:
        tower = dict(depth=3, heads=2, dim_head=16, attn_dropout=dropout, ff_dropout=dropout)
        settings = dict(dim=32, patch_size=(8, 16), spec_aug_freq_mask=30, spec_aug_time_mask=40) | tower | (audio or {})
        towers = (
            package.AudioSpectrogramTransformer(**settings),
            package.TextTransformer(dim=24, num_tokens=TOKENS, max_seq_len=20, **tower),
        )
        return package.MuLaN(*towers, dim_latent=18, **mulan)

    theirs, mine = randomise(build(upstream)), build(ours)
    mine.load_state_dict(theirs.state_dict())
    return theirs.train(), mine.train()


@pytest.mark.parametrize("loss, hierarchy", [*product(LOSSES, HIERARCHIES)])
def test_training_step_equals_upstreams(loss: str, hierarchy: str) -> None:
    """Masks, patches or dropout drawn in another order, or patches that lose their position or their relative bias."""
    theirs, mine = train_pair(dropout=0.1, **LOSSES[loss], **HIERARCHIES[hierarchy])
    assert_same_step(theirs, mine, seed=3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "audio",
    [{}, dict(patch_dropout_prob=0.99), dict(patch_dropout_prob=0.0), dict(spec_aug_freq_mask=0), dict(spec_aug_time_mask=500)],
    ids=str,
)
def test_tower_equals_upstreams_in_training(audio: dict[str, Any], seed: int) -> None:
    """A draw too many or too few where a mask or the patch dropout is off, or nearly everything is dropped."""
    theirs, mine = train_pair(audio)
    for arguments in ({}, dict(force_no_patch_dropout=True), dict(return_all_layers=True)):
        results = []
        for model in (theirs, mine):
            torch.manual_seed(seed)
            result = model.audio(waves(3, 901), **arguments)
            results.append((*result, torch.rand(1)) if isinstance(result, tuple) else (result, torch.rand(1)))
        for actual, expected in zip(*reversed(results), strict=True):
            assert actual.shape == expected.shape
            assert_equal(actual, expected, f"{arguments}")


@pytest.mark.parametrize("max_width", [0, 1, 7, 23, 80])
def test_masks_equal_torchaudios(max_width: int) -> None:
    """A mask one too wide, a start rounded the other way where the axis is shorter than the mask, bins taken for frames."""
    x, widths = torch.rand(2, 23, 37) + 1, set()
    for seed in range(60):
        for mine, theirs in (
            (Masking(max_width, axis=1), torchaudio.transforms.FrequencyMasking(max_width)),
            (Masking(max_width, axis=2), torchaudio.transforms.TimeMasking(max_width)),
        ):
            torch.manual_seed(seed)
            expected = theirs(x)
            torch.manual_seed(seed)
            actual = mine(x)
            assert torch.equal(actual, expected)
            widths.add(int((actual == 0).sum()))
    assert len(widths) >= min(max_width, 10), "the masks hardly differ: this comparison could not fail"


@pytest.mark.parametrize("rate", [0.8, 0.97, 1.25, 2.0, 3.1])
def test_stretch_equals_the_magnitudes_of_a_phase_vocoder(rate: float) -> None:
    """Frames shifted by one, a last frame too many, powers in proportion where magnitudes should be."""
    wave = waves(2, 1000)
    complex_spectrogram = torchaudio.transforms.Spectrogram(64, power=None)(wave)
    advance = torch.linspace(0, torch.pi * 32, 33)[:, None]
    expected = torchaudio.functional.phase_vocoder(complex_spectrogram, rate, advance).abs()
    actual = stretch_time(complex_spectrogram.abs(), rate)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * expected.max().item())  # fp32: it passes through angles
    spectrogram = Spectrogram(64, 2, 64, 32, 0, True, "reflect")
    np.testing.assert_allclose(spectrogram(wave, rate), expected**2, rtol=0, atol=1e-5 * expected.square().max().item())


def test_a_tempo_is_drawn_in_training_alone() -> None:
    """An option that changes nothing, as upstream's; a stretch in evaluation, or one that leaves no patch of the shortest clip."""
    arguments = music_spectrogram(8000, n_mels=32) | dict(spec_aug_freq_mask=0, spec_aug_time_mask=0)
    torch.manual_seed(0)
    plain = AudioSpectrogramTransformer(dim=16, depth=1, patch_dropout_prob=0.0, **arguments)
    stretched = AudioSpectrogramTransformer(dim=16, depth=1, patch_dropout_prob=0.0, spec_time_stretch=(0.5, 2.0), **arguments)
    stretched.load_state_dict(plain.state_dict())
    wave = waves(2, 5000)
    rates = {round(stretched._draw_rate(5000), 3) for _ in range(50)}
    assert len(rates) > 40 and 0.5 <= min(rates) < 0.7 and 1.7 < max(rates) <= 2.0
    assert not torch.equal(stretched(wave), plain(wave))
    assert torch.equal(stretched.eval()(wave), plain.eval()(wave))
    stretched.train()
    for _ in range(20):
        assert stretched(waves(1, stretched.min_samples)).isfinite().all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(spec_time_stretch=(0.0, 1.0)), "rates above 0"),
        (dict(spec_time_stretch=(1.2, 0.8)), r"\(slowest, fastest\)"),
        (dict(spec_time_stretch=(0.8, 1.2), accept_spec=True), "needs waves"),
    ],
)
def test_stretch_refuses(arguments: dict[str, Any], message: str) -> None:
    """A rate that plays nothing, or an option that a spectrogram's powers would silently ignore."""
    with pytest.raises(ValueError, match=message):
        AudioSpectrogramTransformer(dim=16, depth=1, **arguments)


def test_patches_are_kept_at_random() -> None:
    """One choice for the whole batch, a patch twice, patches that never come, or none left."""
    torch.manual_seed(0)
    kept = kept_patches(2000, 12, 0.25, torch.device("cpu"))
    assert kept.shape == (2000, 9)
    assert all(len(set(row)) == 9 for row in kept.tolist())
    share = torch.bincount(kept.flatten(), minlength=12) / 2000
    np.testing.assert_allclose(share, 0.75, atol=0.05)  # five standard deviations of a share of 2000
    assert kept_patches(3, 12, 1.0, torch.device("cpu")).shape == (3, 1)


def test_evaluation_withholds_nothing() -> None:
    """An embedding that changes from call to call, or a random state that evaluation moves."""
    tower = AudioSpectrogramTransformer(dim=16, depth=1, heads=2).eval()
    torch.manual_seed(0)
    first, second = tower(waves(2, 901)), tower(waves(2, 901))
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(first, second) and torch.equal(drawn, torch.rand(1))
    assert not torch.equal(tower.train()(waves(2, 901)), first)


def test_a_mulan_learns() -> None:
    """A training step whose gradient points the wrong way: four clips must find their texts."""
    _, mine = train_pair(dict(spec_aug_freq_mask=4, spec_aug_time_mask=4))
    for module in mine.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    torch.manual_seed(0)
    wavs, texts = waves(4, 901), torch.arange(1, 13).reshape(4, 3)
    optimizer = torch.optim.Adam(mine.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        mine(wavs, texts).backward()
        optimizer.step()
    similarities = mine.eval()(wavs, texts, return_pairwise_similarities=True)
    assert torch.equal(similarities.argmax(dim=1), torch.arange(4)), similarities
