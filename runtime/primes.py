"""Sounds that a request goes on from: checked, and counted in frames.

In: the caller's `prime` and a manifest. Out: a `Prime` per prompt. `runtime.encoders` makes tokens of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .bundle import Codec, Manifest, SemanticTokenizer
from .sounds import Sound, SoundInput, read_sounds


@dataclass(frozen=True)
class Prime:
    """A sound that one prompt's music begins with."""

    sound: Sound
    frames: int  # whole frames of the codec: what is left over is cut, as a SoundStream does, so that no silence is continued


def make_primes(prime: SoundInput | Sequence[SoundInput | None] | None, prompts: int, manifest: Manifest) -> list[Prime | None]:
    """Return one prime per prompt; see `MusicLM.generate`.

    Raises ValueError for sounds that cannot be used, and for a bundle that cannot read them.
    """
    if prime is None:
        return [None] * prompts
    sounds, single = read_sounds(prime)
    if not single and len(sounds) != prompts:
        raise ValueError(f"got {len(sounds)} primes for {prompts} prompts; give one prime, or one (or None) per prompt.")
    wav2vec, codec = tokenizer_of(manifest), manifest.codec
    encoder_of(codec)
    least = max(codec.min_encode_frames, 1)
    made: list[Prime | None] = []
    for sound in sounds:
        if sound is None:
            made.append(None)
            continue
        frames = sound.samples_at(codec.sample_hz) // codec.samples_per_frame
        if frames < least or sound.samples_at(wav2vec.sample_hz) < wav2vec.min_samples:
            seconds = max(least * codec.samples_per_frame / codec.sample_hz, wav2vec.min_samples / wav2vec.sample_hz)
            raise ValueError(f"a prime must last at least {seconds:g} s, got {sound.seconds:g} s.")
        made.append(Prime(sound, frames))
    return made * prompts if single else made  # one object, whose tokens are made once


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
