"""What a narrower stage loses against the same stage in fp32, measured on music that the fp32 model makes.

In: a loaded fp32 bundle, the narrower graphs of its stages. Out: per stage and precision how often the likeliest token is the same, and how
far the distributions are apart. Both are run by the real runtime and fed the same tokens, those that the fp32 model samples for a few texts
with a fixed seed; logits are compared as they are sampled from, guidance included. It does not judge: `export.precision` does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..runtime.backend import open_session
from ..runtime.bundle import STAGES, Decoder, Step
from ..runtime.decoder import DecoderRun
from ..runtime.loop import decode
from ..runtime.musiclm import MusicLM
from ..runtime.noise import PhiloxNoise
from ..runtime.sampling import guide
from ..runtime.stages import Plan, Positions, plan_coarse, plan_fine, plan_semantic
from ..runtime.step import open_native, open_pool
from ..runtime.token_stages import with_null

TEXTS = (
    "calm piano in a ballroom",
    "a brass band, lively",
    "solo violin, slow and sad, in a minor key",
    "drums and bass guitar, fast",
    "a church organ",
    "an acoustic guitar, cheerful",
    "dark electronic music with synthesizers",
    "a flute over soft pads, relaxing",
)
FRAMES = 100  # of each text, at most: some thousand tokens a stage, seconds on two cores


class Twins:
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


def measure(model: MusicLM, candidates: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, dict[str, float]]]:
    """stage -> precision -> {"top1": share of tokens whose likeliest entry is the same, "kl": mean of KL(fp32 || narrower) in nats,
    "entropy": of the fp32 model's distributions, mean, as a share of the uniform one's, "tokens": how many were compared}.

    candidates: stage -> precision -> fields of its `Step`; the files lie in a folder of that name beside the bundle's.
    """
    manifest = model.bundle.manifest
    conditioning = model.run(manifest.conditioner.graph, latent=model.embed_text(list(TEXTS)))
    rows, codec = len(TEXTS), manifest.codec
    coarse_columns, fine_columns = ((q or 1) * codec.groups for q in (manifest.coarse.coarse_quantizers, manifest.fine.fine_quantizers))
    frames = min(manifest.coarse.max_length, manifest.fine.max_length, FRAMES)
    seconds = frames * codec.samples_per_frame / codec.sample_hz
    told = min(manifest.semantic.max_length, math.ceil(seconds * manifest.semantic_tokens_per_second))
    found: dict[str, dict[str, dict[str, float]]] = {}
    tokens: dict[str, list[np.ndarray]] = {}
    for stage in STAGES:
        if stage == "semantic":
            plan = plan_semantic(manifest.semantic, rows, told, end_allowed=False)
        elif stage == "coarse":
            plan = plan_coarse(manifest.coarse, tokens["semantic"], frames, coarse_columns, end_allowed=False)
        else:
            plan = plan_fine(manifest.fine, [row.reshape(frames, coarse_columns) for row in tokens["coarse"]], fine_columns, None)
        tokens[stage], found[stage] = _stage(model, plan, conditioning.get(f"conditioning.{stage}"), candidates.get(stage, {}))
        if not any(later in candidates for later in STAGES[STAGES.index(stage) + 1 :]):
            break
    return {stage: values for stage, values in found.items() if values}


def _stage(
    model: MusicLM, plan: Plan, conditioning: np.ndarray | None, candidates: Mapping[str, Mapping[str, Any]]
) -> tuple[list[np.ndarray], dict[str, dict[str, float]]]:
    """Tokens of the fp32 model, int64 [n] per text, and what was measured on the way."""
    decoder, sampling, rows = plan.decoder, plan.decoder.sampling, len(plan.prompts)
    guided = decoder.guidance and sampling.cond_scale != 1
    context: dict[str, np.ndarray] = {}
    if decoder.context and conditioning is not None:
        context = {name: with_null(name, array, guided) for name, array in model.run(decoder.context, conditioning=conditioning).items()}
    capacity = plan.capacity + (context["prefix_embeddings"].shape[1] if "prefix_embeddings" in context else 0)
    pool = open_pool(None) if model.step.native else None

    def run(transformer: Any, record: Decoder) -> DecoderRun:
        own = {name: np.ascontiguousarray(array) for name, array in context.items()}
        return DecoderRun(transformer, record, own, rows * (1 + guided), capacity)

    others = {}
    for precision, step in candidates.items():
        folder, record = model.bundle.root.with_name(precision), replace(decoder, step=Step(**step))
        others[precision] = run(open_native(folder, record, pool) if pool else open_session(Path(folder, decoder.graph), None), record)
    twins = Twins(run(model.transformer(plan.stage), decoder), others, sampling.cond_scale if guided else None)
    noise = PhiloxNoise([(0, item) for item in range(rows)])
    drawn = decode(
        plan,
        cast(DecoderRun, twins),
        guided,
        sampling,
        lambda step, live: noise.gumbel(plan.stage, step, rows, decoder.vocabulary)[live],
        lambda done, total: None,
    )
    return drawn, twins.measured(decoder.vocabulary)
