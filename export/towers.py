"""The two towers of texts and sounds, whichever model they are of: MuLaN (`mulan.py`) or CLAP (`clap.py`), told apart by their tensors.

In: a checkpoint of kind "mulan". Out: what the export, the validation and the examination ask of either model. It knows no tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..model import MuLaN
from ..model.clap import ClapTowers
from ..runtime import bundle
from .checkpoint import TOKEN_TABLE, Checkpoint
from .clap import build_clap, clap_names, clap_record, export_clap_audio, export_clap_text, infer_clap, is_clap
from .mulan import build_mulan, export_mulan_audio, export_mulan_text, infer_mulan, mulan_record
from .patches import export_patches
from .settings import Settings
from .tensor_names import mulan_tensors
from .trained_tokens import trained_tokens

Towers = MuLaN | ClapTowers


def infer_towers(checkpoint: Checkpoint, source: Path | None, overrides: Mapping[str, Any]) -> Settings:
    """Return the settings of the towers in a checkpoint. source: the file or folder that it is from; None for one inside a quantizer."""
    if is_clap(checkpoint.state):
        return infer_clap(checkpoint, source, overrides)
    return infer_mulan(checkpoint.state, overrides, checkpoint.moments)


def build_towers(settings: Settings, state: Mapping[str, Tensor]) -> Towers:
    """Return the towers of `state`, in evaluation mode."""
    return build_clap(settings, state) if is_clap(state) else build_mulan(settings, state)


def towers_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that latents depend on, under one set of names."""
    return clap_names(state) if is_clap(state) else mulan_tensors(state)


def export_towers(
    towers: Towers, checkpoint: Checkpoint, settings: Settings, tokenizer: Settings | None, codec_hz: int, folder: Path, kernels: bool
) -> bundle.Mulan:
    """Write both graphs into `folder` and return the manifest's record of them. kernels: whether a kernel makes a MuLaN's patches."""
    text, audio = folder / "mulan_text.onnx", folder / "mulan_audio.onnx"
    if isinstance(towers, ClapTowers):
        export_clap_text(towers, text)
        export_clap_audio(towers, audio)
        return clap_record(settings, tokenizer, towers)
    export_mulan_text(towers, text)
    export_mulan_audio(towers, audio)
    trained, _ = trained_tokens(checkpoint.state[TOKEN_TABLE], checkpoint.moments)
    spectrogram = export_patches(towers, audio) if kernels else None
    return mulan_record(settings, tokenizer, towers, trained, codec_hz, spectrogram)
