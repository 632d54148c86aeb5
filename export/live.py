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

from ..model import ClapTowers, HubertKmeans, MelKmeans
from ..runtime.tokenizer_file import TOKENIZER_FILE
from .arguments import overrides_of, path_of
from .errors import ExportError
from .export import export_checkpoints
from .fit import check_wrappers
from .transformers import STAGES
from .unwrapping import check_plain, plain_state, unwrapped


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


# Attributes of a MusicLM that the export reads.
_PARTS = (
    *(f"audio_lm.{stage}.transformer.transformer" for stage in STAGES),
    "audio_lm.coarse.codec",
    "mulan_embed_quantizer.mulan.text",
)
_SPECTROGRAM = "mulan_embed_quantizer.mulan.audio.spec"  # of a MuLaN; what a CLAP's is like follows from its settings


def export_musiclm(musiclm: Any, out: str | os.PathLike, *, config: Mapping[str, Any] | None = None, **options: Unpack[Options]) -> Path:
    """Export `musiclm` (with `.audio_lm` and `.mulan_embed_quantizer`) to the bundle `out`. config and options (tokenizer, target,
    precision, force, kernels, compute_capabilities, trace_cache, overwrite, quiet): as for `export_checkpoints`.

    It and its parts may be compiled, distributed, averaged or checkpointed; a UserWarning says where an average of weights is exported.
    Its `wav2vec` goes into the bundle if it is a `MelKmeans` or a `HubertKmeans`; a UserWarning says what to do if it is another.
    Raises ExportError for any other object, and as `export_checkpoints` does.
    """
    given, out = overrides_of(config), path_of(out, "out")
    if not isinstance(musiclm, torch.nn.Module):
        raise ExportError(_refusal(musiclm))
    with tempfile.TemporaryDirectory(prefix="musiclm-export-") as folder:
        with unwrapped(musiclm, "musiclm") as model:
            paths, read = _save_parts(model, Path(folder))
            towers: Any = model.mulan_embed_quantizer
            if options.get("tokenizer") is None and (own := getattr(towers.mulan, "tokenizer", None)) is not None:
                options["tokenizer"] = Path(folder, TOKENIZER_FILE)
                options["tokenizer"].write_text(own.content, encoding="utf-8")
        overrides = {part: read.get(part, {}) for part in {*read, *given}}
        # what is no dict stays as it is, for the export to refuse
        overrides |= {part: {**overrides[part], **values} if isinstance(values, Mapping) else values for part, values in given.items()}
        return export_checkpoints(**paths, out=out, config=overrides, **options)  # type: ignore[arg-type]


def _save_parts(musiclm: Any, folder: Path) -> tuple[dict[str, Path], dict[str, dict[str, Any]]]:
    """Write the parts of an unwrapped MusicLM into `folder` as checkpoints. Return their paths, and the settings that these files lack."""
    towers = getattr(getattr(musiclm, "mulan_embed_quantizer", None), "mulan", None)
    for path in _PARTS if isinstance(towers, ClapTowers) else (*_PARTS, _SPECTROGRAM):
        part: Any = musiclm
        for name in path.split("."):
            part = getattr(part, name, None)
            if part is None:
                raise ExportError(_refusal(musiclm, path))
    audio_lm, quantizer = musiclm.audio_lm, musiclm.mulan_embed_quantizer
    transformers = {stage: getattr(audio_lm, stage).transformer for stage in STAGES}
    codec = audio_lm.coarse.codec
    for name, part in {**transformers, "quantizer": quantizer}.items():
        check_plain(part, name)
    check_wrappers(audio_lm)
    try:
        settings = _settings_of(audio_lm, transformers, quantizer)
    except (AttributeError, TypeError, ValueError) as error:
        raise ExportError(f"the parts of this MusicLM are not those of audiolm-pytorch and musiclm-pytorch: {error}.") from error
    sample_hz = getattr(musiclm, "mulan_sample_hz", None)
    if sample_hz is not None and not isinstance(towers, ClapTowers):
        settings["mulan"]["sample_hz"] = sample_hz
    paths = {name: folder / f"{name}.pt" for name in (*transformers, "codec", "quantizer")}
    for stage, transformer in transformers.items():
        torch.save(plain_state(transformer), paths[stage])
    if hasattr(codec, "save"):
        check_plain(codec, "codec")
        codec.save(str(paths["codec"]))
    else:  # audiolm-pytorch's EncodecWrapper
        torch.save(plain_state(codec), paths["codec"])
    torch.save(plain_state(quantizer), paths["quantizer"])
    of_wav2vec = save_wav2vec(audio_lm.semantic.wav2vec, folder, paths)
    return paths, settings | ({"wav2vec": of_wav2vec} if of_wav2vec else {})


