"""CLAP's towers through the export: graphs, settings, bundles of either file, and what is refused.

The towers are tiny, with the weights of tests/golden; the transformers are those of the tiny MusicLM.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.clap import HEADS, ROBERTA, WINDOW, clap_folder, golden, laion_file, laion_state, towers, waves
from support.mulan import run

import musiclm_deploy as md
from musiclm_deploy.export.checkpoint import Checkpoint, read_checkpoint
from musiclm_deploy.export.clap import build_clap, export_clap_audio, export_clap_text, infer_clap
from musiclm_deploy.export.collect import collect
from musiclm_deploy.export.errors import ExportError, MissingCheckpoint
from musiclm_deploy.model import MuLaNEmbedQuantizer
from musiclm_deploy.runtime.bundle import Bundle
from musiclm_deploy.runtime.memory import mulan_audio_bytes
from musiclm_deploy.runtime.windows import ranked_at_once

TOLERANCE = 1e-6  # of a graph against the same towers in PyTorch, entries of unit vectors; measured: 2e-7
AGAINST_LAION = 1e-4  # measured: 1.4e-5, of a tone, most of whose bands hold nothing but rounding
OVERRIDES = {"mulan": HEADS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return clap_folder(tmp_path_factory.mktemp("clap") / "folder")


@pytest.fixture(scope="module")
def quantizer(tmp_path_factory) -> Path:
    """A quantizer fitted to the towers' latents of noise, with their weights inside, as `save` writes them."""
    torch.manual_seed(0)
    made = MuLaNEmbedQuantizer(towers(), conditioning_dims=(24, 24, 24), rq_num_quantizers=3, codebook_size=11)
    colours = [torch.randn(2, 4000 + 7 * index).cumsum(1) * 0.02 for index in range(8)]
    made.fit(made.mulan.get_audio_latents(wave) for wave in colours)
    path = tmp_path_factory.mktemp("quantizer") / "quantizer.pt"
    made.save(path)
    return path


def sources(good: dict[str, Path], quantizer: Path, **more: Path) -> dict[str, Any]:
    return {name: path for name, path in good.items() if name not in ("mulan", "quantizer")} | {"quantizer": quantizer} | more


