"""From a checked request to music: conditioning, clips, the scheduler, ranking.

In: a request. Out: a `Music` for each of its prompts, or its clips for a `Stream`. How clips are made is in `runtime.clip`, which of them
goes on next in `runtime.scheduler`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from .backends import Backend
from .batch import Batch
from .bundle import STAGES, Bundle
from .clip import Clip
from .codec import decode_codes
from .encoders import Encoders
from .music import Candidate, Music, Tokens
from .noise import CallerNoise, NoiseSource
from .open_musiclm import OpenMusicLM
from .progress import Progress
from .provenance import make_record
from .request import Request
from .resume import Known
from .scheduler import Scheduler
from .shortage import naming_shortage
from .sounds import Sound
from .task import Task
from .track import Chunk, Track
from .upstream import Upstream
from .windows import equal_parts, ranked_at_once

_LOG = logging.getLogger(__name__)
_LOOK_S = 0.05  # how often a request looks whether its caller has cancelled it


class GenerationCancelled(Exception):
    """The caller's cancel event was set."""


@dataclass(frozen=True)
class Prepared:
    """A request whose prompts have been read."""

    request: Request
    latents: np.ndarray  # float32 [prompts, dim_latent]
    contexts: list  # of each prompt, `runtime.clip.Contexts`
    primes: list[Tokens | None]  # of each prompt
    timings: dict[str, float] = field(default_factory=dict)  # seconds by stage


