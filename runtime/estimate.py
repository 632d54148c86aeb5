"""Estimates of the time and memory that a request takes, made before it runs.

In: a loaded model, a checked request. Out: an `Estimate`. The model's own steps are timed, with sampling and noise, for as many rows as the
request has (up to ROWS_AT_ONCE) and half way through the stage's largest window; then one call of the codec and one of MuLaN. These times
are multiplied. A step's time grows with its position, so the time half way is the mean over a window. Beyond ROWS_AT_ONCE each further row
costs as much as those before. An estimate takes as long as some forty steps and some prefills of one row.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .bundle import Decoder
from .codec import CHUNK_FRAMES, codec_chunks
from .decoder import DecoderRun
from .loop import decode
from .memory import ROWS_AT_ONCE, largest_runs
from .noise import STEPS_AHEAD, PhiloxNoise
from .request import Request
from .sounds import Sound
from .stages import Plan, Positions
from .token_stages import is_guided, with_null

if TYPE_CHECKING:
    from .generation import Generation
    from .musiclm import MusicLM

_MOST_STEPS, _ENOUGH_S = 4 * STEPS_AHEAD + 1, 0.4  # a stage is timed for so many steps, or for so long and a whole block of noise
_MOST_CALLS = 5  # calls of the codec or of MuLaN that are timed, unless _ENOUGH_S have passed
_PREFILLED = 1024  # positions that the timed prompts have together
_CHEAP_STEP_S, _BYTES_PER_S = 5e-5, 2e10  # a fast machine's seconds for a row's step, and bytes of weights that it reads in a second
_CHEAP_CODEC = 0.01  # its seconds per second of audio
_SMALL_S = 3.0  # on that machine


class _EnoughTimed(Exception):
    """Raised to end a loop when enough of its steps are timed."""


@dataclass(frozen=True)
class Estimate:
    """The time and memory that a request will take."""

    seconds: dict[str, float]  # by stage
    bytes: int  # the most that any stage takes beside the weights

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def __str__(self) -> str:
        largest = sorted(self.seconds.items(), key=lambda item: -item[1])[:3]
        named = ", ".join(f"{stage} {_duration(seconds)}" for stage, seconds in largest if seconds > 0)
        return f"about {_duration(self.total)} ({named}) and up to {_memory(self.bytes)} of memory beside the weights"


def is_small(model: MusicLM, request: Request) -> bool:
    """Return whether a fast machine makes tokens and waves in a few seconds, so that timing steps first would take too large a share."""
    manifest, rows = model.bundle.manifest, min(request.items, ROWS_AT_ONCE)
    seconds = _CHEAP_CODEC * request.items * request.samples / manifest.codec.sample_hz
    for stage, count in token_steps(model, request).items():
        weights = manifest.files[f"{getattr(manifest, stage).graph}.data"].bytes
        seconds += count * (_CHEAP_STEP_S + weights / _BYTES_PER_S / rows)
    return seconds < _SMALL_S


def token_steps(model: MusicLM, request: Request) -> dict[str, int]:
    """Return how many tokens each stage that will run makes, for all items together."""
    manifest, clip = model.bundle.manifest, request.clip
    known = sum(prime.frames if prime else 0 for prime in request.primes) * request.num_samples
    coarse, fine = (manifest.coarse.coarse_quantizers or 1), (manifest.fine.fine_quantizers or 1)
    frames = max(request.items * request.frames - known, 0) * manifest.codec.groups
    counts = {"semantic": request.items * clip.semantic_steps, "coarse": frames * coarse, "fine": frames * fine}
    return {stage: count for stage, count in counts.items() if not request.stage_done(stage)}


def estimate(model: MusicLM, generation: Generation, request: Request) -> Estimate:
    """Time the stages of a request on a CPU."""
    manifest, steps, seconds = model.bundle.manifest, token_steps(model, request), {}
    latent = np.full((1, manifest.mulan.dim_latent), manifest.mulan.dim_latent**-0.5, np.float32)
    conditioning = generation.conditioning(latent)
    clip = request.clip
    windows = {"semantic": len(clip.semantic), "coarse": len(clip.coarse), "fine": -(-request.frames // clip.fine_length)}
    for stage, (_, prompt, capacity) in largest_runs(manifest, request).items():
        decoder = getattr(manifest, stage)
        rows = min(request.items * (windows["fine"] if stage == "fine" else 1), ROWS_AT_ONCE)
        guided = is_guided(manifest, request, stage)
        step, position = _time_steps(model, decoder, stage, conditioning.get(stage, {}), rows, (prompt + capacity) // 2, guided, request)
        prefills = request.items * windows[stage]
        if stage == "semantic":  # the first window's prompt is one for all candidates
            prefills -= request.items - len(request.prompts)
        seconds[stage] = steps[stage] / rows * step + prefills * prompt * position
    seconds["codec"] = _time_codec(model, request)
    if request.num_samples > 1:
        seconds["rank"] = _time_rank(model, request, generation.ranked_at_once)
    return Estimate(seconds, max(generation.memory().values()))


def _time_steps(
    model: MusicLM,
    decoder: Decoder,
    stage: str,
    conditioning: dict[str, np.ndarray],
    rows: int,
    position: int,
    guided: bool,
    request: Request,
) -> tuple[float, float]:
    """Return (seconds of a step of all rows at this position, seconds of a prefill for each position of one prompt)."""
    first = max(position - STEPS_AHEAD // 2, 1)
    prompt = Positions(np.zeros(first, np.int64), np.arange(first), np.arange(first))
    plan = Plan(stage, decoder, [prompt] * rows, np.zeros(rows, np.int64), np.full(rows, _MOST_STEPS), None, 1, False)
    context = {name: np.ascontiguousarray(with_null(name, np.repeat(array, rows, axis=0), guided)) for name, array in conditioning.items()}
    capacity = plan.capacity + (context["prefix_embeddings"].shape[1] if "prefix_embeddings" in context else 0)
    distinct = min(max(_PREFILLED // first, 1), rows)  # prompts of one condition are prefilled once
    conditions = np.arange(rows) % distinct
    conditions = np.concatenate([conditions, distinct + conditions]) if guided else conditions
    noise = PhiloxNoise([(0, row) for row in range(rows)])
    times: list[float] = []

    def gumbel(step: int, held: np.ndarray) -> np.ndarray:
        return noise.rows(stage, held, np.full(len(held), step), decoder.vocabulary)

    def on_step(done: int, _: int) -> None:
        times.append(time.perf_counter())
        if done % STEPS_AHEAD == 1 and times[-1] - times[0] > _ENOUGH_S:  # whole blocks, as each draws noise for all of its steps at once
            raise _EnoughTimed

    transformer = model.transformer(stage)
    gumbel(0, np.arange(rows))  # the first block of noise is no part of the prefill
    run = DecoderRun(transformer, decoder, context, len(conditions), capacity, conditions)
    started = time.perf_counter()
    with suppress(_EnoughTimed):
        decode(plan, run, guided, request.sampling[stage], gumbel, on_step)
    step = (times[-1] - times[0]) / (len(times) - 1)
    return step, max(times[0] - started - step, 0.0) / first / distinct


def _time_codec(model: MusicLM, request: Request) -> float:
    codec = model.bundle.manifest.codec
    chunks = codec_chunks(codec, max(request.frames, codec.min_frames), CHUNK_FRAMES)
    frames = min(chunks[0].stop, 2 * CHUNK_FRAMES)
    codes = np.zeros((1, frames, codec.quantizers), np.int64)
    once = _time(lambda: model.run(codec.decode, codes=codes))
    return request.items * once / frames * sum(chunk.stop - chunk.start for chunk in chunks)


def _time_rank(model: MusicLM, request: Request, at_once: int) -> float:
    codec, mulan = model.bundle.manifest.codec, model.bundle.manifest.mulan
    samples = min(request.samples, at_once)
    if samples * mulan.sample_hz < mulan.min_samples * codec.sample_hz:
        return 0.0
    wave = np.zeros(samples, np.float32)
    return request.items * math.ceil(request.samples / samples) * _time(lambda: model.embed_audio(Sound(wave, codec.sample_hz)))


def _time(call: Callable[[], object]) -> float:
    """Return the median seconds of a few calls after the first one, which opens the graph: one alone may be three times as long."""
    call()
    taken: list[float] = []
    while len(taken) < _MOST_CALLS and sum(taken) < _ENOUGH_S:
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _memory(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
