"""MERT-v0, a HuBERT of music: open-musiclm's tokens from its files, and what of MERT-v1 is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.clap import GOLDEN
from support.mulan import run

import musiclm_deploy as md
from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.export.semantic_tokens import build_tokenizer, export_wav2vec, read_hubert_kmeans
from musiclm_deploy.model import HubertKmeans

MERT, KMEANS = GOLDEN / "mert", GOLDEN / "mert" / "kmeans.joblib"
SETTINGS: dict[str, Any] = {"output_layer": 7, "normalize_features": True, "seq_len_multiple_of": 320}


def golden() -> dict[str, np.ndarray]:
    with np.load(MERT / "golden.npz") as file:
        return dict(file)


def renamed(folder: Path, **config: Any) -> Path:
    """Copy the model's folder, with another config.json."""
    values = json.loads((MERT / "config.json").read_text())
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values | config))
    shutil.copy(MERT / "model.safetensors", folder)
    return folder


def test_open_musiclms_tokens(tmp_path: Path) -> None:
    """Fault: another layer, a norm over time instead of over features, a biased variance. Without the norm the tokens differ."""
    known = golden()
    wave = torch.from_numpy(known["wave"])
    found, settings = read_hubert_kmeans(MERT, KMEANS, SETTINGS)
    tokenizer = build_tokenizer(found["wav2vec"], settings)
    features = tokenizer.features(wave)
    np.testing.assert_allclose(features.detach(), known["embed"], rtol=0, atol=1e-5)  # measured: 1.1e-6 of features of deviation 1
    np.testing.assert_array_equal(tokenizer(wave), known["tokens"])
    assert (HubertKmeans.from_files(MERT, KMEANS, output_layer=7)(wave).numpy() != known["tokens"]).any()
    assert {name: setting.source for name, setting in settings.items() if name in SETTINGS} == dict.fromkeys(SETTINGS, "override")
    record = export_wav2vec(tokenizer, settings, tmp_path)
    assert (record.min_samples, record.samples_per_token) == (640, 320)
    np.testing.assert_array_equal(run(tmp_path / record.graph, wave=wave)["tokens"], known["tokens"])
    for samples, tokens in ((640, 1), (16319, 49), (32000, 99), (160001, 499)):  # open-musiclm cuts the end off
        sound = torch.randn(1, samples, generator=torch.Generator().manual_seed(0))
        assert run(tmp_path / record.graph, wave=sound)["tokens"].shape == tokenizer(sound).shape == (1, tokens)


def test_waves_of_deviation_one() -> None:
    """Fault: a quiet sound that fairseq's larger epsilon leaves below a deviation of one, as training did not have it."""
    known = golden()
    wave = torch.from_numpy(known["wave"])
    scaled = (wave - wave.mean(1, keepdim=True)) / (wave.var(1, keepdim=True) + 1e-7).sqrt()
    plain = HubertKmeans.from_files(MERT, KMEANS, **SETTINGS)
    normed = HubertKmeans.from_files(MERT, KMEANS, **SETTINGS, normalize=True, normalize_eps=1e-7)
    np.testing.assert_allclose(normed.features(wave * 0.01), plain.features(scaled), rtol=0, atol=5e-2)
    fairseqs = HubertKmeans.from_files(MERT, KMEANS, **SETTINGS, normalize=True)
    assert (fairseqs.features(wave * 0.01) - plain.features(scaled)).abs().max() > (
        normed.features(wave * 0.01) - plain.features(scaled)
    ).abs().max()


def test_plain_hubert_of_any_name(tmp_path: Path) -> None:
    """Fault: MERT-v0's own folder that is refused for the name of its type."""
    folder = renamed(tmp_path / "MERT-v0", model_type="mert_model", feature_extractor_cqt=False, deepnorm=False, attention_relax=-1.0)
    tokens = HubertKmeans.from_files(folder, KMEANS, **SETTINGS)(torch.from_numpy(golden()["wave"]))
    np.testing.assert_array_equal(tokens, golden()["tokens"])
    assert md.diagnose(folder).files[0].kind == "hubert"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"feature_extractor_cqt": True}, r"feature_extractor_cqt = True \(constant-Q features\), as MERT-v1 does"),
        ({"deepnorm": True, "attention_relax": 32.0}, r"deepnorm = True \(other residuals\), attention_relax = 32.0 \(other scores\)"),
        ({"model_type": "music2vec"}, "of type 'music2vec', expected 'hubert'"),
    ],
)
def test_parts_of_mert_v1_are_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Fault: a model with other arithmetic under the same tensors' names."""
    with pytest.raises(ExportError, match=message):
        read_hubert_kmeans(renamed(tmp_path / "MERT", **{"model_type": "mert_model"} | config), KMEANS, SETTINGS)


def test_tensors_of_mert_v1_are_refused(tmp_path: Path) -> None:
    folder = renamed(tmp_path / "MERT", model_type="mert_model")
    save_file(load_file(MERT / "model.safetensors") | {"post_cqt_feature_proj.weight": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(ExportError, match=r"'post_cqt_feature_proj\.weight' belongs to the constant-Q spectrogram of MERT-v1"):
        read_hubert_kmeans(folder, KMEANS, {})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"seq_len_multiple_of": 0}, "seq_len_multiple_of must be a whole number of samples of at least 1, got 0"),
        ({"normalize_eps": 0}, "normalize_eps must be a small number above 0"),
        ({"normalize_features": 1}, "normalize_features must be of type bool"),
    ],
)
def test_settings_are_checked(override: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        read_hubert_kmeans(MERT, KMEANS, override)
