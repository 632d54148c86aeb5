"""Single stages of random weights, exported, and requests of them on the CPU and on a device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from demo.checkpoints import TINY, build_models
from musiclm_deploy.export.checkpoint import Checkpoint
from musiclm_deploy.export.stage import export_stage
from musiclm_deploy.export.transformers import infer_transformer
from musiclm_deploy.kernels.decoder_step import Model, Pool
from musiclm_deploy.runtime.backend import open_session
from musiclm_deploy.runtime.bundle import Decoder, Sampling
from musiclm_deploy.runtime.decoder import DecoderRun
from musiclm_deploy.runtime.device import decode as device
from musiclm_deploy.runtime.device.driver import Driver
from musiclm_deploy.runtime.device.model import DeviceModel
from musiclm_deploy.runtime.loop import decode
from musiclm_deploy.runtime.noise import PhiloxNoise
from musiclm_deploy.runtime.stages import Plan, plan_coarse, plan_fine, plan_semantic
from musiclm_deploy.runtime.step import open_native, open_weights
from musiclm_deploy.runtime.token_stages import with_null

ROWS, STEPS, CONDITIONING_TOKENS, CAPACITY = 3, 7, 5, 64
_RNG = np.random.default_rng(0)
SEMANTIC = [_RNG.integers(0, 19, n) for n in (7, 0, 18)]  # ragged, one row without any
COARSE = [_RNG.integers(0, 13, (frames, 2)) for frames in (4, 1, 6)]

# What the exporter covers and a step must know: arguments of upstream's transformers, the version that saved them.
VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    "cross-attention, four streams": ({}, "2.4.0"),
    "prefix, two streams, heads of 20": (
        {"cond_as_self_attn_prefix": True, "num_residual_streams": 2, "heads": 3, "dim_head": 20},
        "2.4.0",
    ),
    "no condition, flash, three streams": (
        {"audio_text_condition": False, "rel_pos_bias": False, "flash_attn": True, "num_residual_streams": 3, "depth": 3},
        "2.4.0",
    ),
    "one stream, before 2.4, one layer, 64": ({"num_residual_streams": 1, "depth": 1, "heads": 1, "dim_head": 64, "dim": 40}, "2.3.1"),
    "no value residual, before 2.2, five heads of 7": (
        {"num_residual_streams": 1, "add_value_residual": False, "heads": 5, "dim_head": 7, "dim": 17},
        "2.1.4",
    ),
    "no self-attention, 2.0.4, heads of 12": (
        {"num_residual_streams": 1, "add_value_residual": False, "dim_head": 12, "depth": 3},
        "2.0.4",
    ),
    "wide: whole blocks and panels": ({"dim": 128, "heads": 8, "dim_head": 64}, "2.4.0"),
}


class Stage:
    """A stage of random weights, exported, with what its rows read."""

    def __init__(
        self, stage: str, arguments: dict[str, Any], version: str, folder: Path, precision: str = "fp32", capacity: int | None = None
    ) -> None:
        state = build_models(replace(TINY, shared_arguments=arguments), seed=3)[stage].state_dict()
        if version != "2.4.0":
            state = {name.replace(".branch.", "."): tensor for name, tensor in state.items()}
        overrides = {"max_length": 32} if stage == "semantic" else {"max_time_steps": 12}
        if "cond_as_self_attn_prefix" in arguments or not arguments.get("audio_text_condition", True):
            overrides["cond_as_self_attn_prefix"] = arguments.get("cond_as_self_attn_prefix", False)
        checkpoint = Checkpoint(f"{stage}.pt", state, version)
        self.name, self.folder = stage, folder
        settings = infer_transformer(stage, checkpoint, overrides)
        self.decoder: Decoder = export_stage(stage, checkpoint, settings, folder, 32, 1, precision, capacity)
        self.session = open_session(folder / self.decoder.graph, 2)
        self.context: dict[str, np.ndarray] = {}
        if self.decoder.context:
            graph = open_session(folder / self.decoder.context, 2)
            width = graph.get_inputs()[0].shape[2]
            conditioning = np.random.default_rng(1).standard_normal((ROWS, CONDITIONING_TOKENS, width), np.float32)
            names = [output.name for output in graph.get_outputs()]
            self.context = dict(zip(names, graph.run(names, {"conditioning": conditioning}), strict=True))

    def plan(self, rows: list[int]) -> Plan:
        if self.name == "semantic":
            return plan_semantic(self.decoder, len(rows), 32, True)
        if self.name == "coarse":
            return plan_coarse(self.decoder, [SEMANTIC[row % ROWS] for row in rows], 8, 2, True)
        return plan_fine(self.decoder, [COARSE[row % ROWS] for row in rows], 3, None)

    def model(self, pool: Pool, path: str | None = None) -> Model:
        return open_native(self.folder, self.decoder, pool, path)

    def run(self, native: Model | None, rows: list[int], capacity: int = CAPACITY) -> DecoderRun:
        context = {name: np.ascontiguousarray(array[np.array(rows) % ROWS]) for name, array in self.context.items()}
        return DecoderRun(native or self.session, self.decoder, context, len(rows), capacity)

    def logits(self, native: Model | None, rows: list[int], steps: int = STEPS) -> np.ndarray:
        """Return [B, steps + 1, V]: the logits of a prefill and of each step. Row r gets the same tokens in every batch."""
        plan, run = self.plan(rows), self.run(native, rows)
        logits = [run.prefill(plan.prompts, plan.head(0)).copy()]
        tokens = np.stack([np.random.default_rng(row).integers(0, 12, steps) for row in rows])
        for step in range(steps):
            logits.append(run.step(plan.place(step, tokens[:, step]), plan.head(step + 1)).copy())
        return np.stack(logits, axis=1)


ITEMS = [(1 << 40 | 5, 0), (5, 1), (6, 0)]  # seed and item of each row
FIRST = [0, 4, 70]  # numbers of the rows' first tokens in their stage


def plan_of(stage: Stage, steps: int, ends: bool) -> Plan:
    """Plan three rows with different prompts, two of them with a prime, and with different lengths where the stage allows it."""
    if stage.name == "semantic":
        return plan_semantic(stage.decoder, 3, np.array([steps, steps + 3, steps - 1]), ends, [SEMANTIC[1], SEMANTIC[0][:3], SEMANTIC[1]])
    if stage.name == "coarse":
        primes = [COARSE[2][:0], COARSE[2][:1], COARSE[2][:2]]
        return plan_coarse(stage.decoder, SEMANTIC, -(-steps // 2) + 1, 2, ends, primes)
    fine = [np.random.default_rng(row).integers(0, 13, (frames, 3)) for row, frames in enumerate((1, 0, 2))]
    return plan_fine(stage.decoder, [COARSE[0][:2], COARSE[1], COARSE[2][:3]], 3, None, fine)


def on_cpu(stage: Stage, plan: Plan, guided: bool, sampling: Sampling, items: list[tuple[int, int]] = ITEMS) -> list[np.ndarray]:
    rows = np.arange(3)
    context = {name: np.ascontiguousarray(with_null(name, array[rows], guided)) for name, array in stage.context.items()}
    more = context["prefix_embeddings"].shape[1] if "prefix_embeddings" in context else 0
    run, noise = DecoderRun(stage.session, stage.decoder, context, 3 * (1 + guided), plan.capacity + more), PhiloxNoise(items)

    def gumbel(step: int, live: np.ndarray) -> np.ndarray:
        return noise.rows(stage.name, live, np.array(FIRST)[live] + step, stage.decoder.vocabulary)

    return decode(plan, run, guided, sampling, gumbel, lambda *_: None)


def on_device(
    model: DeviceModel,
    stage: Stage,
    plan: Plan,
    guided: bool,
    sampling: Sampling,
    on_step: Any = lambda *_: None,
    items: list[tuple[int, int]] = ITEMS,
) -> list[np.ndarray]:
    context = {name: np.ascontiguousarray(with_null(name, array, guided)) for name, array in stage.context.items()}
    draws = [(*item, first) for item, first in zip(items, FIRST, strict=True)]
    return device.decode(model, plan, context, guided, sampling, draws, on_step)


def device_model(stage: Stage, driver: Driver, kind: str = "fp32") -> DeviceModel:
    _, sizes, weights = open_weights(stage.folder, stage.decoder)
    return DeviceModel(driver, stage.name, sizes, weights, kind)