def test_audio_graph(tmp_path: Path) -> None:
    """Fault: a number of windows, a length or a batch that tracing fixed."""
    model = towers()
    export_clap_audio(model, tmp_path / "audio.onnx")
    for rows, samples in ((2, 1024), (1, 5000), (3, WINDOW // 2 + 1), (2, WINDOW), (1, WINDOW + 1), (2, 3 * WINDOW), (1, 3 * WINDOW + 1)):
        wave = torch.randn(rows, samples, generator=torch.Generator().manual_seed(samples)) * 0.1
        found = run(tmp_path / "audio.onnx", wave=wave)["latent"]
        np.testing.assert_allclose(found, model.get_audio_latents(wave), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(run(tmp_path / "audio.onnx", wave=waves())["latent"], golden()["audio_latent"], rtol=0, atol=AGAINST_LAION)


def test_text_graph(tmp_path: Path) -> None:
    """Fault: a length or a batch that tracing fixed, padding that is seen, or an output of another name than the contract's."""
    model, known = towers(), golden()
    export_clap_text(model, tmp_path / "text.onnx")
    ids, mask = torch.from_numpy(known["ids"]), torch.from_numpy(known["mask"])
    found = run(tmp_path / "text.onnx", input_ids=ids, attention_mask=mask)
    assert list(found) == ["latent"]
    np.testing.assert_allclose(found["latent"], known["text_latent"], rtol=0, atol=TOLERANCE)
    for row, count in enumerate(mask.sum(1).tolist()):
        alone = run(tmp_path / "text.onnx", input_ids=ids[row : row + 1, :count], attention_mask=mask[row : row + 1, :count])["latent"]
        np.testing.assert_allclose(alone[0], known["text_latent"][row], rtol=0, atol=TOLERANCE)


def test_fused_towers(tmp_path: Path) -> None:
    """Fault: a branch of the fused model, which torch.export cannot trace, that is still in the graph."""
    model = build_clap(*_fused(tmp_path))
    export_clap_audio(model, tmp_path / "audio.onnx")
    for samples in (9000, WINDOW + 9000):
        wave = torch.randn(2, samples) * 0.1
        expected = model.get_audio_latents(wave)
        np.testing.assert_allclose(run(tmp_path / "audio.onnx", wave=wave)["latent"], expected, rtol=0, atol=TOLERANCE)


def _fused(folder: Path):
    path = clap_folder(folder / "fused", fused=True)
    checkpoint = read_checkpoint(path, "mulan")
    settings = infer_clap(checkpoint, path, {})
    assert settings["audio.enable_fusion"] and settings["audio.mel_scale"] == "htk"
    return settings, checkpoint.state


def test_settings_and_their_sources(folder: Path) -> None:
    """Fault: a setting that LAION's file does not tell and nobody can override, or one of a folder that is not read."""
    told = infer_clap(read_checkpoint(folder, "mulan"), folder, {})
    assumed = infer_clap(Checkpoint("clap.pt", laion_state()), None, HEADS)
    assert told.values() == assumed.values()
    sources = {name: (told_by.source, dict(assumed.items())[name].source) for name, told_by in told.items()}
    assert sources["text.num_attention_heads"] == ("config.json", "override")
    assert sources["audio.frequency_min"] == ("preprocessor_config.json", "LAION's audio_cfg")
    assert told["text.layer_norm_eps"] == 1e-5 and told["text.max_seq_len"] == 77 and told["sample_hz"] == 48000
    with pytest.raises(ExportError, match="contradicts the checkpoint, which says 2 "):
        infer_clap(Checkpoint("clap.pt", laion_state()), None, {"text.num_hidden_layers": 3})


def test_a_bundle_of_the_folder(folder: Path, quantizer: Path, good: dict[str, Path], mel_file: Path, tmp_path: Path) -> None:
    """Fault: any step between the towers' files and music: recognition, quantizer, tokenizer, manifest, validation, runtime."""
    out = md.export_checkpoints(**sources(good, quantizer, mulan=folder), semantic_features=mel_file, out=tmp_path / "bundle", quiet=True)
    manifest = Bundle.open(out).manifest
    record = manifest.mulan
    short = replace(manifest, coarse=replace(manifest.coarse, max_length=8))
    assert ranked_at_once(short) == 10 * manifest.codec.sample_hz  # and not the eight frames that the coarse stage takes
    assert (record.sample_hz, record.max_tokens, record.pad_id, record.window_samples) == (48000, 77, 1, WINDOW)
    assert mulan_audio_bytes(record, 2, WINDOW + 1) == 4 * (record.window_bytes or 0) + (1 << 26)
    with md.load(out, device="cpu") as model:
        known = golden()
        sounds = [(wave, 48000) for wave in waves().numpy()]
        np.testing.assert_allclose(model.embed_audio(sounds), known["audio_latent"], rtol=0, atol=AGAINST_LAION)
        with np.load(ROBERTA / "golden.npz") as file:
            text = str(file["texts"][0])
        np.testing.assert_allclose(model.embed_text(text)[0], known["text_latent"][0], rtol=0, atol=1e-6)
        clip = model.generate("calm piano", seconds=0.5, seed=1, num_samples=2)
        assert np.isfinite(clip.audio).all() and len(clip.audio) == clip.sample_rate // 2 and clip.candidates[0].score is not None
        with pytest.raises(ValueError, match="longer than the 77"):
            model.embed_text("song " * 100)


def test_a_bundle_of_laions_file(quantizer: Path, good: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    """Fault: LAION's file whose names, prefix or missing tokenizer stop the export; or another model than the folder's."""
    laion = laion_file(tmp_path / "630k.pt")
    with pytest.raises(
        MissingCheckpoint, match=r"give --tokenizer FOLDER with vocab.json and merges.txt, or tokenizer.json, of roberta-base"
    ):
        collect(sources(good, quantizer, mulan=laion), OVERRIDES)
    collected = collect(sources(good, quantizer, mulan=laion, tokenizer=ROBERTA), OVERRIDES)
    other = collect(sources(good, quantizer, mulan=folder), {})
    one, two = (build_clap(found.settings["mulan"], found.checkpoints["mulan"].state) for found in (collected, other))
    assert torch.equal(one.get_audio_latents(waves()), two.get_audio_latents(waves()))
    alone = collect(sources(good, quantizer, tokenizer=ROBERTA / "vocab.json"), OVERRIDES)  # the quantizer holds its CLAP
    assert alone.settings["tokenizer"]["tokens"] == 389


def test_the_doctor(folder: Path, good: dict[str, Path], tmp_path: Path) -> None:
    """Fault: a CLAP that is called a MuLaN, its size or fusion named wrongly, or a tokenizer that nobody is told to give."""
    report = md.diagnose(folder)
    assert report.files[0].kind == "mulan" and not report.faults and "tokenizer" not in report.missing
    assert report.files[0].what == "CLAP (HTSAT of width 8 and depths [2, 2, 2, 1], not fused) with RoBERTa's tokenizer"
    laion = laion_file(tmp_path / "630k.pt")
    report = md.diagnose([laion], config=OVERRIDES)
    assert report.files[0].what.endswith("not fused) without a tokenizer beside it") and report.missing[-1] == "tokenizer"
    assert "give --tokenizer FOLDER with vocab.json and merges.txt" in report.warnings[0] and not report.faults
    for tokenizer in (ROBERTA, ROBERTA / "vocab.json"):
        report = md.diagnose([laion, tokenizer], config=OVERRIDES)
        assert report.files[1].what == "RoBERTa's tokenizer of 389 tokens" and "tokenizer" not in report.missing and not report.faults
    fused = md.diagnose(clap_folder(tmp_path / "fused", tokenizer=False, fused=True)).files[0]
    assert fused.what.endswith(", fused) without a tokenizer beside it")
    assert md.diagnose(good["mulan"]).files[0].what == "a MuLaN model"
    (fault,) = md.diagnose([laion], config={"mulan": {"text.num_attention_heads": 5}} | {}).faults
    assert fault.startswith("630k.pt: mulan: transformers refuses these settings of CLAP")


def test_a_damaged_clap_is_refused(tmp_path: Path) -> None:
    """Fault: values that are no numbers in a tower, which every latent would have."""
    state = laion_state()
    state["audio_branch.norm.bias"][0] = torch.nan
    with pytest.raises(ExportError, match=r"norm\.bias holds NaN or infinite values"):
        build_clap(infer_clap(Checkpoint("clap.pt", state), None, HEADS), state)
