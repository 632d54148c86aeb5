"""The record of how a piece of music was made, which its file carries, and the request that repeats it.

In: a checked request and the model that runs it; later a file. Out: the record, a dict of JSON's types (docs/sound_files.md lists its
fields), and arguments of `MusicLM.generate`. Sounds and tokens that a request was given are not in the record, only their hashes.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from .bundle import STAGES, Bundle, Sampling
from .container import available_processors
from .music import Tokens, audio_sha256
from .ort import import_onnxruntime
from .prompts import Blend, Prompt
from .sampling import SamplingConfig
from .sounds import Sound, SoundInput, read_sound, read_sounds
from .windows import Window

if TYPE_CHECKING:
    from .backends import Backend
    from .request import Request

VERSION = 1  # rises when a field of the record changes its meaning or goes
VERSION_FIELD = "musiclm_deploy"  # the name also marks a record as ours


def make_record(backend: Backend, request: Request, prompt: int, own_noise: bool) -> dict[str, Any]:
    """Return the record of one prompt of a request. own_noise: whether the caller gave the noise, which cannot be repeated."""
    manifest, asked, prime = backend.bundle.manifest, request.prompts[prompt], request.primes[prompt]
    return {
        VERSION_FIELD: VERSION,
        **prompt_record(asked),
        "seed": request.seeds[prompt],
        "seconds": None if request.samples is None else request.samples / manifest.codec.sample_hz,
        "num_samples": request.num_samples,
        **{
            name: getattr(request.config, name)
            for name in ("stop", "compat", "plan", "first_window_s", "window_growth", "max_semantic_tokens", "include_prime")
        },
        "sampling": {stage: _sampling(chosen, getattr(manifest, stage).guidance) for stage, chosen in request.sampling.items()},
        "windows": {stage: vars(window) for stage, window in (request.config.windows or {}).items()},
        "prime": None if prime is None else sound_record(prime.sound),
        "tokens": None if request.tokens is None else tokens_record(request.tokens),
        "own_noise": own_noise,
        "bundle": _folder(backend.bundle),
        "bundle_sha256": backend.bundle.sha256,
        "device": backend.device,
        "step": backend.steps,
        "threads": backend.graphs.threads,  # how many compute a sum decides its last bit
        "processors": available_processors(),
        "precision": {
            stage: getattr(manifest, stage).step.precision if backend.precision is None else backend.precision for stage in STAGES
        },
        "versions": {
            "musiclm-deploy": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "onnxruntime": import_onnxruntime().__version__,
        },
    }


def generate_arguments(
    record: Mapping[str, Any],
    sounds: SoundInput | Sequence[SoundInput] = (),
    prime: SoundInput | None = None,
    tokens: Sequence[Tokens] | None = None,
    without_end: bool = False,
) -> dict[str, Any]:
    """Return the arguments of `MusicLM.generate` that repeat a record.

    sounds, prime, tokens: those of the request, given again; the prompt's sounds in any order. Raises ValueError if one is missing, is not
    the same, or was not in the request, and for a record that cannot be repeated. without_end: whether the music may be one without end.
    """
    if record["own_noise"]:
        raise ValueError("it was made with the caller's own noise (noise= in Python), which is not in the file: it cannot be repeated.")
    if record["seconds"] is None and not without_end:
        raise ValueError("it is a part of music without end (--seconds inf), which has no length to be repeated to.")
    given = [sound for sound in read_sounds(sounds)[0] if sound is not None]
    start = None if prime is None else read_sound(prime)
    _check_given("sound that it continues", "--prime FILE (prime=", None if start is None else sound_record(start), record["prime"])
    _check_given("tokens that it continues", "--tokens FILE (tokens=", None if tokens is None else tokens_record(tokens), record["tokens"])
    return {
        "text": _prompt(record, [*given, *([] if start is None else [start])], bool(given)),
        "prime": start,
        "tokens": None if tokens is None else list(tokens),
        "windows": {stage: Window(**window) for stage, window in record["windows"].items()} or None,
        "sampling": {stage: SamplingConfig(**chosen) for stage, chosen in record["sampling"].items()},
        # older records have no plan
        **{name: record[name] for name in ("plan", "first_window_s", "window_growth") if name in record},
        **{name: record[name] for name in ("seed", "seconds", "num_samples", "stop", "compat", "max_semantic_tokens", "include_prime")},
    }


def prompt_record(prompt: Prompt) -> dict[str, Any]:
    """Return a prompt as a record has it; its sounds by their hashes."""
    parts = None if isinstance(prompt, str) else [_part(part, weight) for part, weight in prompt.parts]
    return {"prompt": str(prompt), "parts": parts}


def sound_record(sound: Sound) -> dict[str, Any]:
    """Return the length, rate and hash by which a record names a sound."""
    return {"samples": len(sound.wave), "hz": sound.hz, "sha256": audio_sha256(sound.wave)}


def tokens_record(tokens: Sequence[Tokens]) -> dict[str, Any]:
    """Return the number of candidates and the hash by which a record names tokens."""
    digest = hashlib.sha256()
    for item in tokens:
        for array in (item.semantic, item.coarse, item.fine):
            digest.update(b"-" if array is None else f"{list(np.shape(array))}".encode())
            digest.update(b"" if array is None else np.ascontiguousarray(array, "<i8").tobytes())
    return {"candidates": len(tokens), "sha256": digest.hexdigest()}


def _folder(bundle: Bundle) -> str:
    """Return the bundle's path if it was given as one below the current folder, else its name alone: files are passed on to others."""
    given = bundle.given
    below = not given.is_absolute() and ".." not in given.parts and given.resolve() == bundle.root  # and the folder is still the same
    return given.as_posix() if below else bundle.root.name


