"""Estimates of the time and memory that a request takes, made before it runs.

In: a loaded backend, a checked request. Out: an `Estimate`. The model's own batches are timed, sampling and noise included, for as many
rows as the request has at once and half way through the stage's largest window; then one chunk of the codec and one call of MuLaN. These
times are multiplied. A step's time grows with its position, so the time half way is the mean over a window. Rows beyond those at once cost
as much as those before. An estimate takes as long as some forty steps and some prompts of one row.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..kernels.sampling.constants import ALWAYS, Place, Rules
from .bundle import Bundle, Decoder
from .codec import CodecStream, chunk_frames
from .needs import Largest, largest_sequences
from .request import Request
from .sequence import Context, Draw, Positions, Sequence, unguided
from .sounds import Sound
from .windows import ranked_at_once

if TYPE_CHECKING:
    from .backends import Backend
    from .encoders import Encoders

_MOST_FRAMES, _ENOUGH_S = 64, 0.4  # a stage is timed for so many frames, or for so long
_MOST_CALLS = 5  # calls of the codec or of MuLaN that are timed, unless _ENOUGH_S have passed
_PREFILLED = 1024  # positions that the timed prompts have together
_CHEAP_STEP_S, _BYTES_PER_S = 5e-5, 2e10  # a fast machine's seconds for a row's step, and bytes of weights that it reads in a second
_CHEAP_CODEC = 0.01  # its seconds per second of audio
_SMALL_S = 3.0  # on that machine


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


def estimate(backend: Backend, encoders: Encoders, request: Request, needed: dict[str, int]) -> Estimate | None:
    """Time the stages of a request on a CPU. needed: the bytes that its stages take. None: it takes a few seconds at most."""
    bundle, manifest = backend.bundle, backend.bundle.manifest
    sequences = largest_sequences(manifest, request)
    steps = {stage: count for stage, count in token_steps(bundle, request).items() if stage in sequences}
    if _is_small(bundle, request, sequences, steps):
        return None
    latent = np.full((1, manifest.mulan.dim_latent), manifest.mulan.dim_latent**-0.5, np.float32)
    [contexts], plan, seconds = encoders.contexts(latent), request.windows, {}
    windows = {"semantic": len(plan.coarse if plan.semantic is None else plan.semantic), "coarse": len(plan.coarse), "fine": len(plan.fine)}
    for stage, largest in sequences.items():
        step, position = _time_steps(backend, stage, contexts[stage], largest, request)
        prompts = request.items * windows[stage]
        if stage == "semantic":  # the first window's prompt is one for all candidates
            prompts -= request.items - len(request.prompts)
        seconds[stage] = steps[stage] / largest.rows * step + prompts * largest.prompt * position
    seconds["codec"] = _time_codec(backend, request)
    if request.num_samples > 1:
        seconds["rank"] = _time_rank(bundle, encoders, request)
    return Estimate(seconds, max(needed.values()))


def token_steps(bundle: Bundle, request: Request) -> dict[str, int]:
    """Return how many tokens each stage makes, for all items together."""
    manifest, frames = bundle.manifest, request.frames or 0
    known = sum(prime.frames if prime else 0 for prime in request.primes) * request.num_samples
    made = max(request.items * frames - known, 0)
    semantic = request.items * (request.windows.semantic_steps or 0)
    return {"semantic": semantic, "coarse": made * manifest.columns("coarse"), "fine": made * manifest.columns("fine")}


def _is_small(bundle: Bundle, request: Request, sequences: dict[str, Largest], steps: dict[str, int]) -> bool:
    """Return whether a fast machine makes tokens and waves in a few seconds, so that timing steps first would take too large a share."""
    manifest = bundle.manifest
    seconds = _CHEAP_CODEC * request.items * (request.samples or 0) / manifest.codec.sample_hz
    for stage, count in steps.items():
        weights = manifest.files[f"{getattr(manifest, stage).graph}.data"].bytes
        seconds += count * (_CHEAP_STEP_S + weights / _BYTES_PER_S / sequences[stage].rows)
    return seconds < _SMALL_S


def _time_steps(backend: Backend, stage: str, context: Context, largest: Largest, request: Request) -> tuple[float, float]:
    """Return (seconds of a step of all rows half way, seconds of a prompt's position)."""
    decoder = getattr(backend.bundle.manifest, stage)
    half, rows = max((largest.prompt + largest.capacity) // 2, 2), largest.rows
    distinct = min(max(_PREFILLED // half, 1), rows)  # equal prompts are fed once
    outputs = decoder.outputs
    sampling = unguided(decoder, request.sampling[stage])
    batch = backend.batch(stage)
    for row in range(rows):
        batch.join(_made_up(decoder, half, _MOST_FRAMES * outputs, row % distinct, Draw(0, row, 0, sampling), context))
    started = time.perf_counter()
    batch.advance(0, batch.waiting())
    prefilled = (time.perf_counter() - started) / half / (distinct * (1 + (sampling.cond_scale != 1)))
    batch.advance(1, 0)  # the first step packs weights and allocates
    frames, started = 0, time.perf_counter()
    while frames < _MOST_FRAMES - 1 and (not frames or time.perf_counter() - started < _ENOUGH_S):
        batch.advance(1, 0)
        frames += 1
    step = (time.perf_counter() - started) / frames / outputs
    batch.close()
    return step, prefilled * (1 + (sampling.cond_scale != 1))


def _made_up(decoder: Decoder, positions: int, steps: int, number: int, draw: Draw, context: Context) -> Sequence:
    """Return a sequence of any tokens, which no end cuts short; prompts of different numbers differ."""
    ids, coordinates = np.full(positions, number % 2), np.arange(positions)
    ids[0] = number
    rules = Rules(Place(0, 0, 1, 0, 1, 1, 0, 0), 0, ALWAYS, -1, 1)
    return Sequence(Positions(ids, coordinates, coordinates), rules, positions, 0, steps, draw, context)


def _time_codec(backend: Backend, request: Request) -> float:
    """Return the seconds of the codec for a request, by the time of a chunk from the middle of a clip."""
    codec = backend.bundle.manifest.codec
    stream, chunk = CodecStream(codec, partial(backend.graphs.run, codec.stream)), chunk_frames(codec)
    stream.feed(np.zeros((stream.missing, codec.quantizers), np.int64))
    codes = np.zeros((chunk, codec.quantizers), np.int64)
    return request.items * (request.frames or 0) / chunk * _time(lambda: stream.feed(codes))


def _time_rank(bundle: Bundle, encoders: Encoders, request: Request) -> float:
    codec, mulan = bundle.manifest.codec, bundle.manifest.mulan
    total = request.samples or 0
    samples = min(total, ranked_at_once(bundle.manifest))
    if samples * mulan.sample_hz < mulan.min_samples * codec.sample_hz:
        return 0.0
    wave = np.zeros(samples, np.float32)
    return request.items * math.ceil(total / samples) * _time(lambda: encoders.embed_audio(Sound(wave, codec.sample_hz)))


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
