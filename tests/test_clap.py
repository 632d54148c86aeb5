"""CLAP's towers in PyTorch against LAION's own code and transformers' `ClapModel`, on tiny towers of random weights.

Latents are unit vectors. LAION's were computed by laion_clap 1.1.7 (tests/golden). fp32 rounding moves an entry by some 1e-7.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from support.clap import HEADS, WINDOW, clap_folder, clap_model, golden, laion_file, laion_state, towers, waves
from torch.nn import functional as F

from musiclm_deploy.model.clap import ClapTowers
from musiclm_deploy.model.clap_files import clap_facts, clap_tensors, size_of
from musiclm_deploy.model.clap_spectrogram import mel_filters, windows_of
from musiclm_deploy.model.upstream import import_transformers

TEXT, AUDIO = 1e-6, 1e-4  # the largest error of an entry of a latent; measured: 6e-8 and 3e-7


def assert_near(found: torch.Tensor, expected: np.ndarray | torch.Tensor, tolerance: float) -> None:
    expected = torch.as_tensor(expected)
    assert torch.pdist(expected).min() > 1e-3, "the model is insensitive: this comparison could not fail"
    np.testing.assert_allclose(found.detach().numpy(), expected.detach().numpy(), rtol=0, atol=tolerance)


def test_laions_latents() -> None:
    """Fault: another name for a tensor, another filter, pooling or norm than LAION's."""
    known, model = golden(), towers()
    with torch.inference_mode():
        decibels = model.spectrogram(waves())
        np.testing.assert_allclose(decibels[:, :3], known["mel_first"], rtol=0, atol=1e-3)
        assert_near(model.get_audio_latents(waves()), known["audio_latent"], AUDIO)
        ids, mask = (torch.from_numpy(known[name]) for name in ("ids", "mask"))
        assert_near(model.get_text_latents(ids, mask=mask != 0), known["text_latent"], TEXT)
        assert_near(model.get_text_latents(ids), known["text_latent"], TEXT)  # padding is told by its id


