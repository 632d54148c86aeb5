"""One request on its way through the stages: conditioning, three token stages, codec, ranking.

In: a loaded model and a checked request. Out: `Music`. What a stage feeds, how it decodes and samples is in files of their own.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from .bundle import STAGES
from .codec import CHUNK_FRAMES, codec_chunks, decode_codes
from .memory import (
    check_memory,
    decode_bytes,
    decoder_bytes,
    encode_bytes,
    largest_runs,
    loop_bytes,
    mulan_audio_bytes,
    token_bytes,
    wav2vec_bytes,
    wave_bytes,
)
from .music import Candidate, Music, Tokens
from .noise import GivenNoise, NoiseSource, PhiloxNoise
from .primes import prime_tokens, tokenizer_of
from .progress import Progress
from .prompts import latents_of
from .provenance import make_record
from .request import Request
from .shortage import naming_shortage
from .sounds import Sound
from .token_stages import TokenStages, is_guided
from .windows import equal_parts

if TYPE_CHECKING:
    from .musiclm import MusicLM

_LOG = logging.getLogger(__name__)


class GenerationCancelled(Exception):
    """The caller's cancel event was set."""


class Generation:
    """One request on its way through the stages."""

    def __init__(
        self, model: MusicLM, request: Request, noise: NoiseSource | None, progress: Progress | None, cancel: threading.Event | None
    ) -> None:
        self._model, self._request, self._progress, self._cancel = model, request, progress, cancel
        self._manifest = model.bundle.manifest
        items = [(seed, item) for seed in request.seeds for item in range(request.num_samples)]
        self._noise = GivenNoise(noise, len(items)) if noise is not None else PhiloxNoise(items)
        self._timings: dict[str, float] = {}
        self._passed_on: list[Exception] = []  # errors of the caller's `progress`, raised as they are

    def run(self) -> Any:
        """Return a `Music`, or a list of them for a list of prompts."""
        self.check_memory()
        if self._model.driver is not None:  # a device's driver reports its own shortage
            return self._run()
        with naming_shortage("while this request ran", max(self.memory().values()), self._passed_on):
            return self._run()

    def _run(self) -> Any:
        started, request = time.perf_counter(), self._request
        with self._timed("mulan"):
            latents = latents_of(request.prompts, self._model.embed_text, self._model.embed_audio)
            conditioning = self.conditioning(latents)
        heard: dict[int, Tokens] = {}
        if sounds := {id(prime): prime for prime in request.primes if prime}:
            with self._timed("prime"):
                heard = {key: prime_tokens(self._model, prime) for key, prime in sounds.items()}
        primes = [heard.get(id(prime)) for prime in request.primes]
        tokens = TokenStages(self._model, request, conditioning, primes, self._noise, self._report, self._timed).run()
        with self._timed("codec"):
            waves = self._waves(tokens)
        with self._timed("rank"):
            scores = self._scores(latents, waves)

        candidates = [Candidate(*item) for item in zip(waves, tokens, scores, strict=True)]
        taken = time.perf_counter() - started
        timings = {**self._timings, "total": taken}
        music = [self._music(prompt, candidates, timings) for prompt in range(len(request.prompts))]
        audio = {"made": waves, "kept": [item.audio for item in music]}
        for name, parts in audio.items():
            timings[f"real_time_factor_{name}"] = taken * self._manifest.codec.sample_hz / sum(map(len, parts))
        return music[0] if request.single else music

    def check_memory(self) -> None:
        """Raise MemoryError for a request that does not fit."""
        check_memory(self.memory(), self._model.weights_to_load())

    def _music(self, prompt: int, candidates: list[Candidate], timings: dict[str, float]) -> Music:
        request = self._request
        own = candidates[prompt * request.num_samples : (prompt + 1) * request.num_samples]
        scores = [-np.inf if candidate.score is None else candidate.score for candidate in own]
        best = int(np.argmax(scores))
        record = make_record(self._model, request, prompt, isinstance(self._noise, GivenNoise))
        return Music(
            str(request.prompts[prompt]),
            request.seeds[prompt],
            self._manifest.codec.sample_hz,
            own,
            best,
            timings,
            self._model.bundle.sha256,
            record,
        )

    def conditioning(self, latents: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """Return the outputs of each stage's context graph, one row per prompt."""
        outputs = self._model.run(self._manifest.conditioner.graph, latent=latents)
        contexts = {}
        for stage in STAGES:
            graph = getattr(self._manifest, stage).context
            if graph:
                namespace = "semantic" if self._request.upstream and "semantic" in self._manifest.conditioner.namespaces else stage
                contexts[stage] = self._model.run(graph, conditioning=outputs[f"conditioning.{namespace}"])
        return contexts

    def memory(self) -> dict[str, int]:
        """Return the bytes that each stage takes at most beside the weights. One stage's memory is free again when the next begins."""
        request, manifest = self._request, self._manifest
        needed = {}
        on_host = self._model.driver is None  # a device says itself what it takes, when a stage begins
        for stage, (rows, prompt, capacity) in largest_runs(manifest, request).items() if on_host else ():
            decoder = getattr(manifest, stage)
            prefix = manifest.conditioner.quantizers if decoder.conditioning == "prefix" else 0
            items, rows = rows, rows * (2 if is_guided(manifest, request, stage) else 1)
            needed[stage] = decoder_bytes(decoder, rows, prompt + prefix, capacity + prefix, self._model.step.native)
            needed[stage] += loop_bytes(decoder, items, rows, prompt, capacity, manifest.conditioner.quantizers)
        for prime in filter(None, request.primes):
            tokenizer, codec = tokenizer_of(manifest), manifest.codec
            tokenizing = wav2vec_bytes(tokenizer, 1, prime.sound.samples_at(tokenizer.sample_hz))
            needed["prime"] = max(tokenizing, encode_bytes(1, prime.frames * codec.samples_per_frame), needed.get("prime", 0))
        chunk = max(chunk.stop - chunk.start for chunk in codec_chunks(manifest.codec, request.frames, CHUNK_FRAMES))
        needed["codec"] = decode_bytes(chunk * manifest.codec.samples_per_frame)
        if request.num_samples > 1:
            samples = math.ceil(min(request.samples, self.ranked_at_once) / manifest.codec.sample_hz * manifest.mulan.sample_hz)
            needed["rank"] = mulan_audio_bytes(manifest.mulan, 1, samples)
        tokens, waves = token_bytes(manifest, request), wave_bytes(manifest, request)
        return {stage: size + tokens + (waves if stage in ("codec", "rank") else 0) for stage, size in needed.items()}

    def _waves(self, tokens: list[Tokens]) -> list[np.ndarray]:
        """float32 [t] of each item."""
        codec, waves, done = self._manifest.codec, [], 0
        codes = [np.concatenate([item.coarse, item.fine], axis=1) for item in tokens if item.coarse is not None and item.fine is not None]
        total = sum(len(codec_chunks(codec, len(item), CHUNK_FRAMES)) for item in codes)

        def on_chunk() -> None:
            nonlocal done
            done += 1
            self._report("codec", done, total)

        for index, item in enumerate(codes):
            wave = decode_codes(codec, lambda chunk: self._model.run(codec.decode, codes=chunk)["wave"], item, on_chunk)
            prime = None if self._request.include_prime else self._request.prime_of(index)
            waves.append(wave[prime.frames * codec.samples_per_frame if prime else 0 : self._request.samples])
        return waves

    def _scores(self, latents: np.ndarray, waves: list[np.ndarray]) -> list[float | None]:
        """Cosine of text and wave. A wave longer than the coarse stage's window counts by the mean of the latents of equal parts, each no
        longer than that: MuLaN was trained on clips, and its attention costs the square of a length."""
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
                parts = [self._model.embed_audio(Sound(wave[part], rate))[0] for part in equal_parts(len(wave), self.ranked_at_once)]
                latent = parts[0] if len(parts) == 1 else np.mean(parts, axis=0) / np.linalg.norm(np.mean(parts, axis=0))
                scores.append(float(latent @ latents[index // request.num_samples]))
            self._report("rank", index + 1, len(waves))
        return scores

    @property
    def ranked_at_once(self) -> int:
        """Samples of a wave that MuLaN takes whole; parts are at least half as long, which must be enough for MuLaN."""
        codec, mulan = self._manifest.codec, self._manifest.mulan
        return max(
            self._manifest.coarse.max_length * codec.samples_per_frame, 2 * math.ceil(mulan.min_samples * codec.sample_hz / mulan.sample_hz)
        )

    def _report(self, stage: str, done: int, total: int) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise GenerationCancelled(f"cancelled in stage {stage} after {done} of {total}.")
        if self._progress is not None:
            try:
                self._progress(stage, done, total)
            except Exception as error:
                self._passed_on.append(error)
                raise

    @contextmanager
    def _timed(self, stage: str):
        """A stage may come several times, window by window."""
        started = time.perf_counter()
        yield
        self._timings[stage] = self._timings.get(stage, 0.0) + time.perf_counter() - started
