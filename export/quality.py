"""What a narrower stage loses against the same stage in fp32.

In: a loaded fp32 bundle, the narrower graphs of its stages, a calibration. Out: per stage and precision how often the likeliest token is
the same, and how far the distributions are apart. Both are run by the real runtime and fed the same tokens, those of the calibration's
sounds, or those that the fp32 model samples with a fixed seed; logits are compared as they are sampled from, guidance included. It does
not judge: `export.precision` does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..runtime.backend import open_session
from ..runtime.bundle import STAGES, Decoder, Manifest, Sampling, Step
from ..runtime.decoder import DecoderRun
from ..runtime.loop import decode
from ..runtime.musiclm import MusicLM
from ..runtime.noise import PhiloxNoise
from ..runtime.sampling import guide
from ..runtime.stages import Plan, Positions, plan_coarse, plan_fine, plan_semantic
from ..runtime.step import open_native, open_pool
from ..runtime.token_stages import unique_consecutive, with_null
from ..runtime.windows import Span, semantic_in
from .calibration import Calibration


class SideBySide:
    """A `DecoderRun` for `decode`, of rows that end together: the fp32 model's, whose logits are compared with those of the others at every
    step."""

    def __init__(self, reference: DecoderRun, others: Mapping[str, DecoderRun], scale: float | None) -> None:
        """scale: of the guidance, whose rows without condition are the second half; None without."""
        self._reference, self._others, self._scale = reference, others, scale
        self.tokens, self.entropy = 0, 0.0
        self.same, self.divergence = dict.fromkeys(others, 0), dict.fromkeys(others, 0.0)

    def prefill(self, prompts: list[Positions], head: int, without_prefix: int = 0) -> np.ndarray:
        return self._compare(lambda run: run.prefill(prompts, head, without_prefix))

    def step(self, positions: Positions, head: int, growing: np.ndarray | None = None) -> np.ndarray:
        return self._compare(lambda run: run.step(positions, head, growing))

    def _compare(self, call: Any) -> np.ndarray:
        logits = call(self._reference)
        expected = self._log_probabilities(logits)
        likely = np.exp(expected)
        self.tokens += len(expected)
        self.entropy -= float((likely * expected).sum())
        for name, run in self._others.items():
            found = self._log_probabilities(call(run))
            self.same[name] += int((found.argmax(-1) == expected.argmax(-1)).sum())
            self.divergence[name] += float((likely * (expected - found)).sum())
        return logits

    def _log_probabilities(self, logits: np.ndarray) -> np.ndarray:
        """float64 [B, V]"""
        logits = logits.astype(np.float64)
        if self._scale is not None:
            conditioned, null = np.split(logits, 2)
            logits = guide(conditioned, null, self._scale)
        logits = logits - logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def measured(self, vocabulary: int) -> dict[str, dict[str, float]]:
        return {
            name: {
                "top1": self.same[name] / self.tokens,
                "kl": self.divergence[name] / self.tokens,
                "entropy": self.entropy / self.tokens / math.log(vocabulary),
                "tokens": self.tokens,
            }
            for name in self._others
        }


def measure(
    model: MusicLM, candidates: Mapping[str, Mapping[str, Mapping[str, Any]]], calibration: Calibration
) -> dict[str, dict[str, dict[str, float]]]:
    """stage -> precision -> {"top1": share of tokens whose likeliest entry is the same, "kl": mean of KL(fp32 || narrower) in nats,
    "entropy": of the fp32 model's distributions, mean, as a share of the uniform one's, "tokens": how many were compared}.

    candidates: stage -> precision -> fields of its `Step`, or the static `capacity` of TensorRT's form; the files lie in a folder of that
    name beside the bundle's.
    """
    manifest = model.bundle.manifest
    conditioning = model.run(manifest.conditioner.graph, latent=calibration.latents)
    rows, frames = len(calibration.latents), calibration.frames
    coarse_columns, fine_columns = (
        (q or 1) * manifest.codec.groups for q in (manifest.coarse.coarse_quantizers, manifest.fine.fine_quantizers)
    )
    in_time = semantic_in(manifest, Span(0, 0, frames))
    given = _given(calibration, manifest, in_time)
    found: dict[str, dict[str, dict[str, float]]] = {}
    tokens: dict[str, list[np.ndarray]] = {}
    for stage in STAGES:
        if stage == "semantic":
            lengths = [manifest.semantic.max_length, in_time.stop, *map(len, given.get("semantic", []))]
            plan = plan_semantic(manifest.semantic, rows, min(lengths), end_allowed=False)  # rows end together
        elif stage == "coarse":
            plan = plan_coarse(manifest.coarse, tokens["semantic"], frames, coarse_columns, end_allowed=False)
        else:
            plan = plan_fine(manifest.fine, [row.reshape(frames, coarse_columns) for row in tokens["coarse"]], fine_columns, None)
        fed, found[stage] = measure_stage(
            model, plan, conditioning.get(f"conditioning.{stage}"), candidates.get(stage, {}), given.get(stage)
        )
        tokens[stage] = given.get(stage, fed)
        if not any(later in candidates for later in STAGES[STAGES.index(stage) + 1 :]):
            break
    return {stage: values for stage, values in found.items() if values}


def _given(calibration: Calibration, manifest: Manifest, in_time: slice) -> dict[str, list[np.ndarray]]:
    """stage -> tokens int64 [n] of each of the calibration's sounds, semantic ones those of `in_time`; none where there are none."""
    given: dict[str, list[np.ndarray]] = {}
    for sound in calibration.tokens or []:
        assert sound.coarse is not None and sound.fine is not None
        heard = sound.semantic[in_time]
        given.setdefault("semantic", []).append(unique_consecutive(heard) if manifest.unique_consecutive else heard)
        given.setdefault("coarse", []).append(sound.coarse[: calibration.frames].ravel())
        given.setdefault("fine", []).append(sound.fine[: calibration.frames].ravel())
    return given


