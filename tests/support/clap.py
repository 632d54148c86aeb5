"""A tiny CLAP whose latents LAION's own code computed, in the forms that people have: LAION's file, and a folder of transformers."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from musiclm_deploy.model.clap import ClapTowers
from musiclm_deploy.model.clap_files import clap_facts, clap_tensors
from musiclm_deploy.model.upstream import load_upstream
from musiclm_deploy.runtime.roberta_tokenizer import RobertaTokenizer

load_upstream()
from transformers import ClapConfig, ClapModel  # noqa: E402 (torchaudio, which it imports, loads only after load_upstream)

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
ROBERTA = GOLDEN / "roberta"
HEADS = {"text.num_attention_heads": 4}  # of the text tower; not told by LAION's file, and not 24 / 64
FRONT_END = {"frequency_min": 50, "frequency_max": 14000, "fft_window_size": 1024, "hop_length": 480, "sampling_rate": 48000}
WINDOW = 480000


def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "clap.npz") as file:
        return dict(file)


def laion_state() -> dict[str, Tensor]:
    """Return the tensors under LAION's names."""
    return {name[2:]: torch.from_numpy(value).float() for name, value in golden().items() if name.startswith("w.")}


def laion_file(path: Path) -> Path:
    """Save them as LAION's training does, with the tensors beside them that no latent depends on."""
    beside = ("audio_branch.spectrogram_extractor.stft.conv_real.weight", "audio_branch.logmel_extractor.melW", "audio_branch.head.bias")
    beside += ("audio_branch.tscam_conv.weight", "audio_branch.layers.0.blocks.1.attn_mask", "text_branch.embeddings.position_ids")
    beside += ("audio_branch.layers.0.blocks.0.attn.relative_position_index", "audio_transform.sequential.0.weight", "logit_scale_a")
    state = laion_state() | dict.fromkeys(beside, torch.ones(3))
    state = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 15, "name": "clap", "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}, path)
    return path


def waves() -> Tensor:
    """Return the two golden waves of 10 s: a tone that rises, and noise that swells."""
    time, rng = np.arange(WINDOW) / 48000, np.random.default_rng(8)
    tone, noise = 0.3 * np.sin(2 * np.pi * 220 * time * (1 + 0.05 * time)), rng.standard_normal(WINDOW) * 0.1 * abs(np.sin(3 * time))
    return torch.from_numpy(np.stack([tone, noise]).astype(np.float32))


def config(fused: bool = False) -> dict[str, Any]:
    """Return the arguments of transformers' `ClapConfig`."""
    fusion = {"enable_fusion": True, "fusion_type": "aff_2d"} if fused else {}
    return {
        "text_config": dict(
            vocab_size=389,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=40,
            max_position_embeddings=82,
            layer_norm_eps=1e-5,
        ),
        "audio_config": dict(patch_embeds_hidden_size=8, depths=[2, 2, 2, 1], num_attention_heads=[2, 2, 4, 4], hidden_size=64, **fusion),
        "projection_dim": 32,
    }


def clap_model(fused: bool = False) -> Any:
    """Return transformers' model with the golden weights; those of fusion are random."""
    torch.manual_seed(1)
    model = ClapModel(ClapConfig(**config(fused))).eval()
    found = model.load_state_dict(clap_tensors(laion_state()), strict=False)
    assert not found.unexpected_keys
    return model


def clap_folder(path: Path, tokenizer: bool = True, fused: bool = False) -> Path:
    """Write the folder that `ClapModel.save_pretrained` does, with the tokenizer's files or without."""
    clap_model(fused).save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(FRONT_END))
    if tokenizer:
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(ROBERTA / name, path)
    return path


def towers(**more: Any) -> ClapTowers:
    """Return the towers with the golden weights and the golden tokenizer."""
    tensors = clap_tensors(laion_state())
    settings = {name: fact.value for name, fact in clap_facts(tensors, {}, {}).items()} | HEADS
    return ClapTowers(settings, tensors, tokenizer=RobertaTokenizer.from_files(ROBERTA), **more)
