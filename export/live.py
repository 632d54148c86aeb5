"""A live `MusicLM`, of musiclm-pytorch or of this project, to a bundle: its parts are saved as checkpoints and exported like any other.

In: the object. Out: a bundle. What a checkpoint cannot tell (prefix conditioning, spectrogram settings) is read off the object.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..model import MelKmeans
from .export import export_checkpoints


def export_musiclm(
    musiclm: Any, out: str | os.PathLike, *, config: Mapping[str, Any] | None = None, overwrite: bool = False, quiet: bool = False
) -> Path:
    """Export `musiclm` (with `.audio_lm` and `.mulan_embed_quantizer`) to the bundle `out`. config: as for `export_checkpoints`.

    Its `wav2vec` goes into the bundle if it is a `MelKmeans`; HuBERT's files can be given to `export_checkpoints` alone.
    """
    audio_lm, quantizer = musiclm.audio_lm, musiclm.mulan_embed_quantizer
    transformers = {stage: getattr(audio_lm, stage).transformer for stage in ("semantic", "coarse", "fine")}
    codec = audio_lm.coarse.codec
    read = _settings_of(audio_lm, transformers, quantizer)
    sample_hz = getattr(musiclm, "mulan_sample_hz", None)
    if sample_hz is not None:
        read["mulan"]["sample_hz"] = sample_hz
    overrides = {part: {**read.get(part, {}), **dict((config or {}).get(part, {}))} for part in {*read, *(config or {})}}
    with tempfile.TemporaryDirectory(prefix="musiclm-export-") as folder:
        paths = {name: Path(folder) / f"{name}.pt" for name in (*transformers, "codec", "quantizer")}
        for stage, transformer in transformers.items():
            torch.save(_state(transformer), paths[stage])
        if hasattr(codec, "save"):
            codec.save(str(paths["codec"]))
        else:  # audiolm-pytorch's EncodecWrapper
            torch.save(_state(codec), paths["codec"])
        torch.save(_state(quantizer), paths["quantizer"])
        if isinstance(audio_lm.semantic.wav2vec, MelKmeans):
            paths["semantic_features"] = Path(folder) / "semantic_features.pt"
            audio_lm.semantic.wav2vec.save(paths["semantic_features"])
        return export_checkpoints(**paths, out=out, config=overrides, overwrite=overwrite, quiet=quiet)  # type: ignore[arg-type]


def _state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}


def _settings_of(audio_lm: Any, transformers: dict[str, Any], quantizer: Any) -> dict[str, dict[str, Any]]:
    """What the checkpoints will not say, under the names that overrides have."""
    settings: dict[str, dict[str, Any]] = {}
    for stage, transformer in transformers.items():
        inner = transformer.transformer
        settings[stage] = {"add_value_residual": getattr(inner, "add_value_residual", False)}
        if not any(cross is not None for _, cross, _ in inner.layers):
            settings[stage]["cond_as_self_attn_prefix"] = inner.cond_as_self_attn_prefix
    settings["semantic"]["unique_consecutive"] = audio_lm.semantic.unique_consecutive
    audio = quantizer.mulan.audio
    spec = audio.spec
    settings["mulan"] = {
        "spec_n_fft": spec.n_fft,
        "spec_hop_length": spec.hop_length,
        "spec_power": spec.power,
        "spec_pad": spec.pad,
        "spec_center": spec.center,
        "spec_pad_mode": spec.pad_mode,
        "audio.patch_size": list(audio.patch_size),
    }
    return settings
