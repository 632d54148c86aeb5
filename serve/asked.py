"""From a checked body to the arguments of `MusicLM.generate`, within the limits of the server."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

import numpy as np

from ..runtime.bundle import Bundle
from ..runtime.config import SamplingConfig
from ..runtime.prompts import Blend
from ..runtime.request import default_frames
from ..runtime.windows import Window
from . import bodies
from .errors import Refusal
from .jobs import Asked
from .settings import Limits

_BLOCK = 1 << 16  # samples
_RATES = (1000, 384_000)
_CHANNELS = 8
_PASSED = ("seed", "num_samples", "stop", "first_window_s", "window_growth", "max_semantic_tokens", "include_prime")


def make_asked(body: bodies.Ours, model: str, prompt: Any, bundle: Bundle, limits: Limits, deadline_s: float, live: bool) -> Asked:
    """Return what a body asks.

    prompt: a text, parts, or None; deadline_s: that requests to this model have; live: whether it is played while it is made.

    Raises Refusal (400 or 413) for what goes beyond a limit.
    """
    sounds = _Sounds(limits)
    arguments: dict[str, Any] = {name: value for name in _PASSED if (value := getattr(body, name)) is not None}
    arguments["plan"] = body.plan or ("low_latency" if live and not body.windows else "trained")
    arguments["seconds"] = seconds = _seconds(body, bundle, limits)
    if body.num_samples > limits.num_samples:
        raise _beyond("num_samples", body.num_samples, limits.num_samples)
    if body.sampling:
        arguments["sampling"] = {stage: SamplingConfig(**one.model_dump(exclude_none=True)) for stage, one in body.sampling.items()}
    if body.windows:
        arguments["windows"] = {stage: Window(**one.model_dump(exclude_none=True)) for stage, one in body.windows.items()}
    if prompt is not None:
        arguments["text"] = _prompt(prompt, sounds, limits)
    for name in ("audio", "prime"):
        if (sound := getattr(body, name)) is not None:
            arguments[name] = sounds.read(sound, name)
    if not {"text", "audio", "prime"} & arguments.keys():
        raise Refusal(400, "say what the music should be like: a prompt, or a sound as audio or prime.", "prompt", "missing")
    words = str(arguments["text"]) if "text" in arguments else "a sound"
    deadline_s = min(deadline_s, body.deadline_s or deadline_s)
    return Asked(model, arguments, seconds, words, sounds.bytes, deadline_s)


def _seconds(body: bodies.Ours, bundle: Bundle, limits: Limits) -> float:
    codec = bundle.manifest.codec
    longest = default_frames(bundle.manifest) * codec.samples_per_frame / codec.sample_hz
    if body.seconds is not None and body.seconds > limits.seconds:
        raise _beyond("seconds", body.seconds, limits.seconds)
    return body.seconds or min(longest, limits.seconds)


def _prompt(prompt: str | list[bodies.Part], sounds: _Sounds, limits: Limits) -> str | Blend:
    parts = [bodies.Part(text=prompt)] if isinstance(prompt, str) else prompt
    if not 0 < len(parts) <= limits.parts:
        raise _beyond("the parts of prompt", len(parts), limits.parts)
    characters = sum(len(one.text or "") for one in parts)
    if characters > limits.characters:
        raise _beyond("the characters of prompt", characters, limits.characters)
    if isinstance(prompt, str):
        return prompt
    if any((one.text is None) == (one.audio is None) for one in parts):
        raise Refusal(400, "a part of prompt is either a text or a sound.", "prompt", "invalid_value")
    return Blend([(sounds.read(one.audio, "prompt") if one.audio else one.text or "", one.weight) for one in parts])


def _beyond(name: str, got: float, most: float) -> Refusal:
    return Refusal(400, f"{name} must be at most {most:g} here, got {got:g}.", name.split()[-1], "beyond_limit")


class _Sounds:
    """Reads the sounds of one request."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self.bytes = limits, 0

    def read(self, sound: bodies.Sound, name: str) -> tuple[np.ndarray, int]:
        """Return (float32 [t], rate) of a sound file in base64."""
        wave, hz = read_base64(sound, self._limits, name)
        self.bytes += wave.nbytes
        return wave, hz


def read_base64(sound: bodies.Sound, limits: Limits, name: str) -> tuple[np.ndarray, int]:
    """Return (float32 [t], rate) of a sound file in base64. name: of the field. Raises Refusal, as `read_upload` does."""
    try:
        data = base64.b64decode(sound.data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, f"{name} is not base64: {error}.", name, "invalid_value") from None
    return read_upload(data, limits, name)


def read_upload(data: bytes, limits: Limits, name: str) -> tuple[np.ndarray, int]:
    """Return (float32 [t], rate) of the bytes of a sound file, its channels mixed to one; no more of it is decoded than is allowed.

    Raises Refusal (400) for what is no sound, and (413) for a sound that is longer than the limit.
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            hz = file.samplerate
            if not _RATES[0] <= hz <= _RATES[1] or file.channels > _CHANNELS:
                said = f"{file.channels} channels at {hz} Hz"
                raise Refusal(
                    400, f"{name} has {said}: at most {_CHANNELS} channels, and {_RATES[0]} to {_RATES[1]} Hz.", name, "invalid_value"
                )
            most, blocks, read = int(limits.upload_seconds * hz), [], 0
            while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                blocks.append(block.mean(axis=1))
                read += len(block)
                if read > most:
                    raise Refusal(413, f"{name} is longer than the {limits.upload_seconds:g} s that are taken.", name, "beyond_limit")
    except (soundfile.LibsndfileError, TypeError, ValueError, RuntimeError) as error:
        raise Refusal(
            400, f"{name} is not a sound file that libsndfile reads (wav, flac, ogg, opus, mp3): {error}", name, "invalid_value"
        ) from None
    wave = np.concatenate([np.zeros(0, np.float32), *blocks])
    if not np.isfinite(wave).all():
        raise Refusal(400, f"{name} holds samples that are no numbers.", name, "invalid_value")
    return wave, hz
