"""Sounds that a request goes on from: checked, counted in frames, and turned into the tokens of all three stages.

In: the caller's `prime` and a manifest, then a loaded model. Out: `Prime` per prompt, and its `Tokens`. Which windows they fill is planned
in `runtime.windows`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .audio import resample
from .bundle import Codec, Manifest, SemanticTokenizer
from .music import Tokens
from .prompts import Sound, check_sound, is_sound

if TYPE_CHECKING:
    from .musiclm import MusicLM


@dataclass(frozen=True)
class Prime:
    """A sound that one prompt's music begins with."""

    sound: Sound
    frames: int  # whole frames of the codec: what is left over is cut, as a SoundStream does, so that no silence is continued


def make_primes(prime: Sound | Sequence[Sound | None] | None, prompts: int, manifest: Manifest) -> list[Prime | None]:
    """One per prompt; see `MusicLM.generate`. Raises ValueError for sounds that cannot be used, or a bundle that cannot read them."""
    if prime is None:
        return [None] * prompts
    sounds: list[Any] = [prime] if is_sound(prime) else list(prime)
    if not is_sound(prime) and len(sounds) != prompts:
        raise ValueError(f"got {len(sounds)} primes for {prompts} prompts; give one prime, or one (or None) per prompt.")
    wav2vec, codec = tokenizer_of(manifest), manifest.codec
    encoder_of(codec)
    least = max(codec.min_encode_frames, 1)
    made: list[Prime | None] = []
    for sound in sounds:
        if sound is None:
            made.append(None)
            continue
        if not is_sound(sound):
            raise ValueError(f"a prime must be (samples [t], rate in Hz), got {type(sound).__name__}.")
        check_sound(sound)
        frames = samples_at(sound, codec.sample_hz) // codec.samples_per_frame
        if frames < least or samples_at(sound, wav2vec.sample_hz) < wav2vec.min_samples:
            seconds = max(least * codec.samples_per_frame / codec.sample_hz, wav2vec.min_samples / wav2vec.sample_hz)
            raise ValueError(f"a prime must last at least {seconds:g} s, got {len(sound[0]) / sound[1]:g} s.")
        made.append(Prime(sound, frames))
    return made * prompts if is_sound(prime) else made  # one object: it is heard once


def prime_tokens(model: MusicLM, prime: Prime) -> Tokens:
    """The prime's own tokens: semantic int64 [n] with its repeats, coarse and fine int64 [frames, Qc] and [frames, Qf]."""
    manifest = model.bundle.manifest
    codec, wave = manifest.codec, np.asarray(prime.sound[0], np.float32)
    semantic = model.semantic_tokens((wave, prime.sound[1]))[0]
    whole = resample(wave, prime.sound[1], codec.sample_hz)[: prime.frames * codec.samples_per_frame]
    codes = model.encode_audio((whole, codec.sample_hz))[0]
    coarse = (manifest.coarse.coarse_quantizers or 1) * codec.groups
    fine = (manifest.fine.fine_quantizers or 1) * codec.groups
    return Tokens(semantic, codes[:, :coarse], codes[:, coarse : coarse + fine])


def samples_at(sound: Sound, hz: int) -> int:
    """How many samples `resample` makes of it."""
    return math.ceil(len(sound[0]) * hz / sound[1])


def tokenizer_of(manifest: Manifest) -> SemanticTokenizer:
    if manifest.wav2vec is None:
        raise ValueError(
            "this bundle has no semantic tokenizer: export it with the one that the semantic transformer was trained with, "
            "--semantic-features FILE for MelKmeans, --hubert FILE --kmeans FILE for HuBERT."
        )
    return manifest.wav2vec


def encoder_of(codec: Codec) -> str:
    """The file of its graph."""
    if codec.encode is None:
        raise ValueError("this bundle's codec decodes only: the export does not cover how it was trained to search its codebooks.")
    return codec.encode
