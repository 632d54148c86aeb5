"""What a request will take in memory, found before anything is computed by rehearsing it: its clips go through all their windows with
made-up tokens of the greatest number.

In: a checked request. Out: the largest sequences of each stage, bytes by stage, and an OutOfMemory for what does not fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .batch import SLOTS
from .bundle import STAGES, Manifest
from .clip import Clip
from .codec import longest_chunk, state_size
from .memory import (
    check_memory,
    decode_bytes,
    decoder_bytes,
    encode_bytes,
    mulan_audio_bytes,
    sequence_bytes,
    token_bytes,
    wav2vec_bytes,
    wave_bytes,
)
from .music import Tokens
from .primes import Prime, tokenizer_of
from .request import Request
from .resume import Known
from .scheduler import RESERVED
from .sequence import Context, unguided
from .windows import ranked_at_once

if TYPE_CHECKING:
    from .backends import Backend

_REHEARSED = 24  # windows of a stage: those that follow are like the last of these
KEPT_S = 300.0  # seconds of tokens that are kept behind the listener of a clip without end


@dataclass
class Largest:
    """The largest sequences of a stage."""

    rows: int  # at once
    prompt: int = 0  # positions, a conditioning prefix not counted
    capacity: int = 0


def check_request(backend: Backend, request: Request, ahead_s: float | None = None) -> dict[str, int]:
    """Return the bytes that each stage of a request takes at most beside the weights.

    ahead_s: of a stream, whose stages run side by side; the stages of a request that is collected follow one another. Raises OutOfMemory
    for a request that does not fit.
    """
    needed = needed_bytes(backend, request, ahead_s)
    check_memory(needed, backend.weights_to_load())
    return needed


def needed_bytes(backend: Backend, request: Request, ahead_s: float | None = None) -> dict[str, int]:
    """See `check_request`."""
    manifest = backend.bundle.manifest
    codec, mulan, needed = manifest.codec, manifest.mulan, {}
    if backend.on_host:  # a device says itself what it takes, when a stage begins
        for stage, largest in largest_sequences(manifest, request).items():
            needed[stage] = _stage_bytes(manifest, request, stage, largest, backend.native)
    if ahead_s is not None and needed:
        needed = {"tokens": sum(needed.values())}
    for prime in filter(None, request.primes):
        tokenizer = tokenizer_of(manifest)
        tokenizing = wav2vec_bytes(tokenizer, 1, prime.sound.samples_at(tokenizer.sample_hz))
        needed["prime"] = max(tokenizing, encode_bytes(1, prime.frames * codec.samples_per_frame), needed.get("prime", 0))
    needed["codec"] = decode_bytes(longest_chunk(codec) * codec.samples_per_frame, state_size(codec))
    if request.num_samples > 1 and request.samples is not None:
        samples = math.ceil(min(request.samples, ranked_at_once(manifest)) / codec.sample_hz * mulan.sample_hz)
        needed["rank"] = mulan_audio_bytes(mulan, 1, samples)
    per_s = codec.sample_hz / codec.samples_per_frame
    frames = round(KEPT_S * per_s) if request.frames is None else request.frames
    tokens = token_bytes(manifest, request.items, request.windows.semantic_steps or frames, frames)
    waves = wave_bytes(manifest, request.items, frames if ahead_s is None else min(round(ahead_s * per_s), frames))
    return {stage: size + tokens + (waves if stage in ("codec", "rank") or ahead_s is not None else 0) for stage, size in needed.items()}


def largest_sequences(manifest: Manifest, request: Request) -> dict[str, Largest]:
    """Return the largest sequences of the stages that will run."""
    plan, most = request.windows, SLOTS if request.upstream else SLOTS - RESERVED  # the scheduler keeps some for listeners
    fine = most if plan.frames is None else min(request.items * len(plan.fine), most)
    largest = {stage: Largest(fine if stage == "fine" else min(request.items, most)) for stage in STAGES}
    clip = _rehearsal(manifest, request)
    left: dict[str, int] = dict.fromkeys(STAGES, _REHEARSED)
    while ready := [stage for stage in STAGES if left[stage] and clip.ready(stage)]:
        for stage in ready:
            sequence = clip.begin(stage)
            found, left[stage] = largest[stage], left[stage] - 1
            found.prompt = max(found.prompt, len(sequence.prompt))
            found.capacity = max(found.capacity, len(sequence.prompt) + sequence.steps)
            clip.take(sequence, np.arange(sequence.steps) % 2, True)
    return {stage: found for stage, found in largest.items() if found.capacity}


def _rehearsal(manifest: Manifest, request: Request) -> Clip:
    """Return a clip of the request: the one with the most tokens that are known."""
    known = None
    if request.tokens is not None:
        given = max(request.tokens, key=lambda item: len(item.semantic))
        known = Known(given, tuple(stage for stage in STAGES if getattr(given, stage) is not None))
    elif primes := [prime for prime in request.primes if prime is not None]:
        known = Known(_made_up(manifest, max(primes, key=lambda prime: prime.frames)), is_sound=True)
    # codes are counted, whichever they are
    codes = np.zeros(manifest.conditioner.quantizers, np.int64) if manifest.reads_segments else None
    contexts = {stage: Context(codes=codes) for stage in STAGES}
    sampling = {stage: unguided(getattr(manifest, stage), request.sampling[stage]) for stage in STAGES}
    return Clip(manifest, request.windows, sampling, 0, 0, contexts, request.end_allowed, known)


def _made_up(manifest: Manifest, prime: Prime) -> Tokens:
    """Return tokens as many as a prime has."""
    tokenizer = tokenizer_of(manifest)
    semantic = np.arange(prime.sound.samples_at(tokenizer.sample_hz) // tokenizer.samples_per_token) % 2
    coarse, fine = (np.zeros((prime.frames, manifest.columns(stage)), np.int64) for stage in ("coarse", "fine"))
    return Tokens(semantic, coarse, fine)


def _stage_bytes(manifest: Manifest, request: Request, stage: str, largest: Largest, native: bool) -> int:
    decoder, condition = getattr(manifest, stage), manifest.conditioner.quantizers
    slots = largest.rows * (2 if unguided(decoder, request.sampling[stage]).cond_scale != 1 else 1)
    capacity = largest.capacity + (condition if decoder.conditioning == "prefix" else 0)
    batch = decoder_bytes(decoder, slots, capacity, condition, native)
    return batch + largest.rows * sequence_bytes(decoder, largest.prompt, largest.capacity - largest.prompt, native)