def test_clap_models_latents(tmp_path: Path) -> None:
    """Fault: a folder of transformers read otherwise than transformers reads it, its own mel spectrogram included."""
    folder, theirs = clap_folder(tmp_path / "clap"), clap_model()
    extractor = import_transformers().ClapFeatureExtractor(truncation="rand_trunc", frequency_min=50)
    mine = ClapTowers.from_files(folder)
    noise = torch.randn(WINDOW // 3 + 123, generator=torch.Generator().manual_seed(0)) * 0.2
    ids = torch.from_numpy(golden()["ids"])
    with torch.inference_mode():
        for wave in (*waves(), noise):
            features = extractor(wave.numpy(), sampling_rate=48000, return_tensors="pt")["input_features"].float()
            expected = theirs.get_audio_features(features).pooler_output
            np.testing.assert_allclose(mine.get_audio_latents(wave[None]), expected, rtol=0, atol=AUDIO)
        expected = theirs.get_text_features(ids, attention_mask=(ids != 1).long()).pooler_output
        assert_near(mine.get_text_latents(ids), expected, TEXT)
        texts = ["calm piano", "house song, 4 on the floor"]
        assert_near(mine.get_text_latents(raw_texts=texts), mine.get_text_latents(mine.text.tokenize(texts)), 0)


def test_a_fused_model_on_sounds_of_a_window(tmp_path: Path) -> None:
    """Fault: fusion of a sound that is no longer than 10 s, or filters of the models without fusion. LAION's code gives a fused model four
    equal copies of its HTK spectrogram and no sound that is longer."""
    mine, theirs = ClapTowers.from_files(clap_folder(tmp_path / "fused", fused=True)), clap_model(fused=True)
    extractor = import_transformers().ClapFeatureExtractor(truncation="fusion", frequency_min=50)
    with torch.inference_mode():
        features = extractor(list(waves().numpy()), sampling_rate=48000, return_tensors="pt")["input_features"].float()
        expected = theirs.get_audio_features(features, is_longer=torch.zeros(2, 1, dtype=torch.bool)).pooler_output
        assert_near(mine.get_audio_latents(waves()), expected, AUDIO)


def test_filters_are_those_of_other_packages() -> None:
    """Fault: a mel scale that is only like Slaney's or HTK's."""
    mel_filter_bank = import_transformers().audio_utils.mel_filter_bank
    for slaney, norm, scale in ((True, "slaney", "slaney"), (False, None, "htk")):
        arguments = dict(num_frequency_bins=513, num_mel_filters=64, min_frequency=50, max_frequency=14000, sampling_rate=48000)
        expected = mel_filter_bank(**arguments, norm=norm, mel_scale=scale).T
        np.testing.assert_allclose(mel_filters(64, 1024, 48000, 50, 14000, slaney), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("samples", [5, 6, 9, 10, 11, 19, 20, 21, 33])
def test_windows(samples: int) -> None:
    """Fault: a sound that is repeated otherwise than LAION's `repeatpad`, a sample that no window has, or windows of uneven distance."""
    wave = torch.arange(1.0, samples + 1).expand(2, -1)
    windows = windows_of(wave, 10)
    if samples <= 10:
        repeated = wave.repeat(1, 10 // samples)
        assert torch.equal(windows[:, 0], F.pad(repeated, (0, 10 - repeated.shape[1]))) and windows.shape[1] == 1
        return
    starts = windows[0, :, 0] - 1
    assert windows.shape == (2, -(-samples // 10), 10) and starts[0] == 0 and starts[-1] == samples - 10
    assert set(windows[0].flatten().tolist()) == set(wave[0].tolist())
    assert starts.diff().max() - starts.diff().min() <= 1 and torch.equal(
        windows[0] - windows[0, :, :1], torch.arange(10.0).expand(len(starts), 10)
    )


def test_a_long_sound_is_the_mean_of_its_windows() -> None:
    """Fault: a random crop, or a mean of anything but unit latents."""
    model = towers()
    wave = torch.cat([*waves()])[None, : WINDOW + WINDOW // 2]
    with torch.inference_mode():
        parts = model.get_audio_latents(torch.stack([wave[0, :WINDOW], wave[0, WINDOW // 2 :]]))
        np.testing.assert_allclose(model.get_audio_latents(wave)[0], F.normalize(parts.mean(0), dim=0), rtol=0, atol=1e-6)


def test_names_and_settings(tmp_path: Path) -> None:
    """Fault: LAION's file and the folder of the same model that differ, or a size that is named wrongly."""
    with pytest.raises(ValueError, match="transformers refuses"):
        ClapTowers.from_files(laion_file(tmp_path / "laion.pt"), settings={"text.num_attention_heads": 5})
    laion = ClapTowers.from_files(tmp_path / "laion.pt", settings=HEADS)
    mine, other = laion, ClapTowers.from_files(clap_folder(tmp_path / "clap"))
    state = mine.state_dict()
    assert state.keys() == other.state_dict().keys()
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in state.items())
    sizes = {"audio.patch_embeds_hidden_size": 128, "audio.depths": [2, 2, 12, 2], "audio.enable_fusion": False}
    assert size_of(sizes) == "HTSAT-base, not fused"
    assert size_of(sizes | {"audio.patch_embeds_hidden_size": 96, "audio.depths": (2, 2, 6, 2), "audio.enable_fusion": True}) == (
        "HTSAT-tiny, fused"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {name.replace("text_branch.embeddings", "text_branch.resblocks"): t for name, t in state.items()}, "not RoBERTa"),
        (lambda state: {name.replace("audio_branch.patch_embed", "audio_branch.conv_block1"): t for name, t in state.items()}, "not HTSAT"),
        (
            lambda state: {name: t for name, t in state.items() if "position_embeddings" not in name},
            "position_embeddings.weight' is missing",
        ),
        (lambda state: state | {"audio_branch.norm.gain": torch.ones(3)}, "norm.gain"),
        (lambda state: {name: t for name, t in state.items() if name != "audio_branch.norm.bias"}, "audio_encoder.norm.bias"),
    ],
)
def test_other_towers_are_refused(change, message: str) -> None:
    """Fault: towers of another kind, or a tensor that is missing or unknown, that only torch's arithmetic stumbles over."""
    with pytest.raises(ValueError, match=message):
        tensors = clap_tensors(change(laion_state()))
        ClapTowers({name: fact.value for name, fact in clap_facts(tensors, {}, {}).items()} | HEADS, tensors)


def test_settings_that_are_not_covered() -> None:
    """Fault: a model of another rate or length of window that is fed 10 s at 48 kHz."""
    tensors = clap_tensors(laion_state())
    with pytest.raises(ValueError, match="sampling_rate = 16000; covered is 48000"):
        clap_facts(tensors, {}, {"sampling_rate": 16000})
    for settings, message in (
        ({"audio.window_size": 4096}, "audio.window_size must be a whole number from 1 to 32, got 4096"),
        ({"audio.fft_window_size": 1 << 30}, "audio.fft_window_size must be a whole number from 16 to 8192"),
        ({"audio.spec_size": 1024, "audio.num_mel_bins": 2}, "the audio tower takes 524288"),
        ({"audio.hop_length": 100}, "10 s make 4801 frames of 100 samples, and the audio tower takes 1024"),
        ({"audio.frequency_min": 20000}, "must lie between 0 and 24000, got 20000, 14000"),
        ({"audio.mel_scale": "bark"}, "audio.mel_scale must be 'slaney' or 'htk', got 'bark'"),
        ({"text.pad_token_id": None}, "text.pad_token_id must be a whole number"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            ClapTowers({"text.num_hidden_layers": 1, "audio.depths": [1, 1, 1, 1]} | settings)
    with pytest.raises(ValueError, match="fusion of type 'channel_map' is not covered"):
        ClapTowers({"audio.enable_fusion": True, "audio.fusion_type": "channel_map", "audio.hidden_size": 768})


def test_loss_and_frozen_towers() -> None:
    """Fault: frozen towers that a trainer's `train` moves or whose dropout it turns on; or a loss without a gradient."""
    ids = torch.from_numpy(golden()["ids"])[:2, :12]
    frozen = towers().train()
    assert not frozen.training and not any(parameter.requires_grad for parameter in frozen.parameters())
    pairs = frozen(waves(), ids, return_pairwise_similarities=True)
    torch.testing.assert_close(frozen(waves(), ids, return_similarities=True), pairs.diagonal())
    model = towers(frozen=False).train()
    assert model.training
    model(waves(), ids).backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.abs().sum() > 0}
    assert {"audio_model.audio_encoder.patch_embed.proj.weight", "text_projection.linear2.weight", "contrast.temperatures"} <= moved
    with pytest.raises(ValueError, match="these towers have no tokenizer: give"):
        ClapTowers({"text.num_hidden_layers": 1, "audio.depths": [1, 1, 1, 1]}).text.tokenize(["x"])
