"""Small models of upstream's for tests/covered.py: what the export infers of them, and what it refuses.

In: an option of upstream's. Out: settings, or the ExportError. It does not know the page.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from musiclm_deploy.export.checkpoint import Checkpoint
from musiclm_deploy.export.clap import infer_clap
from musiclm_deploy.export.collect import collect
from musiclm_deploy.export.encodec import infer_encodec
from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.export.mulan import infer_mulan, infer_quantizer, split_quantizer_state
from musiclm_deploy.export.semantic_tokens import infer_mel, read_hubert_kmeans
from musiclm_deploy.export.settings import Settings
from musiclm_deploy.export.soundstream import infer_soundstream
from musiclm_deploy.export.stage import build_stage
from musiclm_deploy.export.transformers import infer_transformer
from musiclm_deploy.model import AudioSpectrogramTransformer, MelKmeans, MuLaN, TextTransformer, music_spectrogram
from musiclm_deploy.model.clap_files import clap_tensors
from musiclm_deploy.model.open_musiclm import TokenConditionedTransformer
from musiclm_deploy.model.upstream import load_upstream
from support.clap import FRONT_END, laion_state
from support.clap import config as clap_config
from support.open_musiclm import SAID, SEQUENCES

load_upstream()
import audiolm_pytorch  # noqa: E402 (imports only after load_upstream)
import musiclm_pytorch  # noqa: E402 (imports only after load_upstream)
from encodec.model import EncodecModel  # noqa: E402 (imports only after load_upstream)
from transformers import HubertConfig, HubertModel  # noqa: E402 (imports only after load_upstream)

_SIZES: dict[str, Any] = {"dim": 24, "depth": 1, "heads": 2, "dim_head": 8}
_VOCABULARY: dict[str, dict[str, Any]] = {
    "semantic": {"num_semantic_tokens": 19},
    "coarse": {"num_semantic_tokens": 19, "codebook_size": 13, "num_coarse_quantizers": 2},
    "fine": {"codebook_size": 13, "num_coarse_quantizers": 2, "num_fine_quantizers": 3},
}
_SOUNDSTREAM: dict[str, Any] = {
    "channels": 4,
    "strides": (2, 3),
    "channel_mults": (2, 4),
    "codebook_dim": 16,
    "codebook_size": 13,
    "rq_num_quantizers": 3,
    "attn_heads": 2,
    "attn_dim_head": 8,
    "attn_window_size": 8,
    "discr_multi_scales": (1,),
    "multi_spectral_window_powers_of_two": (6,),
    "complex_stft_discr_kwargs": {"channels": 1},
}
_TOWER: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 2}


# --- models


def transformer(stage: str, **arguments: Any) -> nn.Module:
    kind = getattr(audiolm_pytorch, f"{stage.capitalize()}Transformer")
    return kind(**_SIZES | _VOCABULARY[stage] | {"audio_text_condition": True} | arguments)


def soundstream(**arguments: Any) -> Any:
    return audiolm_pytorch.SoundStream(**_SOUNDSTREAM | arguments)


def audio_tower(**arguments: Any) -> Any:
    return musiclm_pytorch.AudioSpectrogramTransformer(**_TOWER | arguments)


def text_tower(**arguments: Any) -> Any:
    return musiclm_pytorch.TextTransformer(**_TOWER | arguments)


def mulan(**arguments: Any) -> Any:
    return musiclm_pytorch.MuLaN(audio_tower(), text_tower(), **arguments)


def quantizer(**arguments: Any) -> nn.Module:
    return musiclm_pytorch.MuLaNEmbedQuantizer(mulan(), **{"conditioning_dims": (24,) * 3, "codebook_size": 11} | arguments)


# --- what the export infers: overrides -> settings


@cache
def _state(build: Callable[..., nn.Module], *arguments: Any) -> dict[str, Tensor]:
    return build(*arguments).state_dict()


def infer_stage(stage: str, overrides: dict[str, Any]) -> Settings:
    return infer_transformer(stage, Checkpoint(f"{stage}.pt", _state(transformer, stage), "2.4.0"), overrides)


def infer_prefixed(overrides: dict[str, Any]) -> Settings:
    checkpoint = Checkpoint("semantic.pt", _state(partial(transformer, "semantic", cond_as_self_attn_prefix=True)), "2.4.0")
    return infer_transformer("semantic", checkpoint, {"cond_as_self_attn_prefix": True} | overrides)


@cache
def _open_musiclm(stage: str, bias: str = "continuous") -> dict[str, Tensor]:
    absolute = {"use_absolute_position_embeddings": True, "max_absolute_position_embeddings": 600}
    return TokenConditionedTransformer(SEQUENCES[stage], 24, 1, 2, 8, relative_position_bias_type=bias, **absolute).state_dict()


def infer_open_musiclm(stage: str, overrides: dict[str, Any]) -> Settings:
    return infer_transformer(stage, Checkpoint(f"{stage}.transformer.10.pt", _open_musiclm(stage)), SAID | overrides)


def refuse_open_musiclm(bias: str = "continuous", *, told: bool = True, **overrides: Any) -> None:
    checkpoint = Checkpoint("semantic.transformer.10.pt", _open_musiclm("semantic", bias))
    infer_transformer("semantic", checkpoint, (SAID if told else {}) | overrides)


def infer_codec(overrides: dict[str, Any]) -> Settings:
    return infer_soundstream(_state(soundstream), None, None, overrides)


def infer_encodec_24khz(overrides: dict[str, Any], **config: Any) -> Settings:
    return infer_encodec(_state(EncodecModel.encodec_model_24khz, False), config, 8, overrides)


def infer_towers(overrides: dict[str, Any]) -> Settings:
    return infer_mulan(_state(mulan), overrides)


def _log_mel() -> nn.Module:
    audio = AudioSpectrogramTransformer(**_TOWER, **music_spectrogram(16000, n_mels=32), patch_size=(16, 2))
    return MuLaN(audio, TextTransformer(**_TOWER))


def infer_log_mel_towers(overrides: dict[str, Any]) -> Settings:
    return infer_mulan(_state(_log_mel), {"audio.patch_size": [16, 2]} | overrides)


def infer_mulan_quantizer(overrides: dict[str, Any]) -> Settings:
    return infer_quantizer(split_quantizer_state(_state(quantizer))[0], overrides)


def infer_mel_kmeans(overrides: dict[str, Any]) -> Settings:
    return infer_mel(Checkpoint("mel.pt", MelKmeans(num_clusters=4).state_dict()), overrides)


def infer_hubert(overrides: dict[str, Any]) -> Settings:
    with tempfile.TemporaryDirectory() as folder:
        config = HubertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, conv_dim=(4,) * 7)
        HubertModel(config).save_pretrained(folder)
        joblib.dump(KMeans(2, n_init="auto").fit(np.eye(16, dtype=np.float32)), Path(folder, "km.bin"))
        return read_hubert_kmeans(Path(folder), Path(folder, "km.bin"), overrides)[1]


def infer_clap_file(overrides: dict[str, Any]) -> Settings:
    """Infer the settings of LAION's file."""
    return infer_clap(Checkpoint("clap.pt", laion_state()), None, overrides)