def _check_given(what: str, option: str, given: dict[str, Any] | None, expected: dict[str, Any] | None) -> None:
    if given == expected:
        return
    if expected is None:
        raise ValueError(f"it was made without {option.split(' ')[0]}. Leave that out.")
    if given is None:
        raise ValueError(f"the {what} cannot be in the file: {shown(expected)}. Give it again with {option} in Python).")
    raise ValueError(f"the {what} must be the same: it was {shown(expected)}, got {shown(given)}.")


def _sampling(chosen: Sampling, guidance: bool) -> dict[str, Any]:
    return vars(chosen) | ({} if guidance else {"cond_scale": None})


def _part(part: SoundInput, weight: float) -> dict[str, Any]:
    given = {"text": part} if isinstance(part, str) else {"sound": sound_record(read_sound(part))}
    return given | {"weight": float(weight)}


def _prompt(record: Mapping[str, Any], sounds: Sequence[Sound], asked: bool) -> Prompt:
    """Return the prompt, with its sounds put back by their hashes. asked: whether sounds were given for it."""
    parts = record["parts"] or [{"text": record["prompt"], "weight": 1.0}]
    expected = [part["sound"] for part in parts if "sound" in part]
    given = {sound_record(sound)["sha256"]: sound for sound in sounds}
    for sound in expected:
        if sound["sha256"] not in given:
            got = ", ".join(shown(sound_record(one)) for one in sounds) or "none"
            raise ValueError(
                f"a sound of its prompt cannot be in the file: {shown(sound)}. Give that again with --audio FILE (sounds= in Python); "
                f"got {got}."
            )
    if asked and not expected:
        raise ValueError("its prompt was without a sound. Leave --audio out.")
    if record["parts"] is None:
        return record["prompt"]
    return Blend([(given[part["sound"]["sha256"]] if "sound" in part else part["text"], part["weight"]) for part in parts])


def shown(sound: Mapping[str, Any] | None) -> str:
    """Describe the record of a sound, or of tokens, in words."""
    if sound is None:
        return "none"
    if "hz" in sound:
        return f"{sound['samples'] / sound['hz']:.2f} s at {sound['hz']} Hz, SHA-256 of the samples {sound['sha256'][:12]}"
    return f"{sound['candidates']} candidates, SHA-256 {sound['sha256'][:12]}"
