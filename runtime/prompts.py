"""What music should be like: words, a sound, or several of both, as one latent of MuLaN.

In: a text, a sound, a `Blend`. Out: checked prompts, and their latents. It does not know what is conditioned on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

Sound = tuple[np.ndarray, int]  # wave float32 [t], rate in Hz
_MOST_CHARACTERS = 10_000  # white space is no token, but every prompt is written into the file's comment


@dataclass(frozen=True)
class Blend:
    """A prompt of several texts and sounds, each with a weight: `Blend([("calm piano", 0.7), ((wave, hz), 0.3)])`.

    MuLaN puts words and sounds into one space: the prompt is the direction of the weighted sum of their latents. A weight below zero
    leads away from its part.
    """

    parts: Sequence[tuple[str | Sound, float]]

    def __str__(self) -> str:
        if len(self.parts) == 1:
            return _name(self.parts[0][0])
        return " + ".join(f"{weight:g} x {_name(part)}" for part, weight in self.parts)


Prompt = str | Blend


def make_prompts(text: Prompt | Sequence[Prompt] | None, audio: Sound | Sequence[Sound] | None) -> list[Prompt]:
    """The prompts of a request, checked; see `MusicLM.generate`."""
    if (text is None) == (audio is None):
        raise ValueError("give either a text or audio to be like; for both in one prompt give a Blend as the text.")
    if audio is not None:
        sounds: list[Any] = [audio] if is_sound(audio) else list(audio)
        if any(sound is None for sound in sounds):
            raise ValueError("one of the sounds is None: say with a text, or another sound, what the music should be like.")
        prompts: list[Any] = [Blend([(sound, 1.0)]) for sound in sounds]
    else:
        prompts = list(text) if isinstance(text, Iterable) and not isinstance(text, str | bytes) else [text]
    if not prompts:
        raise ValueError("no prompt: the list is empty.")
    for prompt in prompts:
        if isinstance(prompt, Blend):
            _check_blend(prompt)
        else:
            _check_text(prompt)
    return prompts


def latents_of(
    prompts: Sequence[Prompt], embed_text: Callable[[str], np.ndarray], embed_audio: Callable[[Sound], np.ndarray]
) -> np.ndarray:
    """float32 [B, dim_latent] of length 1. embed_text and embed_audio give one latent each, [1, dim_latent]."""
    latents = []
    for prompt in prompts:
        if isinstance(prompt, str):
            latents.append(embed_text(prompt)[0])
            continue
        embeds = [(embed_text(part) if isinstance(part, str) else embed_audio(part))[0] for part, _ in prompt.parts]
        total = np.sum([embed * np.float32(weight) for embed, (_, weight) in zip(embeds, prompt.parts, strict=True)], axis=0)
        length = np.linalg.norm(total)
        if length < 1e-3:
            raise ValueError(f"the parts of {prompt} cancel each other: give them other weights.")
        latents.append(embeds[0] if len(embeds) == 1 and prompt.parts[0][1] > 0 else total / length)
    return np.stack(latents)


def _check_blend(blend: Blend) -> None:
    if isinstance(blend.parts, str) or not isinstance(blend.parts, Sequence) or not blend.parts:
        raise ValueError(f"a Blend takes a list of (text or sound, weight), got {type(blend.parts).__name__}.")
    for item in blend.parts:
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise ValueError("each part of a Blend must be (text or sound, weight).")
        part, weight = item
        if not isinstance(weight, Real) or isinstance(weight, bool) or not np.isfinite(float(weight)):
            raise ValueError(f"a weight must be a finite number, got {weight!r}.")
        if not isinstance(part, str) and is_sound(part):
            check_sound(part)
        else:
            _check_text(part)


def _check_text(prompt: Any) -> None:
    if not isinstance(prompt, str):
        raise ValueError(f"a prompt must be a str or a Blend, got {type(prompt).__name__}.")
    if len(prompt) > _MOST_CHARACTERS:
        raise ValueError(f"a prompt has at most {_MOST_CHARACTERS} characters, got {len(prompt)}: shorten {prompt[:60]!r}.")
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise ValueError(f"the prompt {prompt[:60]!r} holds bytes that are no text: give it in UTF-8.")


def is_sound(value: Any) -> bool:
    """(samples, rate), rather than a list of such."""
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], int | np.integer)


def check_sound(sound: Sound) -> None:
    wave, hz = np.asarray(sound[0]), sound[1]
    if wave.ndim != 1 or wave.dtype.kind not in "fiu" or not wave.size or not np.isfinite(wave).all():
        raise ValueError(f"a sound must be (finite samples [t], rate in Hz), got {wave.dtype} {list(wave.shape)}.")
    if hz < 1:
        raise ValueError(f"a sound's rate must be at least 1 Hz, got {hz}.")


def _name(part: str | Sound) -> str:
    return part if isinstance(part, str) else f"a sound of {len(part[0]) / part[1]:.2f} s"
