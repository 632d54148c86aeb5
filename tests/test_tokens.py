"""Tokens and waves of a bundle against audiolm-pytorch's own `generate`, on the same noise, over every variant of the transformers.

Two stochastic programs are equal when the same noise gives the same tokens: nothing here is close enough, all of it is equal.
"""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.upstream_tokens import FRAMES, SEMANTIC_STEPS, SEMANTIC_TOKENS, TEXTS, shared_noise, upstream_generate

import musiclm_deploy as md
from demo.checkpoints import randomize
from musiclm_deploy.export.checkpoint import Checkpoint
from musiclm_deploy.export.codec import export_codec_stream
from musiclm_deploy.export.export import records_of
from musiclm_deploy.export.mulan import conditioner_weights, export_conditioner
from musiclm_deploy.export.soundstream import build_decoder, infer_soundstream
from musiclm_deploy.export.stage import export_stage
from musiclm_deploy.export.transformers import STAGES, infer_transformer
from musiclm_deploy.model.causal import state_shapes
from musiclm_deploy.model.upstream import load_upstream
from musiclm_deploy.runtime.bundle import MANIFEST, Bundle, Conditioner

_CONDITIONING_TOKENS, _CONDITIONING_CODES = 3, 11  # of the tiny bundle's quantizer

FACTORS: dict[str, tuple[Any, ...]] = {
    "conditioning": ("cross", "prefix", "none"),
    "rel_pos_bias": (True, False),
    "streams": (4, 1, 2, 3),
    "version": ("2.4.0", "2.3.1", "2.1.4"),  # before 2.4 no streams, before 2.2 no value residual
    "cond_dim": (None, 20),
    "shape": ((2, 8, 2), (3, 20, 1), (1, 64, 3), (4, 7, 2)),  # heads, head size, depth
    "codes": ((2, 3, 13, 1), (1, 2, 37, 1), (3, 5, 16, 1), (2, 1, 11, 2)),  # coarse, fine, codebook, residual groups
    "unique_consecutive": (True, False),
    "project_logits": (True, False),
    "filter_thres": (0.7, 0.0),  # at 0 every entry can be drawn, so that the noise can force an end
    "cond_scale": (3.0, 1.0),
}


def _possible(pair: dict[str, Any]) -> bool:
    return not (pair.get("version", "2.4.0") != "2.4.0" and pair.get("streams", 1) != 1)


def _pairs(variant: dict[str, Any]) -> set[tuple]:
    return {(a, variant[a], b, variant[b]) for a, b in itertools.combinations(FACTORS, 2)}


def _all_pairs() -> set[tuple]:
    return {(a, x, b, y) for a, b in itertools.combinations(FACTORS, 2) for x in FACTORS[a] for y in FACTORS[b] if _possible({a: x, b: y})}


def _covering_set() -> list[dict[str, Any]]:
    """Variants in which every possible pair of levels occurs: grown greedily from random candidates, the same at every run."""
    rng = np.random.default_rng(0)
    missing, chosen = _all_pairs(), []
    while missing:
        candidates = []
        for _ in range(60):
            a, x, b, y = sorted(missing, key=str)[rng.integers(len(missing))]
            variant = {name: levels[rng.integers(len(levels))] for name, levels in FACTORS.items()} | {a: x, b: y}
            if variant["version"] != "2.4.0" and variant["streams"] != 1:
                variant |= {"streams": 1} if a != "streams" and b != "streams" else {"version": "2.4.0"}
            candidates.append(variant)
        best = max(candidates, key=lambda variant: len(_pairs(variant) & missing))
        chosen.append(best)
        missing -= _pairs(best)
    return chosen


VARIANTS = _covering_set()


def test_every_pair_of_levels_is_tested() -> None:
    """Fault: a combination of two options that no variant holds."""
    assert _all_pairs() <= set().union(*map(_pairs, VARIANTS))


