"""The log-mel entrance of MuLaN's audio tower: its numbers, its presets for music, its way through a checkpoint into a bundle's graph."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.mulan import mel_mulan, run, upstream, waves

import musiclm_deploy.model as ours
from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.export.mulan import build_mulan, export_mulan_audio, infer_mulan
from musiclm_deploy.model import AudioSpectrogramTransformer, music_spectrogram
from musiclm_deploy.model.spectrogram import Spectrogram, mel_filters
from musiclm_deploy.model.upstream import load_upstream

load_upstream()
import torchaudio  # noqa: E402 (imports only after load_upstream)


@pytest.mark.parametrize(
    "sample_hz, n_mels, n_fft, win_length, hop_length, power",
    [(16000, 128, 1024, 400, 160, 2), (24000, 128, 1536, 600, 240, 2), (16000, 61, 801, 323, 77, 1)],
)
def test_mel_equals_torchaudio(sample_hz: int, n_mels: int, n_fft: int, win_length: int, hop_length: int, power: float) -> None:
    """Another scale or norm of the filters, a band too many, a logarithm of another base, filters applied before the power."""
    sizes: dict[str, Any] = dict(n_fft=n_fft, win_length=win_length, hop_length=hop_length, power=power, pad=3)
    reference: Any = torchaudio.transforms.MelSpectrogram(sample_hz, n_mels=n_mels, **sizes)
    # fp32 there, float64 here; an odd n_fft has no bin at half the rate, but torchaudio places its last one there.
    if n_fft % 2 == 0:
        np.testing.assert_allclose(mel_filters(n_mels, n_fft, sample_hz).T, reference.mel_scale.fb, rtol=0, atol=3e-5)
    reference.mel_scale.fb = mel_filters(n_mels, n_fft, sample_hz).T
    wave = waves(2, 5003)
    mine = Spectrogram(**sizes, center=True, pad_mode="reflect", n_mels=n_mels, sample_hz=sample_hz)
    expected, actual = reference(wave), mine(wave)
    assert actual.shape == (2, n_mels, expected.shape[-1])
    assert expected.min() > 1e-5, "the floor is tested below"
    np.testing.assert_allclose(actual.exp(), expected, rtol=0, atol=2e-6 * expected.max().item())  # fp32, of the peak
    assert mine(torch.zeros(1, 5003)).unique().item() == pytest.approx(math.log(1e-5))


def test_a_pure_tone_lights_the_band_of_its_pitch() -> None:
    """Filters over the wrong bins: 1 kHz is 1000 mel on HTK's scale, and 16 kHz span 2840."""
    wave = torch.sin(2 * math.pi * 1000 * torch.arange(16000) / 16000)[None]
    spectrogram = Spectrogram(1024, 2, 400, 160, 0, True, "reflect", n_mels=128, sample_hz=16000)(wave)
    assert spectrogram.mean(-1).argmax().item() == round(1000 / 2840.02 * 129) - 1


@pytest.mark.parametrize("sample_hz, n_fft", [(16000, 512), (24000, 768)])
def test_presets(sample_hz: int, n_fft: int) -> None:
    """Windows of another length, arguments that upstream does not know, or bands without a bin."""
    plain = music_spectrogram(sample_hz)
    assert (plain["spec_n_fft"], plain["spec_win_length"], plain["spec_hop_length"]) == (n_fft, sample_hz // 40, sample_hz // 100)
    theirs, mine = (package.AudioSpectrogramTransformer(dim=16, depth=2, heads=1, **plain).eval() for package in (upstream, ours))
    mine.load_state_dict(theirs.state_dict())
    wave = waves(1, sample_hz // 2)
    np.testing.assert_allclose(mine(wave).detach(), theirs(wave).detach(), rtol=0, atol=1e-4)  # fp32, entries of unit variance
    tower = AudioSpectrogramTransformer(dim=16, depth=1, heads=1, **music_spectrogram(sample_hz, 128))
    assert tower.spec(torch.zeros(1, sample_hz)).shape == (1, 128, 101)
    assert tower.samples_per_patch == 16 * sample_hz / 100 / 8


def test_a_checkpoint_with_mel_filters_exports(tmp_path: Path) -> None:
    """A graph with other filters than the trained ones, or for waves of another rate than the training's."""
    mulan = mel_mulan()
    mulan.audio.spec.mel.mul_(1.5)  # type: ignore[union-attr]  (filters of the checkpoint, not those built anew)
    state = mulan.state_dict()
    settings = infer_mulan(state, {"audio.patch_size": [8, 16]})
    expected = {"spec_n_mels": 20, "spec_n_fft": 512, "spec_win_length": 200, "spec_hop_length": 80, "sample_hz": 8000}
    assert {name: settings[name] for name in expected} == expected
    with pytest.raises(ExportError, match="sample_hz = 16000 contradicts"):
        infer_mulan(state, {"audio.patch_size": [8, 16], "sample_hz": 16000})
    rebuilt = build_mulan(settings, state)
    export_mulan_audio(rebuilt, tmp_path / "mulan_audio.onnx")
    for batch, samples in ((3, 2111), (1, mulan.audio.min_samples)):
        wave = waves(batch, samples)
        expected = mulan.get_audio_latents(wave).detach()
        assert torch.equal(rebuilt.get_audio_latents(wave), expected)
        np.testing.assert_allclose(run(tmp_path / "mulan_audio.onnx", wave=wave)["latent"], expected, rtol=0, atol=1e-5)  # fp32
    assert torch.pdist(mulan.get_audio_latents(waves(3, 2111))).min() > 1e-3, "the model is insensitive: this comparison could not fail"


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: music_spectrogram(22050), "multiple of 1000, got 22050"),
        (lambda: mel_filters(128, 512, 16000), "128 mel bands are too many for n_fft = 512"),
        (lambda: AudioSpectrogramTransformer(dim=16, depth=1, spec_n_mels=8), "n_mels = 8 and sample_hz = None"),
    ],
)
def test_wrong_settings_are_refused(call: Any, message: str) -> None:
    """Bands that hear nothing, a window of half a sample, a rate that is guessed."""
    with pytest.raises(ValueError, match=message):
        call()