def _refusal(given: Any, lacking: str = "audio_lm") -> str:
    """Return the message for an object that is no MusicLM. lacking: the part that it has not."""
    if isinstance(given, str | os.PathLike | Mapping):
        advice = " Files are exported by export_checkpoints, and by musiclm export."
    elif hasattr(given, "bundle"):
        advice = " This one was loaded from a bundle, which is an export already."
    elif all(hasattr(given, name) for name in STAGES):
        advice = " Put the AudioLM into one: MusicLM(audio_lm=..., mulan_embed_quantizer=...)."
    else:
        advice = f" It has no {lacking}."
    return (
        "export_musiclm takes a MusicLM of musiclm-pytorch or of musiclm_deploy.model, with .audio_lm and .mulan_embed_quantizer, "
        f"got {type(given).__name__}.{advice}"
    )


def save_wav2vec(wav2vec: Any, folder: Path, paths: dict[str, Path]) -> dict[str, Any]:
    """Write the files of a semantic tokenizer into `folder` and add them to `paths`. Return the settings that these files lack."""
    if isinstance(wav2vec, MelKmeans):
        paths["semantic_features"] = folder / "semantic_features.pt"
        wav2vec.save(paths["semantic_features"])
    elif isinstance(wav2vec, HubertKmeans):
        paths |= {"hubert": folder / "hubert", "kmeans": folder / "kmeans.npy"}
        paths["hubert"].mkdir()
        wav2vec.hubert.config.to_json_file(paths["hubert"] / "config.json", use_diff=False)
        save_file(
            {name: tensor.contiguous() for name, tensor in plain_state(wav2vec.hubert).items()}, paths["hubert"] / "model.safetensors"
        )
        np.save(paths["kmeans"], wav2vec.centres.float().cpu().numpy())
        layers = wav2vec.hubert.config.num_hidden_layers  # those beyond were left out
        own = ("target_sample_hz", "normalize", "normalize_eps", "normalize_features", "seq_len_multiple_of")
        return {"output_layer": layers} | {name: getattr(wav2vec, name) for name in own}
    elif wav2vec is not None:
        warnings.warn(
            f"the bundle will have no semantic tokenizer: a wav2vec of type {type(wav2vec).__name__} cannot be exported from a live model. "
            "For HuBERT set audio_lm.semantic.wav2vec to HubertKmeans.from_files(checkpoint, kmeans) of musiclm_deploy.model before, or "
            "export files with export_checkpoints(..., hubert=checkpoint, kmeans=kmeans).",
            stacklevel=4,
        )
    return {}


def _settings_of(audio_lm: Any, transformers: dict[str, Any], quantizer: Any) -> dict[str, dict[str, Any]]:
    """Return what the checkpoints do not contain, under the names that overrides have."""
    settings: dict[str, dict[str, Any]] = {}
    for stage, transformer in transformers.items():
        inner = transformer.transformer
        settings[stage] = {"add_value_residual": getattr(inner, "add_value_residual", False)}
        if not any(cross is not None for _, cross, _ in inner.layers):
            settings[stage]["cond_as_self_attn_prefix"] = inner.cond_as_self_attn_prefix
    settings["semantic"]["unique_consecutive"] = audio_lm.semantic.unique_consecutive
    if isinstance(quantizer.mulan, ClapTowers):
        return settings | {"mulan": dict(quantizer.mulan.settings)}
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