class Pipeline:
    """The parts of one loaded bundle that make music."""

    def __init__(self, bundle: Bundle, encoders: Encoders, backend: Backend, scheduler: Scheduler) -> None:
        self.bundle, self.encoders, self.backend, self.scheduler = bundle, encoders, backend, scheduler

    def prepare(self, request: Request) -> Prepared:
        """Read a request's prompts and primes."""
        started = time.perf_counter()
        latents = self.encoders.latents(request.prompts)
        namespaces = self.bundle.manifest.conditioner.namespaces
        contexts = self.encoders.contexts(latents, "semantic" if request.upstream and "semantic" in namespaces else None)
        timings = {"mulan": time.perf_counter() - started}
        heard: dict[int, Tokens] = {}
        if sounds := {id(prime): prime for prime in request.primes if prime}:
            started = time.perf_counter()
            heard = {key: self.encoders.prime_tokens(prime) for key, prime in sounds.items()}
            timings["prime"] = time.perf_counter() - started
        return Prepared(request, latents, contexts, [heard.get(id(prime)) for prime in request.primes], timings)

    def tracks(self, prepared: Prepared, noise: CallerNoise | None = None, start: int = 0, goes_on: bool = False) -> list[Track]:
        """Return a track for each item of a request. start: the first sample that is wanted; goes_on: see `make_request`."""
        request, manifest = prepared.request, self.bundle.manifest
        tracks, items = [], None if noise is None else noise.items()
        for item in range(request.items):
            prompt, candidate = divmod(item, request.num_samples)
            prime, known = request.primes[prompt], None
            if (tokens := prepared.primes[prompt]) is not None:
                known = Known(tokens, is_sound=True)
            elif request.tokens is not None:
                given = request.tokens[item]
                stages = () if goes_on else tuple(stage for stage in STAGES if getattr(given, stage) is not None)
                known = Known(given, stages)
            clip = Clip(
                manifest,
                request.windows,
                request.sampling,
                request.seeds[prompt],
                candidate,
                prepared.contexts[prompt],
                request.end_allowed,
                known,
                None if items is None else items[item],
            )
            cut = prime.frames * manifest.codec.samples_per_frame if prime and not request.config.include_prime else 0
            graph = partial(self.backend.graphs.run, manifest.codec.stream)
            tracks.append(Track(clip, manifest.codec, graph, max(start, cut), request.samples))
        return tracks

    def collect(
        self, request: Request, needed: int, noise: NoiseSource | None, progress: Progress | None, cancel: threading.Event | None
    ) -> list[Music]:
        """Make a request's music, which takes `needed` bytes of memory. Raises GenerationCancelled once `cancel` is set."""
        reports = _Reports(progress, cancel)
        if not self.backend.on_host:  # a device's driver reports its own shortage
            return self._collect(request, noise, reports)
        with naming_shortage("while this request ran", needed, reports.raised):
            return self._collect(request, noise, reports)

    def _collect(self, request: Request, noise: NoiseSource | None, reports: _Reports) -> list[Music]:
        started, source = time.perf_counter(), None if noise is None else CallerNoise(noise, request.items)
        prepared = self.prepare(request)
        reports.look()
        waves, tokens, timings = (self._as_upstream if request.upstream else self._scheduled)(prepared, source, reports)
        ranked = time.perf_counter()
        scores = self._scores(prepared, waves, reports)
        taken = time.perf_counter() - started
        timings = {**prepared.timings, **timings, "rank": time.perf_counter() - ranked, "total": taken}
        candidates = [Candidate(*item) for item in zip(waves, tokens, scores, strict=True)]
        music = [self._music(request, prompt, candidates, timings, noise is not None) for prompt in range(len(request.prompts))]
        audio = {"made": waves, "kept": [item.audio for item in music]}
        for name, parts in audio.items():
            timings[f"real_time_factor_{name}"] = taken * self.bundle.manifest.codec.sample_hz / sum(map(len, parts))
        return music

    def _scheduled(
        self, prepared: Prepared, noise: CallerNoise | None, reports: _Reports
    ) -> tuple[list[np.ndarray], list[Tokens], dict[str, float]]:
        task = Task(self.tracks(prepared, noise), reports=reports.wanted)
        self.scheduler.submit(task)
        try:
            ended = False
            while not ended:
                ended = task.ended
                while (event := task.take(0 if ended else _LOOK_S)) is not None:
                    assert not isinstance(event, Chunk)
                    reports(*event)
                reports.look()
        finally:
            self.scheduler.cancel(task)
        waves: list[np.ndarray] = []
        for chunks in task.chunks:
            waves.append(np.concatenate([np.zeros(0, np.float32), *(chunk.audio for chunk in chunks)]))
            chunks.clear()  # all waves are not held twice
        return waves, [track.clip.tokens for track in task.tracks], task.timings

    def _as_upstream(
        self, prepared: Prepared, noise: CallerNoise | None, reports: _Reports
    ) -> tuple[list[np.ndarray], list[Tokens], dict[str, float]]:
        request, manifest, timings = prepared.request, self.bundle.manifest, {}
        items = None if noise is None else noise.items()

        @contextmanager
        def decoding(stage: str) -> Iterator[Batch]:
            started = time.perf_counter()
            with self.backend.turn():
                batch = self.backend.batch(stage)
                try:
                    yield batch
                finally:
                    batch.close()
            timings[stage] = time.perf_counter() - started

        made_by = OpenMusicLM if manifest.reads_segments else Upstream
        tokens = made_by(manifest, request, prepared.contexts, prepared.primes, items, reports, decoding).run()
        started, waves, decoded = time.perf_counter(), [], 0
        total = sum(0 if one.coarse is None else len(one.coarse) for one in tokens)
        graph = partial(self.backend.graphs.run, manifest.codec.stream)
        for item, one in enumerate(tokens):
            assert one.coarse is not None and one.fine is not None
            wave = decode_codes(manifest.codec, graph, np.concatenate([one.coarse, one.fine], axis=1), reports.look)
            prime = None if request.config.include_prime else request.prime_of(item)
            waves.append(wave[prime.frames * manifest.codec.samples_per_frame if prime else 0 : request.samples])
            decoded += len(one.coarse)
            reports("codec", decoded, total)
        timings["codec"] = time.perf_counter() - started
        return waves, tokens, timings

    def _music(self, request: Request, prompt: int, candidates: Sequence[Candidate], timings: dict[str, float], own_noise: bool) -> Music:
        own = list(candidates[prompt * request.num_samples : (prompt + 1) * request.num_samples])
        scores = [-np.inf if candidate.score is None else candidate.score for candidate in own]
        return Music(
            str(request.prompts[prompt]),
            request.seeds[prompt],
            self.bundle.manifest.codec.sample_hz,
            own,
            int(np.argmax(scores)),
            timings,
            self.bundle.sha256,
            make_record(self.backend, request, prompt, own_noise),
        )

    def _scores(self, prepared: Prepared, waves: list[np.ndarray], reports: _Reports) -> list[float | None]:
        """Return the cosine of prompt and wave. A wave longer than the coarse stage's window counts by the mean of the latents of equal
        parts, each no longer than that: MuLaN was trained on clips, and its attention costs the square of a length."""
        request, mulan, hz = prepared.request, self.bundle.manifest.mulan, self.bundle.manifest.codec.sample_hz
        if request.num_samples == 1:
            return [None] * len(waves)
        as_it_is = request.upstream and not self.bundle.manifest.reads_segments  # musiclm-pytorch takes the codec's wave so
        rate = mulan.sample_hz if as_it_is else hz
        scores: list[float | None] = []
        for index, wave in enumerate(waves):
            if len(wave) * mulan.sample_hz < mulan.min_samples * rate:
                _LOG.warning("candidate %d is too short for MuLaN (%d samples): it is not ranked.", index, len(wave))
                scores.append(None)
            else:
                most = ranked_at_once(self.bundle.manifest)
                parts = [self.encoders.embed_audio(Sound(wave[part], rate))[0] for part in equal_parts(len(wave), most)]
                latent = parts[0] if len(parts) == 1 else np.mean(parts, axis=0) / np.linalg.norm(np.mean(parts, axis=0))
                scores.append(float(latent @ prepared.latents[index // request.num_samples]))
            reports("rank", index + 1, len(waves))
        return scores


class _Reports:
    """The caller's callback and event, looked at in the caller's thread."""

    def __init__(self, progress: Progress | None, cancel: threading.Event | None) -> None:
        self._progress, self._cancel = progress, cancel
        self._last = ("mulan", 0, 0)
        self.raised: list[Exception] = []  # by the callback

    @property
    def wanted(self) -> bool:
        return self._progress is not None or self._cancel is not None

    def look(self) -> None:
        """Raise GenerationCancelled if the caller has cancelled the request."""
        if self._cancel is not None and self._cancel.is_set():
            stage, done, total = self._last
            raise GenerationCancelled(f"cancelled in stage {stage} after {done} of {total}.")

    def __call__(self, stage: str, done: int, total: int) -> None:
        self._last = stage, done, total
        self.look()
        if self._progress is not None:
            try:
                self._progress(stage, done, total)
            except Exception as error:  # the caller's own, passed on as it is
                self.raised.append(error)
                raise
