"""CLAP's tensors under one set of names, and the settings of its towers, out of LAION's files and Hugging Face folders.

In: a state dict, the content of a folder's config.json and preprocessor_config.json. Out: tensors under the names of transformers'
`ClapModel`, and `Fact`s: what its configurations must be told, each with its source. It builds no model.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..runtime.user_files import read_text
from .hubert_files import Fact
from .tensor_file import files_of, read_package

SAMPLE_HZ, WINDOW_SECONDS = 48000, 10
# LAION's names, and what transformers calls them; `attn.qkv` is split below.
_LAION = (
    (r"^audio_branch\.", "audio_model.audio_encoder."),
    (r"^text_branch\.", "text_model."),
    (r"^(audio|text)_projection\.0\.", r"\1_projection.linear1."),
    (r"^(audio|text)_projection\.2\.", r"\1_projection.linear2."),
    (r"\.bn0\.", ".batch_norm."),
    (r"\.attn\.(qkv|relative_position)", r".attention.self.\1"),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"(\.blocks\.\d+)\.mlp\.fc1\.", r"\1.intermediate.dense."),
    (r"(\.blocks\.\d+)\.mlp\.fc2\.", r"\1.output.dense."),
    (r"(\.blocks\.\d+)\.norm1\.", r"\1.layernorm_before."),
    (r"(\.blocks\.\d+)\.norm2\.", r"\1.layernorm_after."),
)
# Tensors that no latent depends on: LAION's own spectrogram, its heads for tags, the scales of the loss, and what each model makes anew.
_UNUSED = re.compile(
    r"audio_branch\.(spectrogram_extractor|logmel_extractor|tscam_conv|head)\..*|(audio|text)_transform\..*|logit_(scale|bias).*|contrast\..*"
    r"|.*\.attn_mask|.*\.(position_ids|token_type_ids|relative_position_index|num_batches_tracked)"
)
_AUDIO, _TEXT = "audio_model.audio_encoder.", "text_model."
_BLOCK = f"{_AUDIO}layers.0.blocks.0."
# Arguments of transformers' configurations that leave no trace in the tensors, with what every published model has.
_UNTOLD_AUDIO = {"patch_stride": (4, 4), "spec_size": 256, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "fusion_type": None}
_UNTOLD_TEXT = {"hidden_act": "gelu", "pad_token_id": 1}
_ROBERTA_EPS, _CONFIG_EPS = 1e-5, 1e-12
# Of preprocessor_config.json, and the values of LAION's audio_cfg.
_FRONT_END = {"frequency_min": 50, "frequency_max": 14000, "fft_window_size": 1024, "hop_length": 480}
_RANGES = {
    "audio.window_size": (1, 32),
    "audio.spec_size": (16, 1024),
    "audio.num_mel_bins": (1, 512),
    "audio.fft_window_size": (16, 8192),
    "audio.hop_length": (1, SAMPLE_HZ),
    "text.pad_token_id": (0, 1 << 20),
}
_FIXED = {"sampling_rate": SAMPLE_HZ, "max_length_s": WINDOW_SECONDS, "top_db": None}


def read_clap(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a Hugging Face folder, LAION's `.pt`, or a file of a trainer: its tensors, as they are named there, and its config.json.

    Raises ValueError, which names the file, if there is no CLAP in it.
    """
    package = read_package(path)
    for entry in ("state_dict", "model"):
        if isinstance(package, Mapping) and isinstance(package.get(entry), Mapping):
            package = package[entry]
    state = {str(name).removeprefix("module."): tensor for name, tensor in package.items() if isinstance(tensor, Tensor)}
    if not is_clap(state):
        first = next(iter(state), None)
        raise ValueError(f"{path}: no CLAP model (its first tensor is {first!r}); expected a folder of ClapModel, or LAION's file.")
    file = files_of(path)[0].with_name("config.json")
    return state, _json_of(file) if file.is_file() else {}


