"""The export's own check of the transformers: it takes every right model, whatever its sizes, and finds a wrong weight in each."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import musiclm_deploy as md
from demo.checkpoints import TINY, build_models
from musiclm_deploy.export.checkpoint import Checkpoint
from musiclm_deploy.export.collect import Collected
from musiclm_deploy.export.export import records_of
from musiclm_deploy.export.stage import export_stage
from musiclm_deploy.export.transformers import STAGES, infer_transformer
from musiclm_deploy.export.validate import TOLERANCES, transformer_error
from musiclm_deploy.runtime.bundle import MANIFEST, Bundle

# Coarse and fine quantizers, residual groups, trained frames and semantic tokens, other arguments of upstream's transformers.
SIZES: list[tuple[int, int, int, int, int, dict[str, Any]]] = [
    (2, 1, 1, 512, 2048, {}),
    (4, 1, 1, 3, 5, {"project_coarse_logits": False}),
    (1, 1, 2, 2, 1, {}),
    (1, 2, 2, 1, 2, {"project_semantic_logits": False}),
    (2, 3, 1, 1, 1, {}),
    (1, 5, 1, 2, 3, {"cond_as_self_attn_prefix": True}),
    (4, 1, 1, 1, 1, {"rel_pos_bias": False, "flash_attn": True}),
    (1, 1, 1, 1, 1, {"audio_text_condition": False}),
]


def _bundle_of(sizes: tuple, tiny_bundle: Path, folder: Path) -> tuple[Path, Collected]:
    """Return the tiny bundle with transformers of these sizes in place of its own, and what they were made of."""
    coarse, fine, groups, frames, tokens, arguments = sizes
    own = {name: {name: value} for name, value in arguments.items() if name.startswith("project_")}
    shared = {name: value for name, value in arguments.items() if name not in own}
    preset = replace(
        TINY,
        coarse_quantizers=coarse,
        fine_quantizers=fine,
        shared_arguments=shared,
        coarse_arguments=own.get("project_semantic_logits", {}),
        fine_arguments=own.get("project_coarse_logits", {}),
    )
    models = build_models(preset, seed=5)
    shutil.copytree(tiny_bundle, folder)
    manifest = Bundle.open(folder).manifest
    collected, decoders = Collected({}, {}), {}
    for stage in STAGES:
        overrides: dict[str, Any] = {"max_length": tokens} if stage == "semantic" else {"max_time_steps": frames}
        if not shared.get("audio_text_condition", True) or "cond_as_self_attn_prefix" in shared:
            overrides["cond_as_self_attn_prefix"] = shared.get("cond_as_self_attn_prefix", False)
        checkpoint = collected.checkpoints[stage] = Checkpoint(f"{stage}.pt", models[stage].state_dict(), "2.4.0")
        settings = collected.settings[stage] = infer_transformer(stage, checkpoint, overrides)
        decoders[stage] = export_stage(stage, checkpoint, settings, folder, tokens, groups)
    (folder / MANIFEST).unlink()
    codec = replace(manifest.codec, groups=groups, quantizers=(coarse + fine) * groups)
    manifest = replace(manifest, **decoders, codec=codec, files=records_of(folder))
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return folder, collected


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_right_models_of_any_size_pass(sizes, tiny_bundle, tmp_path):
    """Fault: the check feeds more than the model's windows hold. A fine stage of one quantizer was given nine tokens for seven frames, so
    that upstream's bias was that of another number of frames, and a right model was refused."""
    folder, collected = _bundle_of(sizes, tiny_bundle, tmp_path / "bundle")
    with md.load(folder, device="cpu", threads=1) as model, torch.inference_mode():
        for stage in STAGES:
            torch.manual_seed(0)  # as the validation does
            assert transformer_error(stage, model, collected) < TOLERANCES[stage], stage


@pytest.mark.parametrize("sizes", [SIZES[0], SIZES[7]], ids=str)
def test_wrong_weights_are_found_at_any_size(sizes, tiny_bundle, tmp_path):
    """Fault: a check of so few tokens that it passes whatever the graph computes. Each tensor here is one that the first token, or the
    second, already depends on."""
    folder, collected = _bundle_of(sizes, tiny_bundle, tmp_path / "bundle")
    wrong = {"semantic": ["start_token", "semantic_embedding.weight"], "coarse": ["cross_attn_bias"], "fine": ["pos_bias_mlp.4.bias"]}
    with md.load(folder, device="cpu", threads=1) as model, torch.inference_mode():
        for stage, names in wrong.items():
            for name in names:
                checkpoint = collected.checkpoints[stage]
                state = {**checkpoint.state, name: checkpoint.state[name] + torch.randn_like(checkpoint.state[name])}
                changed = Collected({stage: Checkpoint(checkpoint.name, state, "2.4.0")}, collected.settings)
                assert transformer_error(stage, model, changed) > TOLERANCES[stage], (stage, name)
