"""A request, checked: what the caller asked for, turned into frames, steps and rows, before anything is computed.

In: the arguments of `MusicLM.generate`. Out: a `Request`, or a ValueError that says what was got, what is possible and what to do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .arguments import MOST_ITEMS, items_of, number, whole_number
from .bundle import STAGES, Manifest, Sampling
from .music import Tokens
from .primes import Prime, make_primes
from .prompts import Prompt, make_prompts, sounds_of
from .resume import check_covered, given_tokens
from .sampling import SamplingConfig
from .sounds import SoundInput, read_sounds
from .windows import Clip, Window, frames_covered, most_coarse_frames, one_window, plan_clip

STOPS = ("exact", "eos")
_MOST_SECONDS = 86_400  # a day: its windows fit any list, and its tokens the 32 bits that count them for the noise


@dataclass(frozen=True)
class Request:
    prompts: list[Prompt]
    single: bool  # whether the caller gave one prompt, and not a list of prompts
    seeds: list[int]  # one per prompt
    num_samples: int
    frames: int  # codec frames to generate
    samples: int  # length of the wave asked for
    clip: Clip  # its windows
    end_allowed: bool  # in coarse; and in semantic, unless its tokens carry time
    semantic_end_allowed: bool
    upstream: bool  # reproduce upstream's behaviour, its mistakes included
    sampling: dict[str, Sampling]
    tokens: list[Tokens] | None  # to go on from, one per candidate of the one prompt
    primes: list[Prime | None]  # one per prompt
    include_prime: bool  # in the wave
    max_semantic_tokens: int | None  # as given
    windows: Mapping[str, Window]  # as given

    @property
    def semantic_steps(self) -> int:
        return self.clip.semantic_steps

    @property
    def items(self) -> int:
        return len(self.prompts) * self.num_samples

    def prime_of(self, item: int) -> Prime | None:
        return self.primes[item // self.num_samples]

    def stage_done(self, stage: str) -> bool:
        return self.tokens is not None and getattr(self.tokens[0], stage) is not None


def make_request(
    manifest: Manifest,
    text: Prompt | Sequence[Prompt] | None,
    seconds: float | None,
    seed: int | Sequence[int],
    num_samples: int,
    stop: str,
    compat: str | None,
    max_semantic_tokens: int | None,
    sampling: Mapping[str, SamplingConfig] | None,
    tokens: str | os.PathLike | Tokens | Sequence[Tokens] | None,
    windows: Mapping[str, Window] | None = None,
    audio: SoundInput | Sequence[SoundInput] | None = None,
    prime: SoundInput | Sequence[SoundInput | None] | None = None,
    include_prime: bool = True,
) -> Request:
    """See `MusicLM.generate` for the arguments."""
    if prime is not None:
        sounds, alone = read_sounds(prime)
        prime = sounds[0] if alone else sounds  # read once: without words it is the prompt as well
    prompts, single = make_prompts(text, prime if text is None and audio is None else audio)
    _check_long_enough(prompts, manifest)
    seeds = _seeds(seed, len(prompts))
    if not isinstance(stop, str) or stop not in STOPS:
        raise ValueError(f"stop must be 'exact' or 'eos', got {stop!r}.")
    if compat is not None and (not isinstance(compat, str) or compat != "upstream"):
        raise ValueError(f"compat must be None or 'upstream', got {compat!r}.")
    if not isinstance(include_prime, bool | np.bool_):
        raise ValueError(f"include_prime must be True or False, got {include_prime!r}.")
    candidates = whole_number(num_samples)
    if candidates is None or candidates < 1:
        raise ValueError(f"num_samples must be a whole number of at least 1, got {num_samples!r}.")
    upstream = compat == "upstream"
    if upstream and windows is not None:
        raise ValueError("compat='upstream' knows no windows. Leave one of the two out.")
    widths = manifest.conditioner.namespaces
    if upstream and "semantic" in widths and len(set(widths.values())) > 1:
        named = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise ValueError(
            f"compat='upstream' feeds the semantic conditioning to all stages, but theirs have other widths ({named}): leave it out."
        )
    windows = {} if windows is None else windows
    primes = make_primes(prime, len(prompts), manifest)
    lengths = [one.frames if one else 0 for one in primes]
    if upstream and len(set(lengths)) > 1:
        raise ValueError("compat='upstream' goes on from sounds of one length only: give one prime, or primes of as many frames.")
    given = given_tokens(tokens, manifest, upstream)
    if given is not None:
        if prime is not None:
            raise ValueError("tokens and prime are both what the music goes on from. Leave one of the two out.")
        if len(prompts) > 1:
            raise ValueError(f"tokens continue one prompt, got {len(prompts)} prompts.")
        if candidates not in (1, len(given)):
            raise ValueError(f"num_samples is {candidates}, but the tokens to continue from hold {len(given)} candidates. Leave it out.")
        candidates = len(given)
    if candidates * len(prompts) > MOST_ITEMS:
        raise ValueError(f"{candidates} samples of {len(prompts)} prompts are more than the {MOST_ITEMS} clips of one request.")
    frames, samples = _duration(manifest, seconds, given, windows, upstream, max(lengths))
    clip = _clip(manifest, frames, samples, max_semantic_tokens, windows, upstream)
    end_allowed = upstream or stop == "eos"
    if given is not None and not end_allowed:
        check_covered(clip, given, manifest)
    return Request(
        prompts=prompts,
        single=single,
        seeds=seeds,
        num_samples=candidates,
        frames=frames,
        samples=samples,
        clip=clip,
        end_allowed=end_allowed,
        semantic_end_allowed=end_allowed or manifest.unique_consecutive,
        upstream=upstream,
        sampling=_sampling(manifest, sampling or {}),
        tokens=given,
        primes=primes,
        include_prime=bool(include_prime),
        max_semantic_tokens=whole_number(max_semantic_tokens),
        windows=windows,
    )


def check_callbacks(noise: Any, progress: Any, cancel: Any) -> None:
    """Raise ValueError for what would fail when it is called, in the middle of a request."""
    if noise is not None and not callable(getattr(noise, "gumbel", None)):
        raise ValueError(f"noise must have gumbel(stage, step, batch, vocab), got {type(noise).__name__}.")
    if not isinstance(progress, bool) and progress is not None and not callable(progress):
        raise ValueError(f"progress must be True, or a function of (stage, done, total), got {progress!r}.")
    if cancel is not None and not callable(getattr(cancel, "is_set", None)):
        raise ValueError(f"cancel must be a threading.Event, got {type(cancel).__name__}.")


def _check_long_enough(prompts: Sequence[Prompt], manifest: Manifest) -> None:
    """Raise ValueError for a sound among the prompts that is too short to be embedded, before anything is computed."""
    mulan = manifest.mulan
    for sound in sounds_of(prompts):
        if sound.samples_at(mulan.sample_hz) < mulan.min_samples:
            raise ValueError(f"a sound to be like must last at least {mulan.min_samples / mulan.sample_hz:g} s, got {sound.seconds:g} s.")


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
    items = items_of(seed, "seeds")
    items = [seed] * count if items is None else items
    if len(items) != count:
        raise ValueError(f"got {len(items)} seeds for {count} prompts; give one seed, or one per prompt.")
    seeds = []
    for item in items:
        value = whole_number(item)
        if value is None or not 0 <= value < 2**64:
            raise ValueError(f"a seed must be a whole number from 0 to 2**64 - 1, got {item!r}.")
        seeds.append(value)
    return seeds


def default_frames(manifest: Manifest) -> int:
    """Return the codec frames of a default clip: the longest that takes one window of every stage."""
    return min(most_coarse_frames(manifest), manifest.fine.max_length)


def _duration(
    manifest: Manifest, seconds: float | None, given: list[Tokens] | None, windows: Mapping[str, Window], upstream: bool, primed: int
) -> tuple[int, int]:
    """(frames to generate, or those that are given; samples of the wave), the `primed` frames included."""
    codec = manifest.codec
    fixed = max((len(item.coarse) for item in given if item.coarse is not None), default=None) if given else None
    limit, whole = fixed, default_frames(manifest)
    if fixed is None and upstream:
        limit = whole = primed + whole  # its coarse stage counts frames from the end of the prime
    elif fixed is None and given:
        covered = frames_covered(manifest, [item.windows for item in given], windows)
        whole = covered if covered > most_coarse_frames(manifest) else min(covered, whole)
    sound = primed * codec.samples_per_frame / codec.sample_hz
    if seconds is None:
        if primed >= whole:
            raise ValueError(f"the prime counts towards the length, and its {sound:g} s fill the default. Ask for more seconds than that.")
        return (fixed or whole), (fixed or whole) * codec.samples_per_frame
    asked = number(seconds)
    if asked is None or not 0 < asked < 1e9:
        raise ValueError(f"seconds must be a number above 0 and below 1e9, got {seconds!r}.")
    samples = max(round(asked * codec.sample_hz), 1)
    frames = -(-samples // codec.samples_per_frame)
    if frames <= primed:
        raise ValueError(f"the prime counts towards the length, and its {sound:g} s fill seconds = {asked:g}. Ask for more.")
    if limit is not None and frames > limit:
        most = limit * codec.samples_per_frame / codec.sample_hz
        has = "window of the model has" if fixed is None else "given tokens have"
        without = " with compat='upstream'" if fixed is None else ""
        raise ValueError(f"seconds = {asked:g} needs {frames} frames, but the {has} {limit}. Ask for at most {most:g} s{without}.")
    if asked > _MOST_SECONDS:
        raise ValueError(f"seconds = {asked:g} is longer than a clip may be: ask for at most {_MOST_SECONDS} s, a day.")
    if fixed is not None:
        return fixed, samples
    frames = max(frames, codec.min_frames)
    return (frames if limit is None else min(frames, limit)), samples


def _clip(manifest: Manifest, frames: int, samples: int, asked: int | None, windows: Mapping[str, Window], upstream: bool) -> Clip:
    """The windows of the clip, and at most how many semantic tokens it gets."""
    most, what = manifest.semantic.max_length, "the window of the model"
    clip = one_window(manifest, frames, most) if upstream else plan_clip(manifest, frames, samples, None, windows)
    if asked is None:
        return clip
    if len(clip.coarse) > 1:
        most, what = max(most, clip.semantic_steps), "all windows of this clip"
    tokens = whole_number(asked)
    if tokens is None or not 0 <= tokens <= most:
        raise ValueError(f"max_semantic_tokens must be from 0 to {most} ({what}), got {asked!r}.")
    return one_window(manifest, frames, tokens) if upstream else plan_clip(manifest, frames, samples, tokens, windows)


def _sampling(manifest: Manifest, configs: Mapping[str, SamplingConfig]) -> dict[str, Sampling]:
    if not isinstance(configs, Mapping) or not all(isinstance(config, SamplingConfig) for config in configs.values()):
        raise ValueError(f"sampling must map a stage to a SamplingConfig, got {configs!r}.")
    unknown = [repr(stage) for stage in configs if stage not in STAGES]
    if unknown:
        raise ValueError(f"sampling has the stages {', '.join(STAGES)}, got {', '.join(unknown)}.")
    resolved = {}
    for stage in STAGES:
        decoder, config = getattr(manifest, stage), configs.get(stage, SamplingConfig())
        if config.cond_scale is not None and not decoder.guidance:
            raise ValueError(
                f"cond_scale has no effect on the {stage} stage: audiolm-pytorch trains it without a null condition. Leave it out."
            )
        chosen = {name: float(value) for name, value in vars(config).items() if value is not None}
        resolved[stage] = replace(decoder.sampling, **chosen)
    return resolved