def _transformers(variant: dict[str, Any], seed: int) -> dict[str, Any]:
    load_upstream()
    import audiolm_pytorch

    torch.manual_seed(seed)
    heads, dim_head, depth = variant["shape"]
    coarse, fine, codebook, _ = variant["codes"]
    shared: dict[str, Any] = {
        "dim": 24,
        "depth": depth,
        "heads": heads,
        "dim_head": dim_head,
        "rel_pos_bias": variant["rel_pos_bias"],
        "flash_attn": not variant["rel_pos_bias"],
        "num_residual_streams": variant["streams"],
        "add_value_residual": variant["version"] != "2.1.4",
        "audio_text_condition": variant["conditioning"] != "none",
        "cond_as_self_attn_prefix": variant["conditioning"] == "prefix",
    }
    if variant["conditioning"] != "none":
        shared["cond_dim"] = variant["cond_dim"]
    codes = {"codebook_size": codebook, "num_coarse_quantizers": coarse}
    models = {
        "semantic": audiolm_pytorch.SemanticTransformer(num_semantic_tokens=SEMANTIC_TOKENS, **shared),
        "coarse": audiolm_pytorch.CoarseTransformer(
            num_semantic_tokens=SEMANTIC_TOKENS, project_semantic_logits=variant["project_logits"], **codes, **shared
        ),
        "fine": audiolm_pytorch.FineTransformer(
            num_fine_quantizers=fine, project_coarse_logits=variant["project_logits"], **codes, **shared
        ),
    }
    for model in models.values():
        randomize(model)
        model.eval()
    with torch.no_grad():
        models["semantic"].to_logits.bias[-1] += 30  # the end is always among the top k; the noise decides when it is drawn
    return models


def _state(variant: dict[str, Any], transformer: Any) -> dict[str, torch.Tensor]:
    """The state dict as the variant's version would have saved it."""
    state = transformer.state_dict()
    return state if variant["version"] == "2.4.0" else {name.replace(".branch.", "."): tensor for name, tensor in state.items()}


@pytest.fixture(scope="module")
def codecs(tmp_path_factory):
    """codes -> (upstream's SoundStream, the folder of its exported decoder, settings, our decoder): one export per level."""
    load_upstream()
    import audiolm_pytorch

    made: dict[tuple, tuple[Any, Path, Any, Any]] = {}

    def get(codes: tuple[int, int, int, int]) -> tuple[Any, Path, Any, Any]:
        if codes not in made:
            coarse, fine, codebook, groups = codes
            torch.manual_seed(sum(codes))
            codec = audiolm_pytorch.SoundStream(
                channels=4,
                strides=(2, 3),
                channel_mults=(2, 4),
                codebook_dim=16,
                codebook_size=codebook,
                rq_num_quantizers=coarse + fine,
                rq_groups=groups,
                attn_heads=2,
                attn_dim_head=8,
                attn_window_size=4,
                pad_mode="constant",  # decodes clips of any length; reflection is tested with the codec
            )
            randomize(codec)
            codec.eval()
            settings = infer_soundstream(codec.state_dict(), codec._configs, None, {})
            folder = tmp_path_factory.mktemp("codec")
            decoder = build_decoder(settings, codec.state_dict())
            export_codec_stream(decoder, folder / "codec_stream.onnx")
            made[codes] = codec, folder, settings, decoder
        return made[codes]

    return get


def _bundle(variant, transformers, quantizer, codec, tiny_bundle: Path, folder: Path) -> Path:
    """The tiny bundle with this variant's transformers, conditioner and codec in place of its own, exported by the real code."""
    shutil.copytree(tiny_bundle, folder)
    manifest = Bundle.open(folder).manifest
    groups = variant["codes"][3]
    decoders = {}
    for stage in STAGES:
        overrides = {"cond_as_self_attn_prefix": True} if variant["conditioning"] == "prefix" else {}
        overrides |= {"max_length": 40} if stage == "semantic" else {"max_time_steps": 2 * FRAMES}
        checkpoint = Checkpoint(f"{stage}.pt", _state(variant, transformers[stage]), variant["version"])
        if variant["conditioning"] == "none":
            overrides["cond_as_self_attn_prefix"] = False
        if variant["conditioning"] == "cross":
            overrides.pop("cond_as_self_attn_prefix", None)
        decoders[stage] = export_stage(stage, checkpoint, infer_transformer(stage, checkpoint, overrides), folder, 40, groups)
    weights = conditioner_weights({name: tensor for name, tensor in quantizer.state_dict().items() if not name.startswith("mulan.")})
    export_conditioner(weights, folder / "conditioner.onnx")
    _, codec_folder, settings, decoder = codec
    for file in codec_folder.iterdir():
        shutil.copy(file, folder)
    codec_record = replace(
        manifest.codec,
        samples_per_frame=6,
        quantizers=settings["rq_num_quantizers"] * groups,
        groups=groups,
        codebook_size=settings["codebook_size"],
        lookahead_frames=decoder.lookahead_frames,
        min_frames=decoder.min_frames,
        states={name: list(shape) for name, shape in state_shapes(decoder).items()},
    )
    dims = dict.fromkeys(STAGES, next(iter(weights.values()))[1].shape[-1])
    (folder / MANIFEST).unlink()
    manifest = replace(
        manifest,
        **decoders,
        conditioner=Conditioner("conditioner.onnx", _CONDITIONING_TOKENS, _CONDITIONING_CODES, dims),
        codec=codec_record,
        unique_consecutive=variant["unique_consecutive"],
        files=records_of(folder),
    )
    (folder / MANIFEST).write_text(manifest.to_json())
    return folder


