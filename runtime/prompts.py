"""What music should be like: words, a sound, or several of both, as one latent of MuLaN.

In: a text, a sound, a `Blend`. Out: checked prompts, and their latents. It does not know what is conditioned on them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arguments import items_of, number
from .sounds import Sound, SoundInput, is_sound, read_sound, read_sounds

_MOST_CHARACTERS = 10_000  # white space is no token, but every prompt is written into the file's comment


@dataclass(frozen=True, init=False)
class Blend:
    """A prompt of several texts and sounds, each with a weight: `Blend([("calm piano", 0.7), ((wave, hz), 0.3)])`, or of texts alone
    `Blend({"calm piano": 0.7, "brass band": 0.3})`.

    MuLaN puts words and sounds into one space: the prompt is the direction of the weighted sum of their latents. A weight below zero
    leads away from its part. A `str` is a text here: a sound's file is given as a `pathlib.Path`.
    """

    parts: Sequence[tuple[SoundInput, float]]

    def __init__(self, parts: Sequence[tuple[SoundInput, float]] | Mapping[str, float]) -> None:
        object.__setattr__(self, "parts", list(parts.items()) if isinstance(parts, Mapping) else parts)

    def __str__(self) -> str:
        if len(self.parts) == 1:
            return _name(self.parts[0][0])
        return " + ".join(f"{weight:g} x {_name(part)}" for part, weight in self.parts)


Prompt = str | Blend


def make_prompts(
    text: Prompt | Sequence[Prompt] | None, audio: SoundInput | Sequence[SoundInput | None] | None
) -> tuple[list[Prompt], bool]:
    """Return the prompts of a request, checked and with their sounds read, and whether they are one prompt rather than a list of one.

    The arguments are those of `MusicLM.generate`.
    """
    if (text is None) == (audio is None):
        raise ValueError(
            "give either a text or audio to be like; for both in one prompt give a Blend as the text: Blend([(text, 0.5), (sound, 0.5)])."
        )
    if audio is not None:
        sounds, single = read_sounds(audio)
        if any(sound is None for sound in sounds):
            raise ValueError("one of the sounds is None: say with a text, or another sound, what the music should be like.")
        prompts: list[Prompt] = [Blend([(sound, 1.0)]) for sound in sounds if sound is not None]
    else:
        items = None if isinstance(text, Blend) else items_of(text, "prompts")
        prompts, single = [_read_prompt(item) for item in ([text] if items is None else items)], items is None
    if not prompts:
        raise ValueError("no prompt: the list is empty.")
    return prompts, single


def read_texts(texts: str | Sequence[str]) -> list[str]:
    """Return a text, or each of a list, as a list of checked texts."""
    items = items_of(texts, "texts")
    return [_read_text(item, "a text must be a str") for item in ([texts] if items is None else items)]


def latents_of(prompts: Sequence[Prompt], embed_text: Callable[[str], np.ndarray], embed_audio: Callable[[Any], np.ndarray]) -> np.ndarray:
    """Return the latents of prompts, float32 [B, dim_latent] of length 1.

    embed_text, embed_audio: give the latent of a text or a sound, [1, dim_latent].
    """
    latents = []
    for prompt in prompts:
        if isinstance(prompt, str):
            latents.append(embed_text(prompt)[0])
            continue
        embeds = [(embed_text(part) if isinstance(part, str) else embed_audio(part))[0] for part, _ in prompt.parts]
        total = np.sum([embed * np.float32(weight) for embed, (_, weight) in zip(embeds, prompt.parts, strict=True)], axis=0)
        # one after another in double precision: BLAS, by which numpy has a norm, adds in an order that depends on the processor
        length = np.float32(np.sqrt(np.cumsum(np.square(total.astype(np.float64)))[-1]))
        if length < 1e-3:
            raise ValueError(f"the parts of {prompt} cancel each other: give them other weights.")
        latents.append(embeds[0] if len(embeds) == 1 and prompt.parts[0][1] > 0 else total / length)
    return np.stack(latents)


def sounds_of(prompts: Sequence[Prompt]) -> list[Sound]:
    """Return the sounds of checked prompts."""
    return [part for prompt in prompts if isinstance(prompt, Blend) for part, _ in prompt.parts if isinstance(part, Sound)]


def _read_prompt(prompt: Any) -> Prompt:
    if not isinstance(prompt, Blend):
        return _read_text(prompt, "a prompt must be a str or a Blend")
    if isinstance(prompt.parts, str) or not isinstance(prompt.parts, Sequence) or not prompt.parts:
        raise ValueError(f"a Blend takes a list of (text or sound, weight), got {type(prompt.parts).__name__}.")
    parts: list[tuple[str | Sound, float]] = []
    for item in prompt.parts:
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise ValueError("each part of a Blend must be (text or sound, weight).")
        part, weight = item[0], number(item[1])
        if weight is None or not np.isfinite(float(weight)):
            raise ValueError(f"a weight must be a finite number, got {item[1]!r}.")
        is_text = isinstance(part, str) or not is_sound(part)
        parts.append((_read_text(part, "a prompt must be a str or a Blend") if is_text else read_sound(part), float(weight)))
    return Blend(parts)


def _read_text(text: Any, expected: str) -> str:
    """Return a text as Python's own str. expected: the beginning of the message for anything else."""
    if isinstance(text, np.ndarray) and text.shape == ():
        text = text.item()
    if not isinstance(text, str):
        advice = "Decode it first." if isinstance(text, bytes) else "A sound goes into audio=, or with a weight into a Blend."
        raise ValueError(f"{expected}, got {type(text).__name__}. {advice}")
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"a prompt has at most {_MOST_CHARACTERS} characters, got {len(text)}: shorten {text[:60]!r}.")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"the prompt {text[:60]!r} holds bytes that are no text: give it in UTF-8.")
    return str(text)


def _name(part: SoundInput) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, os.PathLike):
        return f"the sound {os.fspath(part)}"
    try:
        return f"a sound of {read_sound(part).seconds:.2f} s"
    except ValueError:  # it is refused when music is made
        return "a sound"