def is_clap(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict is of CLAP, under LAION's names or transformers'."""
    return any(f"audio_projection.{first}.weight" in state for first in ("0", "linear1"))


def clap_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that latents depend on, under transformers' names. Raises ValueError for towers of other kinds."""
    tensors: dict[str, Tensor] = {}
    for saved, tensor in state.items():
        name = saved
        if _UNUSED.fullmatch(name):
            continue
        if name.startswith(("audio_branch.", "text_branch.", "audio_projection.", "text_projection.")):
            for pattern, replacement in _LAION:
                name = re.sub(pattern, replacement, name)
        if ".attention.self.qkv." in name:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                tensors[name.replace("qkv", part)] = third
        else:
            tensors[name] = tensor
    for tower, needed, what in (
        ("audio", f"{_AUDIO}patch_embed.proj.weight", "HTSAT"),
        ("text", f"{_TEXT}embeddings.word_embeddings.weight", "RoBERTa"),
    ):
        if needed not in tensors:
            example = next((name for name in state if name.startswith((f"{tower}_branch.", f"{tower}_model."))), None)
            found = f"its names are like {example!r}" if example else "it is missing"
            raise ValueError(f"the {tower} tower of this CLAP is not {what} ({found}). CLAP with HTSAT and RoBERTa is covered.")
    return tensors


def clap_facts(tensors: Mapping[str, Tensor], config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> dict[str, Fact]:
    """Return the settings of a CLAP, `audio.*` and `text.*` under the names of transformers' configurations.

    tensors: of `clap_tensors`; config: of config.json, {} for a file of LAION; preprocessor: of preprocessor_config.json, {} if there is
    none. Raises ValueError, which names the tensor, for tensors that are missing or misshapen, and for settings that are not covered.
    """
    patch = _shape(tensors, f"{_AUDIO}patch_embed.proj.weight", 4)
    depths = tuple(_count(tensors, f"{_AUDIO}layers.{i}.blocks.") for i in range(_count(tensors, f"{_AUDIO}layers.")))
    tables = [_shape(tensors, f"{_AUDIO}layers.{i}.blocks.0.attention.self.relative_position_bias_table", 2) for i in range(len(depths))]
    window = (math.isqrt(tables[0][0]) + 1) // 2
    (mlp, width), (latent, hidden) = (_shape(tensors, name, 2) for name in (f"{_BLOCK}intermediate.dense.weight", _linear("audio")))
    facts = {
        "audio.patch_embeds_hidden_size": _told(patch[0], f"patch_embed.proj [{patch[0]}, ...]"),
        "audio.patch_size": _told(patch[2:], f"patch_embed.proj {list(patch)}"),
        "audio.patch_embed_input_channels": _told(patch[1], f"patch_embed.proj [..., {patch[1]}, ...]"),
        "audio.depths": _told(depths, "number of audio layers and blocks"),
        "audio.num_attention_heads": _told(tuple(heads for _, heads in tables), "relative_position_bias_table"),
        "audio.window_size": _told(window, f"relative_position_bias_table [{tables[0][0]}, ...]"),
        "audio.mlp_ratio": _told(mlp / width, f"intermediate.dense [{mlp}, {width}]"),
        "audio.num_mel_bins": _told(_shape(tensors, f"{_AUDIO}batch_norm.weight", 1)[0], "batch_norm.weight"),
        "audio.qkv_bias": _told(f"{_BLOCK}attention.self.query.bias" in tensors, "attention.self.query.bias"),
        "audio.enable_patch_layer_norm": _told(f"{_AUDIO}patch_embed.norm.weight" in tensors, "patch_embed.norm.weight"),
        "audio.hidden_size": _told(hidden, f"audio_projection [..., {hidden}]"),
    }
    fused = f"{_AUDIO}patch_embed.mel_conv2d.weight" in tensors
    facts["audio.enable_fusion"] = _told(fused, f"patch_embed.mel_conv2d {'present' if fused else 'absent'}")
    if fused:
        inner = _shape(tensors, f"{_AUDIO}patch_embed.fusion_model.local_att.0.weight", 4)[0]
        facts["audio.aff_block_r"] = _told(patch[0] // max(inner, 1), f"fusion_model.local_att [{inner}, ...]")
    audio_config, text_config = (_section(config, name) for name in ("audio_config", "text_config"))
    if isinstance(audio_config.get("patch_stride"), int):
        audio_config = {**audio_config, "patch_stride": [audio_config["patch_stride"]] * 2}
    for name, value in _UNTOLD_AUDIO.items():
        facts[f"audio.{name}"] = _from(audio_config, name, value, "as every published CLAP")
    facts |= _text_facts(tensors, text_config)
    facts["dim_latent"] = _told(latent, f"audio_projection.linear1 [{latent}, ...]")
    facts["projection_hidden_act"] = _from(config, "projection_hidden_act", "relu", "as every published CLAP")
    for name, value in _FRONT_END.items():
        facts[f"audio.{name}"] = _from(preprocessor, name, value, "LAION's audio_cfg", "preprocessor_config.json")
    facts["audio.mel_scale"] = _assumed(
        "htk" if fused else "slaney",
        "LAION's: fused models were trained on torchaudio's spectrogram, the others on torchlibrosa's",
    )
    for name, value in _FIXED.items():
        if preprocessor.get(name, value) != value:
            raise ValueError(
                f"preprocessor_config.json has {name} = {preprocessor[name]!r}; covered is {value!r}, which LAION's models have."
            )
    return facts


def _text_facts(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Fact]:
    vocabulary, width = _shape(tensors, f"{_TEXT}embeddings.word_embeddings.weight", 2)
    positions, _ = _shape(tensors, f"{_TEXT}embeddings.position_embeddings.weight", 2)
    types, _ = _shape(tensors, f"{_TEXT}embeddings.token_type_embeddings.weight", 2)
    inner, _ = _shape(tensors, f"{_TEXT}encoder.layer.0.intermediate.dense.weight", 2)
    facts = {
        "text.vocab_size": _told(vocabulary, f"word_embeddings [{vocabulary}, ...]"),
        "text.hidden_size": _told(width, f"word_embeddings [..., {width}]"),
        "text.num_hidden_layers": _told(_count(tensors, f"{_TEXT}encoder.layer."), "number of text layers"),
        "text.intermediate_size": _told(inner, f"intermediate.dense [{inner}, ...]"),
        "text.max_position_embeddings": _told(positions, f"position_embeddings [{positions}, ...]"),
        "text.type_vocab_size": _told(types, f"token_type_embeddings [{types}, ...]"),
        "text.num_attention_heads": _from(config, "num_attention_heads", max(width // 64, 1), "heads of 64, as RoBERTa's"),
    }
    for name, value in _UNTOLD_TEXT.items():
        facts[f"text.{name}"] = _from(config, name, value, "as RoBERTa's")
    eps = config.get("layer_norm_eps", _CONFIG_EPS)
    if eps in (_CONFIG_EPS, _ROBERTA_EPS):  # a default that transformers writes for models whose training had RoBERTa's
        facts["text.layer_norm_eps"] = _assumed(_ROBERTA_EPS, "RoBERTa's; 1e-12 is no more than transformers' default for CLAP")
    else:
        facts["text.layer_norm_eps"] = _told(eps, "config.json")
    return facts


def check_ranges(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for a setting that cannot be, or that would take gigabytes. Settings that are missing have a default."""
    for name, (least, most) in _RANGES.items():
        value = settings.get(name, least)
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{name} must be a whole number from {least} to {most}, got {value!r}.")
    lowest, highest = (settings.get(f"audio.{name}", _FRONT_END[name]) for name in ("frequency_min", "frequency_max"))
    if not all(isinstance(hz, int | float) for hz in (lowest, highest)) or not 0 <= lowest < highest <= SAMPLE_HZ / 2:
        raise ValueError(
            f"audio.frequency_min and audio.frequency_max must lie between 0 and {SAMPLE_HZ // 2}, got {lowest!r}, {highest!r}."
        )
    if (scale := settings.get("audio.mel_scale", "slaney")) not in ("slaney", "htk"):
        raise ValueError(f"audio.mel_scale must be 'slaney' or 'htk', got {scale!r}.")


def preprocessor_of(path: Path) -> dict[str, Any]:
    """Return the content of a folder's preprocessor_config.json; {} if there is none. Raises ValueError if it is no JSON."""
    file = path / "preprocessor_config.json"
    return _json_of(file) if file.is_file() else {}


def _json_of(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected an object of settings, got {type(content).__name__}.")
    return content


def size_of(facts: Mapping[str, Any]) -> str:
    """Return the words for a CLAP of these settings: "HTSAT-tiny, not fused"."""
    audio = (facts["audio.patch_embeds_hidden_size"], tuple(facts["audio.depths"]))
    sizes = {(96, (2, 2, 6, 2)): "HTSAT-tiny", (128, (2, 2, 12, 2)): "HTSAT-base", (256, (2, 2, 12, 2)): "HTSAT-large"}
    name = sizes.get(audio, f"HTSAT of width {audio[0]} and depths {list(audio[1])}")
    return f"{name}, {'fused' if facts['audio.enable_fusion'] else 'not fused'}"


def _linear(tower: str) -> str:
    return f"{tower}_projection.linear1.weight"


def _told(value: Any, source: str) -> Fact:
    return Fact(value, source, True)


def _assumed(value: Any, source: str) -> Fact:
    return Fact(value, source, False)


def _from(config: Mapping[str, Any], name: str, default: Any, why: str, file: str = "config.json") -> Fact:
    value = config.get(name)
    if value is None:
        return _assumed(default, why)
    return _told(tuple(value) if isinstance(value, list) else value, file)


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, Mapping) else {}


def _shape(tensors: Mapping[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    if name not in tensors:
        raise ValueError(f"the tensor {name!r} is missing. Was the file saved whole?")
    shape = tuple(tensors[name].shape)
    if len(shape) != dims or 0 in shape:
        raise ValueError(f"the tensor {name!r} has shape {list(shape)}, expected {dims} dimensions, none of them empty.")
    return shape


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})
