"""One request on its way through the stages: conditioning, three token stages, codec, ranking.

In: a loaded model and a checked request. Out: `Music`. What a stage feeds, how it decodes and samples is in files of their own.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from .bundle import STAGES
from .decoder import DecoderRun
from .loop import decode
from .memory import check_memory, decoder_bytes, mulan_audio_bytes
from .music import Candidate, Music, Tokens
from .noise import NoiseSource, PhiloxNoise
from .request import Request
from .stages import Plan, plan_coarse, plan_fine, plan_semantic

if TYPE_CHECKING:
    from .musiclm import MusicLM

_LOG = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]


class GenerationCancelled(Exception):
    """The caller's cancel event was set."""


class Generation:
    """One request on its way through the stages."""

    def __init__(
        self, model: MusicLM, request: Request, noise: NoiseSource | None, progress: Progress | None, cancel: threading.Event | None
    ) -> None:
        self._model, self._request, self._progress, self._cancel = model, request, progress, cancel
        self._manifest = model.bundle.manifest
        rows = [(seed, item) for seed in request.seeds for item in range(request.num_samples)]
        self._noise = noise if noise is not None else PhiloxNoise(rows)
        self._timings: dict[str, float] = {}

    def run(self, single: bool) -> Any:
        started = time.perf_counter()
        request = self._request
        check_memory(self._memory())
        with self._timed("mulan"):
            latents = self._model.embed_text(request.prompts)
            conditioning = self._conditioning(latents)
        semantic = self._semantic(conditioning)
        coarse = self._coarse(conditioning, semantic)
        fine = self._fine(conditioning, coarse)
        with self._timed("codec"):
            waves = [self._wave(index, *codes) for index, codes in enumerate(zip(coarse, fine, strict=True))]
        with self._timed("rank"):
            scores = self._scores(latents, waves)

        tokens = [Tokens(*item) for item in zip(semantic, coarse, fine, strict=True)]
        candidates = [Candidate(*item) for item in zip(waves, tokens, scores, strict=True)]
        taken = time.perf_counter() - started
        seconds = sum(len(wave) for wave in waves) / self._manifest.codec.sample_hz
        timings = {**self._timings, "total": taken, "real_time_factor": taken / seconds}
        music = [self._music(prompt, candidates, timings) for prompt in range(len(request.prompts))]
        return music[0] if single else music

    def _music(self, prompt: int, candidates: list[Candidate], timings: dict[str, float]) -> Music:
        request = self._request
        own = candidates[prompt * request.num_samples : (prompt + 1) * request.num_samples]
        scores = [-np.inf if candidate.score is None else candidate.score for candidate in own]
        best = int(np.argmax(scores))
        settings: dict[str, object] = {"compat": "upstream"} if request.upstream else {}
        return Music(
            request.prompts[prompt],
            request.seeds[prompt],
            self._manifest.codec.sample_hz,
            own,
            best,
            timings,
            self._model.bundle.sha256,
            settings,
        )

    def _conditioning(self, latents: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """stage -> outputs of its context graph, one row per prompt."""
        outputs = self._model.run(self._manifest.conditioner.graph, latent=latents)
        contexts = {}
        for stage in STAGES:
            graph = getattr(self._manifest, stage).context
            if graph:
                namespace = "semantic" if self._request.upstream and "semantic" in self._manifest.conditioner.namespaces else stage
                contexts[stage] = self._model.run(graph, conditioning=outputs[f"conditioning.{namespace}"])
        return contexts

    def _semantic(self, conditioning: dict[str, dict[str, np.ndarray]]) -> list[np.ndarray]:
        request = self._request
        if request.stage_done("semantic"):
            return [item.semantic for item in request.tokens or []]
        plan = plan_semantic(self._manifest.semantic, request.items, request.semantic_steps, request.semantic_end_allowed)
        return self._decode(plan, conditioning)

    def _coarse(self, conditioning: dict[str, dict[str, np.ndarray]], semantic: list[np.ndarray]) -> list[np.ndarray]:
        request, decoder = self._request, self._manifest.coarse
        if request.stage_done("coarse"):
            return [item.coarse for item in request.tokens or [] if item.coarse is not None]
        assert decoder.coarse_quantizers is not None
        frame_tokens = decoder.coarse_quantizers * self._manifest.codec.groups
        if request.upstream:
            semantic = _as_upstream_pads(semantic, request.semantic_steps, self._manifest.unique_consecutive)
        elif self._manifest.unique_consecutive:
            semantic = [_unique_consecutive(tokens) for tokens in semantic]
        plan = plan_coarse(decoder, semantic, request.frames, frame_tokens, request.end_allowed)
        return [tokens.reshape(-1, frame_tokens) for tokens in self._decode(plan, conditioning)]

    def _fine(self, conditioning: dict[str, dict[str, np.ndarray]], coarse: list[np.ndarray]) -> list[np.ndarray]:
        request, decoder = self._request, self._manifest.fine
        if request.stage_done("fine"):
            return [item.fine for item in request.tokens or [] if item.fine is not None]
        assert decoder.fine_quantizers is not None
        frame_tokens = decoder.fine_quantizers * self._manifest.codec.groups
        trained = request.frames * self._manifest.codec.groups if request.upstream else None
        plan = plan_fine(decoder, coarse, frame_tokens, trained)
        return [tokens.reshape(-1, frame_tokens) for tokens in self._decode(plan, conditioning)]

    def _decode(self, plan: Plan, conditioning: dict[str, dict[str, np.ndarray]]) -> list[np.ndarray]:
        request, decoder, sampling = self._request, plan.decoder, self._request.sampling[plan.stage]
        guided = self._guided(plan.stage)
        context = {
            name: np.ascontiguousarray(_with_null(name, np.repeat(array, request.num_samples, axis=0), guided))
            for name, array in conditioning.get(plan.stage, {}).items()
        }
        prefix = context["prefix_embeddings"].shape[1] if "prefix_embeddings" in context else 0
        rows = len(plan.prompts) * (2 if guided else 1)
        prompt = max(len(positions.rows) for positions in plan.prompts) + prefix
        capacity = prompt + int(plan.steps.max(initial=0))
        with self._timed(plan.stage):
            run = DecoderRun(self._model.session(decoder.graph), decoder, context, rows, capacity)
            return decode(plan, run, guided, sampling, self._noise, lambda done, total: self._report(plan.stage, done, total))

    def _guided(self, stage: str) -> bool:
        return getattr(self._manifest, stage).guidance and self._request.sampling[stage].cond_scale != 1

    def _memory(self) -> dict[str, int]:
        """What each stage will take at most beside the weights, in bytes. One stage's memory is free again when the next begins."""
        request, manifest, groups = self._request, self._manifest, self._manifest.codec.groups
        coarse_tokens = request.frames * (manifest.coarse.coarse_quantizers or 1) * groups
        sizes = {  # stage -> longest prompt, most tokens
            "semantic": (1, request.semantic_steps),
            "coarse": (2 + max([request.semantic_steps, *(len(item.semantic) for item in request.tokens or [])]), coarse_tokens),
            "fine": (2 + coarse_tokens, request.frames * (manifest.fine.fine_quantizers or 1) * groups),
        }
        needed = {}
        for stage, (prompt, steps) in sizes.items():
            decoder = getattr(manifest, stage)
            if not request.stage_done(stage):
                prompt += manifest.conditioner.quantizers if decoder.conditioning == "prefix" else 0
                needed[stage] = decoder_bytes(decoder, request.items * (2 if self._guided(stage) else 1), prompt, prompt + steps)
        if request.num_samples > 1:
            samples = math.ceil(request.samples / manifest.codec.sample_hz * manifest.mulan.sample_hz)
            needed["rank"] = mulan_audio_bytes(manifest.mulan, 1, samples)
        return needed

    def _wave(self, index: int, coarse: np.ndarray, fine: np.ndarray) -> np.ndarray:
        """float32 [t] of one item; a clip shorter than the codec's least is padded with its last frame and cut."""
        codec = self._manifest.codec
        codes = np.concatenate([coarse, fine], axis=1)
        wanted = min(self._request.samples, len(codes) * codec.samples_per_frame)
        if len(codes) < codec.min_frames:
            codes = np.concatenate([codes, np.repeat(codes[-1:], codec.min_frames - len(codes), axis=0)])
        wave = self._model.run(codec.decode, codes=codes[None])["wave"][0]
        self._report("codec", index + 1, self._request.items)
        return wave[:wanted]

    def _scores(self, latents: np.ndarray, waves: list[np.ndarray]) -> list[float | None]:
        request, mulan, hz = self._request, self._manifest.mulan, self._manifest.codec.sample_hz
        if request.num_samples == 1:
            return [None] * len(waves)
        rate = mulan.sample_hz if request.upstream else hz  # upstream takes the codec's wave as it is
        scores: list[float | None] = []
        for index, wave in enumerate(waves):
            if len(wave) * mulan.sample_hz < mulan.min_samples * rate:
                _LOG.warning("candidate %d is too short for MuLaN (%d samples): it is not ranked.", index, len(wave))
                scores.append(None)
            else:
                scores.append(float(self._model.embed_audio((wave, rate))[0] @ latents[index // request.num_samples]))
            self._report("rank", index + 1, len(waves))
        return scores

    def _report(self, stage: str, done: int, total: int) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise GenerationCancelled(f"cancelled in stage {stage} after {done} of {total}.")
        if self._progress is not None:
            self._progress(stage, done, total)

    @contextmanager
    def _timed(self, stage: str):
        started = time.perf_counter()
        yield
        self._timings[stage] = time.perf_counter() - started


def _with_null(name: str, rows: np.ndarray, guided: bool) -> np.ndarray:
    """Append, for guidance, a row without condition for each row: the null key and value in every slot weigh out to the null value."""
    if not guided or name == "prefix_embeddings":  # a row without condition leaves the prefix out
        return rows
    null = rows[:, :, :1] if name.endswith(".key") else rows[:, :1]
    return np.concatenate([rows, np.broadcast_to(null, rows.shape)])


def _unique_consecutive(tokens: np.ndarray) -> np.ndarray:
    return tokens[np.append(True, tokens[1:] != tokens[:-1])] if len(tokens) else tokens


def _as_upstream_pads(semantic: list[np.ndarray], steps: int, unique: bool) -> list[np.ndarray]:
    """Upstream's batch after the semantic stage: -1 from the end token on, collapsed like any token, then padded with -1."""
    length = max(len(tokens) + (len(tokens) < steps) for tokens in semantic)
    rows = [np.pad(tokens, (0, length - len(tokens)), constant_values=-1) for tokens in semantic]
    if not unique:
        return rows
    rows = [_unique_consecutive(row) for row in rows]
    longest = max(len(row) for row in rows)
    return [np.pad(row, (0, longest - len(row)), constant_values=-1) for row in rows]