@pytest.mark.parametrize("index", range(len(VARIANTS)))
def test_same_noise_same_tokens(index: int, tiny_models, tiny_bundle, codecs, tmp_path, monkeypatch) -> None:
    """Fault: any difference from upstream in a table, coordinate, head, mask, cache, guidance, end or padding rule, in any variant."""
    import musiclm_pytorch

    variant = VARIANTS[index]
    transformers = _transformers(variant, seed=index)
    width = variant["cond_dim"] if variant["cond_dim"] and variant["conditioning"] != "none" else 24
    quantizer = musiclm_pytorch.MuLaNEmbedQuantizer(
        tiny_models["mulan"], (width,) * 3, rq_num_quantizers=_CONDITIONING_TOKENS, codebook_size=_CONDITIONING_CODES
    )
    randomize(quantizer.rq)
    quantizer.eval()
    with torch.no_grad():
        for table in quantizer.cond_embeddings.values():
            table.copy_(torch.randn_like(table))
    codec = codecs(variant["codes"])
    noise = shared_noise(variant, seed=index)
    expected = upstream_generate(variant, transformers, quantizer, codec[0], noise, monkeypatch)
    folder = _bundle(variant, transformers, quantizer, codec, tiny_bundle, tmp_path / "bundle")
    sampling = {stage: md.SamplingConfig(filter_thres=variant["filter_thres"], cond_scale=_scale(variant, stage)) for stage in STAGES}
    with md.load(folder, device="cpu") as model:
        hop, hz = model.bundle.manifest.codec.samples_per_frame, model.bundle.manifest.codec.sample_hz
        found = model.generate(
            TEXTS, seconds=FRAMES * hop / hz, max_semantic_tokens=SEMANTIC_STEPS, compat="upstream", sampling=sampling, noise=noise
        )

    ended_early = {"semantic": 1, "coarse": 2} if variant["filter_thres"] == 0 else {"semantic": 1}
    for row, music in enumerate(found):
        semantic, coarse = expected["semantic"][row].numpy(), expected["coarse"][row].numpy()
        keep = ~(coarse == -1).any(axis=1)
        assert (music.tokens.semantic == semantic[semantic != -1]).all(), "semantic"
        assert (music.tokens.coarse == coarse[keep]).all(), "coarse"
        assert (music.tokens.fine == expected["fine"][row].numpy()[keep]).all(), "fine"
        assert (len(music.tokens.semantic) == 5) == (row == ended_early["semantic"])
        assert (keep.sum() == 4) == (row == ended_early.get("coarse"))
        codes = torch.cat([expected["coarse"][row][keep], expected["fine"][row][keep]], dim=-1)[None]
        wave = codec[0].decode_from_codebook_indices(codes).detach()[0, 0].numpy()
        assert np.abs(music.audio - wave).max() <= 1e-4 * np.abs(wave).max(), "wave (fp32)"


def _scale(variant: dict[str, Any], stage: str) -> float | None:
    """Guidance reaches the coarse stage alone: in the others upstream's null pass equals its first, whatever the scale."""
    return variant["cond_scale"] if stage == "coarse" and variant["conditioning"] != "none" else None