def measure_stage(
    model: MusicLM, plan: Plan, conditioning: np.ndarray | None, candidates: Mapping[str, Mapping[str, Any]], given: list[np.ndarray] | None
) -> tuple[list[np.ndarray], dict[str, dict[str, float]]]:
    """Return the tokens that were fed, int64 [n] per row, either given or the fp32 model's own, and each candidate's losses on them."""
    decoder, sampling, rows = plan.decoder, plan.decoder.sampling, len(plan.prompts)
    guided = decoder.guidance and sampling.cond_scale != 1
    context: dict[str, np.ndarray] = {}
    if decoder.context and conditioning is not None:
        context = {name: with_null(name, array, guided) for name, array in model.run(decoder.context, conditioning=conditioning).items()}
    capacity = plan.capacity + (context["prefix_embeddings"].shape[1] if "prefix_embeddings" in context else 0)
    pool = open_pool(None) if model.step.native else None

    def run(transformer: Any, record: Decoder, capacity: int) -> DecoderRun:
        own = {name: np.ascontiguousarray(array) for name, array in context.items()}
        return DecoderRun(transformer, record, own, rows * (1 + guided), capacity)

    others = {}
    for precision, fields in candidates.items():
        folder = model.bundle.root.with_name(precision)
        graph, static = Path(folder, decoder.graph), fields.get("capacity")
        record = decoder if static else replace(decoder, step=Step(**fields))
        transformer = open_native(folder, record, pool) if pool and not static else open_session(graph, None)
        others[precision] = run(transformer, record, static or capacity)
    side_by_side = SideBySide(run(model.transformer(plan.stage), decoder, capacity), others, sampling.cond_scale if guided else None)
    philox = PhiloxNoise([(0, item) for item in range(rows)])

    def noise(step: int, live: np.ndarray) -> np.ndarray:
        if given is None:
            return philox.gumbel(plan.stage, step, rows, decoder.vocabulary)[live]
        certain = np.full((len(live), decoder.vocabulary), -np.inf, np.float32)  # every entry may be drawn, and only this one is
        certain[np.arange(len(live)), [given[row][step] for row in live]] = 0
        return certain

    drawing = sampling if given is None else Sampling(temperature=1.0, filter_thres=0.0, cond_scale=sampling.cond_scale)
    fed = decode(plan, cast(DecoderRun, side_by_side), guided, drawing, noise, lambda done, total: None)
    return fed, side_by_side.measured(decoder.vocabulary)