def infer_clap_folder(overrides: dict[str, Any]) -> Settings:
    """Infer the settings of a folder of transformers."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "preprocessor_config.json").write_text(json.dumps(FRONT_END))
        return infer_clap(Checkpoint("clap", clap_tensors(laion_state()), config_json=clap_config()), Path(folder), overrides)


# --- what the export refuses: each of these raises ExportError


def refuse_transformer(stage: str, **arguments: Any) -> None:
    checkpoint = Checkpoint(f"{stage}.pt", transformer(stage, **arguments).state_dict(), "2.4.0")
    build_stage(stage, checkpoint, infer_transformer(stage, checkpoint, {}), 2048, 1)


def refuse_set(part: str, model: Callable[[], nn.Module], initialised: bool = True) -> None:
    """Files of a MusicLM, one of another model."""
    with tempfile.TemporaryDirectory() as folder:
        models = {stage: transformer(stage) for stage in _VOCABULARY} | {
            "codec": soundstream(rq_num_quantizers=5),
            "quantizer": quantizer(),
        }
        models[part] = model()
        for name, saved in models.items():
            for buffer in (buffer for path, buffer in saved.named_buffers() if path.endswith("initted")):
                buffer.fill_(initialised or name != part)
            torch.save(saved.state_dict(), Path(folder, f"{name}.pt"))
        collect({name: Path(folder, f"{name}.pt") for name in models}, {})


def refuse_soundstream(**arguments: Any) -> None:
    infer_soundstream(soundstream(**arguments).state_dict(), None, None, {})


def refuse_saved_soundstream(**arguments: Any) -> None:
    model = soundstream(**arguments)
    infer_soundstream(model.state_dict(), model._configs, None, {})


def refuse_encodec_48khz() -> None:
    infer_encodec(EncodecModel.encodec_model_48khz(pretrained=False).state_dict(), {}, 8, {})


def refuse_clap(renamed: dict[str, str] | None = None, preprocessor: dict[str, Any] | None = None) -> None:
    """Refuse a CLAP with other names, or another preprocessor_config.json."""
    state = laion_state()
    for theirs, other in (renamed or {}).items():
        state = {name.replace(theirs, other): tensor for name, tensor in state.items()}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "preprocessor_config.json").write_text(json.dumps(preprocessor or {}))
        infer_clap(Checkpoint("clap.pt", state), Path(folder), {})


def refuse_mert_v1() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "MERT-v1")
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"model_type": "mert_model", "feature_extractor_cqt": True, "deepnorm": False}))
        try:
            read_hubert_kmeans(path, path, {})
        except ExportError as error:
            raise ExportError(str(error).replace(f"{folder}/", "")) from None


def refuse_vq_wav2vec() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vq-wav2vec_kmeans.pt")
        torch.save({"model": {"vector_quantizer.embedding": torch.zeros(2, 2)}}, path)
        try:
            read_hubert_kmeans(path, path, {})
        except ExportError as error:
            raise ExportError(str(error).replace(f"{folder}/", "")) from None
