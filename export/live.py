"""A live `MusicLM`, of musiclm-pytorch or of this project, to a bundle: its parts are saved as checkpoints and exported like any other.

In: the object. Out: a bundle. What a checkpoint cannot tell (prefix conditioning, spectrogram settings) is read off the object.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from safetensors.torch import save_file

from ..model import HubertKmeans, MelKmeans
from .export import export_checkpoints
from .fit import check_wrappers


class Options(TypedDict, total=False):
    tokenizer: str | os.PathLike | None
    target: str
    precision: str | Mapping[str, str]
    force: bool
    kernels: Sequence[str]
    compute_capabilities: Sequence[int] | None
    trace_cache: str | os.PathLike | None
    overwrite: bool
    quiet: bool


def export_musiclm(musiclm: Any, out: str | os.PathLike, *, config: Mapping[str, Any] | None = None, **options: Unpack[Options]) -> Path:
    """Export `musiclm` (with `.audio_lm` and `.mulan_embed_quantizer`) to the bundle `out`. config and options (tokenizer, target,
    precision, force, kernels, compute_capabilities, trace_cache, overwrite, quiet): as for `export_checkpoints`.

    Its `wav2vec` goes into the bundle if it is a `MelKmeans` or a `HubertKmeans`; a UserWarning says what to do if it is another.
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
        told = save_wav2vec(audio_lm.semantic.wav2vec, Path(folder), paths)
        if told:
            overrides["wav2vec"] = told | overrides.get("wav2vec", {})
        return export_checkpoints(**paths, out=out, config=overrides, **options)  # type: ignore[arg-type]


def save_wav2vec(wav2vec: Any, folder: Path, paths: dict[str, Path]) -> dict[str, Any]:
    """Write the files of a semantic tokenizer into `folder` and add them to `paths`. Return the settings that these files lack."""
    if isinstance(wav2vec, MelKmeans):
        paths["semantic_features"] = folder / "semantic_features.pt"
        wav2vec.save(paths["semantic_features"])
    elif isinstance(wav2vec, HubertKmeans):
        paths |= {"hubert": folder / "hubert", "kmeans": folder / "kmeans.npy"}
        paths["hubert"].mkdir()
        wav2vec.hubert.config.to_json_file(paths["hubert"] / "config.json", use_diff=False)
        save_file({name: tensor.contiguous() for name, tensor in _state(wav2vec.hubert).items()}, paths["hubert"] / "model.safetensors")
        np.save(paths["kmeans"], wav2vec.centres.float().cpu().numpy())
        layers = wav2vec.hubert.config.num_hidden_layers  # those beyond were left out
        return {"target_sample_hz": wav2vec.target_sample_hz, "output_layer": layers, "normalize": wav2vec.normalize}
    elif wav2vec is not None:
        warnings.warn(
            f"the bundle will have no semantic tokenizer: a wav2vec of type {type(wav2vec).__name__} cannot be exported from a live model. "
            "For HuBERT set audio_lm.semantic.wav2vec to HubertKmeans.from_files(checkpoint, kmeans) of musiclm_deploy.model before, or "
            "export files with export_checkpoints(..., hubert=checkpoint, kmeans=kmeans).",
            stacklevel=3,
        )
    return {}


def _state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}


def _settings_of(audio_lm: Any, transformers: dict[str, Any], quantizer: Any) -> dict[str, dict[str, Any]]:
    """What the checkpoints will not say, under the names that overrides have."""
    check_wrappers(audio_lm)
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
        "text.pad_id": quantizer.mulan.text.pad_id,
    }
    return settings
