"""A request, checked: what the caller asked for, turned into frames, steps and rows, before anything is computed.

In: the arguments of `MusicLM.generate`. Out: a `Request`, or a ValueError that says what was got, what is possible and what to do.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

from .bundle import STAGES, Manifest, Sampling
from .music import Tokens
from .primes import Prime, make_primes
from .prompts import Prompt, Sound, make_prompts
from .resume import check_covered, given_tokens
from .sampling import SamplingConfig
from .windows import Clip, Window, frames_covered, most_coarse_frames, one_window, plan_clip

STOPS = ("exact", "eos")
_MOST_SECONDS = 86_400  # a day: its windows fit any list, and its tokens the 32 bits that count them for the noise
MOST_ITEMS = 1 << 16  # clips in one batch: far above what memory holds, far below what the lists of a request cannot


@dataclass(frozen=True)
class Request:
    prompts: list[Prompt]
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
    audio: Sound | Sequence[Sound] | None = None,
    prime: Sound | Sequence[Sound | None] | None = None,
    include_prime: bool = True,
) -> Request:
    """See `MusicLM.generate` for the arguments."""
    prompts = make_prompts(text, audio)
    seeds = _seeds(seed, len(prompts))
    if stop not in STOPS:
        raise ValueError(f"stop must be 'exact' or 'eos', got {stop!r}.")
    if compat not in (None, "upstream"):
        raise ValueError(f"compat must be None or 'upstream', got {compat!r}.")
    if not _is_whole(num_samples) or num_samples < 1:
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
        if num_samples not in (1, len(given)):
            raise ValueError(f"num_samples is {num_samples}, but the tokens to continue from hold {len(given)} candidates. Leave it out.")
        num_samples = len(given)
    if num_samples * len(prompts) > MOST_ITEMS:
        raise ValueError(f"{num_samples} samples of {len(prompts)} prompts are more than the {MOST_ITEMS} clips of one request.")
    frames, samples = _duration(manifest, seconds, given, windows, upstream, max(lengths))
    clip = _clip(manifest, frames, samples, max_semantic_tokens, windows, upstream)
    end_allowed = upstream or stop == "eos"
    if given is not None and not end_allowed:
        check_covered(clip, given, manifest)
    return Request(
        prompts=prompts,
        seeds=seeds,
        num_samples=int(num_samples),
        frames=frames,
        samples=samples,
        clip=clip,
        end_allowed=end_allowed,
        semantic_end_allowed=end_allowed or manifest.unique_consecutive,
        upstream=upstream,
        sampling=_sampling(manifest, sampling or {}),
        tokens=given,
        primes=primes,
        include_prime=include_prime,
        max_semantic_tokens=None if max_semantic_tokens is None else int(max_semantic_tokens),
        windows=windows,
    )


def _is_whole(value: Any) -> bool:
    """Python's and numpy's integers, but not bool, which is one of Python's."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
    seeds: list[Any] = list(seed) if isinstance(seed, Iterable) and not isinstance(seed, str | bytes) else [seed] * count
    if len(seeds) != count:
        raise ValueError(f"got {len(seeds)} seeds for {count} prompts; give one seed, or one per prompt.")
    for value in seeds:
        if not _is_whole(value) or not 0 <= value < 2**64:
            raise ValueError(f"a seed must be a whole number from 0 to 2**64 - 1, got {value!r}.")
    return [int(value) for value in seeds]


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
    if not isinstance(seconds, Real) or isinstance(seconds, bool) or not 0 < seconds < 1e9:
        raise ValueError(f"seconds must be a number above 0 and below 1e9, got {seconds!r}.")
    samples = max(round(float(seconds) * codec.sample_hz), 1)
    frames = -(-samples // codec.samples_per_frame)
    if frames <= primed:
        raise ValueError(f"the prime counts towards the length, and its {sound:g} s fill seconds = {float(seconds):g}. Ask for more.")
    if limit is not None and frames > limit:
        most = limit * codec.samples_per_frame / codec.sample_hz
        has = "window of the model has" if fixed is None else "given tokens have"
        without = " with compat='upstream'" if fixed is None else ""
        raise ValueError(f"seconds = {float(seconds):g} needs {frames} frames, but the {has} {limit}. Ask for at most {most:g} s{without}.")
    if seconds > _MOST_SECONDS:
        raise ValueError(f"seconds = {float(seconds):g} is longer than a clip may be: ask for at most {_MOST_SECONDS} s, a day.")
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
    if not _is_whole(asked) or not 0 <= asked <= most:
        raise ValueError(f"max_semantic_tokens must be from 0 to {most} ({what}), got {asked!r}.")
    return one_window(manifest, frames, int(asked)) if upstream else plan_clip(manifest, frames, samples, int(asked), windows)


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
        # Python's numbers: a float32 of numpy's would not come back from the record's JSON as the same threshold
        chosen = {name: float(value) for name, value in vars(config).items() if value is not None}
        resolved[stage] = replace(decoder.sampling, **chosen)
    return resolved
