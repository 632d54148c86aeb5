"""CLAP's towers trained on by `MuLaNTrainer`, and conditioning a transformer of audiolm-pytorch; docs/training.md has the whole path."""

from pathlib import Path

import pytest
import torch
from support.clap import HEADS, ROBERTA, towers
from torch.utils.data import Dataset

import musiclm_deploy as md
from musiclm_deploy.export.checkpoint import read_checkpoint
from musiclm_deploy.export.clap import build_clap, infer_clap
from musiclm_deploy.model import ClapTowers, MuLaNEmbedQuantizer, MuLaNTrainer


class Notes(Dataset):
    """Twelve tones of half a second at 16 kHz, each with its caption."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        time = torch.arange(8000) / 16000
        return torch.sin(2 * torch.pi * (200 + 100 * index) * time) * 0.3, f"a song of {index} pianos"


def test_towers_are_trained_on(tmp_path: Path) -> None:
    """Fault: a trainer that asks towers for what only MuLaN has, weights that stay, or a checkpoint that nobody reads."""
    model = towers(frozen=False, input_sample_hz=16000)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    MuLaNTrainer(
        model,
        Notes(),
        batch_size=4,
        num_train_steps=2,
        valid_frac=0.34,
        valid_every=1,
        results_folder=tmp_path,
        accelerate_kwargs={"cpu": True},
    ).train()
    (saved,) = tmp_path.glob("mulan.2.pt")
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"audio_projection.linear1.weight", "text_model.embeddings.word_embeddings.weight", "contrast.temperatures"} <= moved
    wave = torch.randn(2, 9000) * 0.1
    again = ClapTowers.from_files(saved, tokenizer=ROBERTA, settings=HEADS, input_sample_hz=16000)
    assert torch.equal(again.get_audio_latents(wave), model.eval().get_audio_latents(wave))
    checkpoint = read_checkpoint(saved, "mulan")
    exported = build_clap(infer_clap(checkpoint, saved, HEADS), checkpoint.state)
    assert torch.equal(exported.get_text_latents(torch.tensor([[0, 5, 2]])), model.get_text_latents(torch.tensor([[0, 5, 2]])))
    assert md.diagnose(saved, config={"mulan": HEADS}, tokenizer=ROBERTA).faults == []


def test_the_quantizer_fits_on_its_latents(tmp_path: Path) -> None:
    """Fault: towers that a training mode moves, codes that depend on it, or a file that does not hold the towers."""
    model = towers(input_sample_hz=16000)
    waves = torch.stack([Notes()[index][0] for index in range(12)])
    quantizer = MuLaNEmbedQuantizer(model, conditioning_dims=(8, 8, 8), rq_num_quantizers=2, codebook_size=6)
    quantizer.fit(model.get_audio_latents(waves))
    quantizer.train()
    one, two = quantizer(wavs=waves, namespace="fine"), quantizer(wavs=waves, namespace="fine")
    assert torch.equal(one, two) and one.shape == (12, 2, 8) and len(one.flatten(1).unique(dim=0)) > 3
    quantizer.save(tmp_path / "quantizer.pt")
    other = MuLaNEmbedQuantizer(towers(input_sample_hz=16000), conditioning_dims=(8, 8, 8), rq_num_quantizers=2, codebook_size=6)
    other.load(tmp_path / "quantizer.pt")
    assert torch.equal(other(texts=model.text.tokenize(["a song"])), quantizer(texts=model.text.tokenize(["a song"])))
    assert md.diagnose(tmp_path / "quantizer.pt").files[0].what == "a MuLaN embedding quantizer with its CLAP"


def test_waves_of_another_rate() -> None:
    """Fault: a wave of the codec's rate that is heard at another pitch."""
    time = torch.arange(16000) / 16000
    tone = torch.sin(2 * torch.pi * 440 * time)[None] * 0.3
    high = torch.sin(2 * torch.pi * 440 * torch.arange(48000) / 48000)[None] * 0.3
    at_16, at_48 = towers(input_sample_hz=16000), towers()
    expected = at_48.get_audio_latents(high)
    # the spectra differ at the clip's ends, and where a resampler leaves another floor
    assert (at_16.get_audio_latents(tone) - expected).abs().max() < 0.5 * (at_48.get_audio_latents(tone) - expected).abs().max()
    assert at_16.audio.min_samples == 342
    with pytest.raises(ValueError, match="longer than the 77 that CLAP takes"):
        at_16.get_text_latents(torch.zeros(1, 78, dtype=torch.long))
