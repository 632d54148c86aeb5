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
from ..runtime.bundle import STAGES, Decoder, Manifest, Step
from ..runtime.forcing import HostBatch, forced, logits_of
from ..runtime.host.graph import GraphBatch
from ..runtime.host.native import NativeBatch
from ..runtime.musiclm import MusicLM
from ..runtime.sampling import guide
from ..runtime.sequence import Draw, Sequence, coarse_sequence, fine_sequence, semantic_sequence, unguided, unique_consecutive
from ..runtime.step import open_native, open_pool
from ..runtime.windows import one_window
from .calibration import Calibration


class Comparison:
    """The distance of narrower stages from fp32, over all tokens that they were fed."""

    def __init__(self, reference: list[np.ndarray], scale: float) -> None:
        """reference: the fp32 stage's logits of each row, float32 [steps, 1 or 2, V]; scale: of the guidance."""
        self._scale = scale
        self._expected = np.concatenate([self._log_probabilities(row) for row in reference])
        self._likely = np.exp(self._expected)

    def measure(self, logits: list[np.ndarray]) -> dict[str, float]:
        """Return the losses of a narrower stage with these logits."""
        found = np.concatenate([self._log_probabilities(row) for row in logits])
        tokens, vocabulary = self._expected.shape
        entropy = -float((self._likely * self._expected).sum())
        return {
            "top1": float((found.argmax(-1) == self._expected.argmax(-1)).mean()),
            "kl": float((self._likely * (self._expected - found)).sum()) / tokens,
            "entropy": entropy / tokens / math.log(vocabulary),
            "tokens": tokens,
        }

    def _log_probabilities(self, logits: np.ndarray) -> np.ndarray:
        """float64 [steps, V]"""
        logits = logits.astype(np.float64)
        logits = guide(logits[:, 0], logits[:, 1], self._scale) if logits.shape[1] == 2 else logits[:, 0]
        logits = logits - logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def measure(
    model: MusicLM, candidates: Mapping[str, Mapping[str, Mapping[str, Any]]], calibration: Calibration
) -> dict[str, dict[str, dict[str, float]]]:
    """stage -> precision -> {"top1": share of tokens whose likeliest entry is the same, "kl": mean of KL(fp32 || narrower) in nats,
    "entropy": of the fp32 model's distributions, mean, as a share of the uniform one's, "tokens": how many were compared}.

    candidates: stage -> precision -> fields of its `Step`, or the static `capacity` of TensorRT's form; the files lie in a folder of that
    name beside the bundle's.
    """
    manifest = model.bundle.manifest
    conditions = model.encoders.contexts(calibration.latents)
    rows, frames = len(calibration.latents), calibration.frames
    coarse_columns, fine_columns = (
        (q or 1) * manifest.codec.groups for q in (manifest.coarse.coarse_quantizers, manifest.fine.fine_quantizers)
    )
    plan = one_window(manifest, frames, 0)
    in_time = plan.in_time(plan.coarse[0])
    given = _given(calibration, manifest, in_time)
    found: dict[str, dict[str, dict[str, float]]] = {}
    tokens: dict[str, list[np.ndarray]] = {}
    for stage in STAGES:
        decoder: Decoder = getattr(manifest, stage)
        contexts = [one[stage] for one in conditions]
        draws = [Draw(0, row, 0, unguided(decoder, decoder.sampling)) for row in range(rows)]
        none = np.zeros(0, np.int64)
        if stage == "semantic":
            length = min([manifest.semantic.max_length, in_time.stop, *map(len, given.get("semantic", []))])
            sequences = [semantic_sequence(decoder, length, False, none, draws[row], contexts[row]) for row in range(rows)]
        elif stage == "coarse":
            none, seen = none.reshape(0, coarse_columns), tokens["semantic"]
            sequences = [
                coarse_sequence(decoder, seen[row], frames, coarse_columns, False, none, draws[row], contexts[row]) for row in range(rows)
            ]
        else:
            none, coarse = none.reshape(0, fine_columns), [row.reshape(frames, coarse_columns) for row in tokens["coarse"]]
            sequences = [fine_sequence(decoder, coarse[row], fine_columns, none, draws[row], contexts[row]) for row in range(rows)]
        fed, found[stage] = measure_stage(model, stage, sequences, candidates.get(stage, {}), given.get(stage))
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
    model: MusicLM,
    stage: str,
    sequences: list[Sequence],
    candidates: Mapping[str, Mapping[str, Any]],
    given: list[np.ndarray] | None,
) -> tuple[list[np.ndarray], dict[str, dict[str, float]]]:
    """Return the tokens that were fed, int64 [n] per row, either given or the fp32 model's own, and each candidate's losses on them."""
    decoder: Decoder = getattr(model.bundle.manifest, stage)
    pool = open_pool(None) if model.backend.native else None

    def same(fed: list[np.ndarray]) -> list[Sequence]:
        """Return the sequences with these tokens, of each as many as it has steps."""
        pairs = zip(sequences, fed, strict=True)
        return [forced(sequence, tokens[: sequence.steps - 1], decoder.vocabulary) for sequence, tokens in pairs]

    batch = model.backend.batch(stage)
    batch.slots = len(sequences)
    fed, logits = logits_of(cast(HostBatch, batch), sequences if given is None else same(given))
    if given is not None:
        fed = [tokens[: sequence.steps] for sequence, tokens in zip(sequences, given, strict=True)]
    comparison, found = Comparison(logits, decoder.sampling.cond_scale), {}
    for precision, fields in candidates.items():
        folder = model.bundle.root.with_name(precision)
        graph, static = Path(folder, decoder.graph), fields.get("capacity")
        record = decoder if static else replace(decoder, step=Step(**fields))
        narrower: HostBatch
        if pool and not static:
            narrower = NativeBatch(open_native(folder, record, pool), len(sequences))
        else:
            narrower = GraphBatch(open_session(graph, None), record, len(sequences), static)
        _, logits = logits_of(narrower, same(fed if given is None else given))
        found[precision] = comparison.measure(logits)
    return fed, found
