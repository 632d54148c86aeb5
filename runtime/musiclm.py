"""Text to music: the stages of a bundle one after the other.

In: a bundle's directory and requests. Out: `Music`. The order of things is here; what each stage does is in its own file.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .audio import resample
from .backend import available_memory_bytes, choose_device, open_session
from .bundle import STAGES, Bundle, Decoder
from .decoder import DecoderRun, memory_bytes
from .loop import decode
from .music import Candidate, Music, Tokens
from .noise import NoiseSource, PhiloxNoise
from .request import Request, make_request
from .sampling import SamplingConfig
from .stages import Plan, plan_coarse, plan_fine, plan_semantic
from .tokenizer import ClipTokenizer

_LOG = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]


class GenerationCancelled(Exception):
    """The caller's cancel event was set."""


def load(bundle: str | os.PathLike, device: str = "auto", *, threads: int | None = None) -> MusicLM:
    """Open and check a bundle. device: "auto", "cpu", "cuda" or "tensorrt"; threads: of the CPU, one per core by default.

    Raises BundleError with every fault of the bundle, BackendError when the device cannot be had.
    """
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ValueError(f"threads must be a whole number of at least 1, got {threads!r}.")
    return MusicLM(Bundle.open(Path(bundle)), choose_device(device), threads)


class MusicLM:
    """A loaded bundle. One object serves several threads at once; each request has its own caches."""

    def __init__(self, bundle: Bundle, device: str, threads: int | None) -> None:
        self.bundle, self.device = bundle, device
        manifest = bundle.manifest
        self.tokenizer = ClipTokenizer.from_file(bundle.path(manifest.mulan.tokenizer))
        graphs = [manifest.mulan.text, manifest.mulan.audio, manifest.conditioner.graph, manifest.codec.decode]
        graphs += [graph for stage in STAGES for graph in (self._decoder(stage).graph, self._decoder(stage).context) if graph]
        self._sessions: dict[str, Any] | None = {graph: open_session(bundle.path(graph), threads) for graph in graphs}
        _LOG.info("%s on %s: %d graphs", bundle.root, device, len(graphs))

    def generate(
        self,
        text: str | Sequence[str],
        *,
        seconds: float | None = None,
        seed: int | Sequence[int] = 0,
        num_samples: int = 1,
        stop: str = "exact",
        compat: str | None = None,
        max_semantic_tokens: int | None = None,
        sampling: Mapping[str, SamplingConfig] | None = None,
        tokens: str | os.PathLike | Tokens | Sequence[Tokens] | None = None,
        noise: NoiseSource | None = None,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> Any:
        """Music for a prompt, or a list of `Music` for a list of prompts, all in one batch.

        seconds: length of the wave, exact to the sample; by default the model's whole window.
        seed: of the noise, one for all prompts or one each; the same seed gives the same wave in any batch.
        num_samples: candidates per prompt; the one that MuLaN finds closest to the prompt comes first.
        stop: "exact" forbids the end token until `seconds` are reached, "eos" lets a clip end earlier.
        compat: "upstream" reproduces audiolm-pytorch 2.4.0 token for token: the semantic conditioning in every stage, ends allowed,
            up to 2048 semantic tokens, candidates ranked without resampling.
        max_semantic_tokens: at most; by default as many as `seconds` can hold.
        sampling: `SamplingConfig` by stage name, where it differs from the bundle's.
        tokens: saved tokens (a file, or `Tokens` per candidate) to go on from with the first stage that they lack.
        noise: a `NoiseSource` in place of the seeded one.
        progress: called as (stage, done, total); cancel: when set, the request stops with GenerationCancelled.
        """
        request = make_request(self.bundle.manifest, text, seconds, seed, num_samples, stop, compat, max_semantic_tokens, sampling, tokens)
        return _Generation(self, request, noise, progress, cancel).run(single=isinstance(text, str))

    def embed_text(self, texts: str | Sequence[str]) -> np.ndarray:
        """MuLaN's latents of texts: float32 [B, dim_latent], of length 1."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        mulan = self.bundle.manifest.mulan
        # one text at a time: padding is masked, but a text alone costs what it is long
        latents = []
        for text in texts:
            input_ids, attention_mask = self.tokenizer.encode_batch([text], mulan.max_tokens)
            latents.append(self.run(mulan.text, input_ids=input_ids, attention_mask=attention_mask)["latent"])
        return np.concatenate(latents)

    def embed_audio(self, audio: tuple[np.ndarray, int]) -> np.ndarray:
        """MuLaN's latents of (wave float32 [t] or [B, t], rate in Hz): float32 [B, dim_latent], of length 1."""
        wave, hz = audio
        mulan = self.bundle.manifest.mulan
        wave = resample(np.atleast_2d(np.asarray(wave, np.float32)), hz, mulan.sample_hz)
        if wave.ndim != 2 or wave.shape[-1] < mulan.min_samples:
            raise ValueError(
                f"MuLaN embeds waves [B, t] of at least {mulan.min_samples} samples at {mulan.sample_hz} Hz, got {list(wave.shape)}."
            )
        if not np.isfinite(wave).all():
            raise ValueError("the wave holds NaN or infinite samples.")
        patches = wave.shape[-1] / mulan.samples_per_patch
        _check_memory("mulan", round(4 * 4 * len(wave) * mulan.audio_heads * patches**2))  # scores, bias, their sum, its softmax
        return self.run(mulan.audio, wave=wave)["latent"]

    def run(self, graph: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """One call of a graph of the bundle, by its file name."""
        session = self.session(graph)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))

    def session(self, graph: str) -> Any:
        if self._sessions is None:
            raise RuntimeError("this MusicLM is closed.")
        return self._sessions[graph]

    def close(self) -> None:
        """Free the sessions and their memory. Requests already running end as they would."""
        self._sessions = None

    def __enter__(self) -> MusicLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decoder(self, stage: str) -> Decoder:
        return getattr(self.bundle.manifest, stage)


class _Generation:
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
        best = max(range(len(own)), key=lambda index: own[index].score or 0.0) if len(own) > 1 else 0
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
        guided = decoder.guidance and sampling.cond_scale != 1
        context = {
            name: np.ascontiguousarray(_with_null(name, np.repeat(array, request.num_samples, axis=0), guided))
            for name, array in conditioning.get(plan.stage, {}).items()
        }
        prefix = context["prefix_embeddings"].shape[1] if "prefix_embeddings" in context else 0
        rows = len(plan.prompts) * (2 if guided else 1)
        prompt = max(len(positions.rows) for positions in plan.prompts) + prefix
        capacity = prompt + int(plan.steps.max(initial=0))
        _check_memory(plan.stage, memory_bytes(decoder, rows, prompt, capacity))
        with self._timed(plan.stage):
            run = DecoderRun(self._model.session(decoder.graph), decoder, context, rows, capacity)
            return decode(plan, run, guided, sampling, self._noise, lambda done, total: self._report(plan.stage, done, total))

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


def _check_memory(stage: str, needed: int) -> None:
    available = available_memory_bytes()
    _LOG.info("%s takes %.1f MB for caches and attention", stage, needed / 1e6)
    if available is not None and needed > available:
        raise MemoryError(
            f"the {stage} stage of this request needs {needed / 1e6:.1f} MB, {available / 1e6:.1f} MB are free. "
            "Ask for fewer seconds, samples or prompts at once."
        )
