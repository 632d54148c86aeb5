"""A request, checked: what the caller asked for, turned into frames, steps and rows, before anything is computed.

In: a `GenerationConfig`, and prompts, sounds and tokens as `MusicLM.generate` takes them. Out: a `Request`, or a ValueError that says what
was got, what is possible and what to do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .arguments import MOST_ITEMS, whole_number
from .bundle import STAGES, Manifest, Sampling
from .codec import first_chunk_frames
from .config import GenerationConfig
from .consistency import MOST_SECONDS
from .music import Tokens
from .open_musiclm import output_frames, seconds_of
from .primes import Prime, make_primes
from .prompts import Prompt, make_prompts, sounds_of
from .resume import check_covered, given_tokens
from .sampling import SamplingConfig
from .sounds import SoundInput, read_sounds
from .windows import WindowPlan, frames_covered, most_coarse_frames, one_window, plan_windows

# The types of the arguments of `MusicLM.generate` that are not settings.
Texts = Prompt | Sequence[Prompt] | None
Sounds = SoundInput | Sequence[SoundInput] | None
Primes = SoundInput | Sequence[SoundInput | None] | None
GivenTokens = str | os.PathLike | Tokens | Sequence[Tokens] | None


@dataclass(frozen=True)
class Request:
    """A request that the model can run, its windows planned."""

    prompts: list[Prompt]
    single: bool  # whether the caller gave one prompt, and not a list of prompts
    config: GenerationConfig  # as given
    seeds: list[int]  # one per prompt
    num_samples: int  # the number of tokens' candidates, where tokens are given
    frames: int | None  # codec frames to generate; None: without end
    samples: int | None  # length of the wave asked for
    windows: WindowPlan
    semantic_end_allowed: bool  # where semantic tokens carry no time, an end is always allowed
    sampling: dict[str, Sampling]  # resolved, of every stage
    tokens: list[Tokens] | None  # to go on from, one per candidate of the one prompt
    primes: list[Prime | None]  # one per prompt

    @property
    def upstream(self) -> bool:
        return self.config.upstream

    @property
    def end_allowed(self) -> bool:
        """Whether a clip may end before its length, in coarse and fine."""
        return _end_allowed(self.config)

    @property
    def items(self) -> int:
        return len(self.prompts) * self.num_samples

    def prime_of(self, item: int) -> Prime | None:
        return self.primes[item // self.num_samples]

    def stage_done(self, stage: str) -> bool:
        return self.tokens is not None and getattr(self.tokens[0], stage) is not None


def make_request(
    manifest: Manifest,
    config: GenerationConfig,
    text: Texts = None,
    *,
    audio: Sounds = None,
    prime: Primes = None,
    tokens: GivenTokens = None,
    endless: bool = False,
    goes_on: bool = False,
) -> Request:
    """Return the request that these arguments of `MusicLM.generate` make. Raises ValueError for one that the model cannot do.

    endless: whether it has no end unless `seconds` say so; goes_on: whether tokens are those of a clip that was cut off in every stage.
    """
    if prime is not None:
        sounds, alone = read_sounds(prime)
        prime = sounds[0] if alone else sounds  # read once: without words it is the prompt as well
    prompts, single = make_prompts(text, prime if text is None and audio is None else audio)
    _check_long_enough(prompts, manifest)
    seeds = _seeds(config, len(prompts))
    _check_together(config, manifest)
    primes = make_primes(prime, len(prompts), manifest)
    lengths = [one.frames if one else 0 for one in primes]
    if config.upstream and len(set(lengths)) > 1:
        raise ValueError("compat='upstream' goes on from sounds of one length only: give one prime, or primes of as many frames.")
    given, candidates = given_tokens(tokens, manifest, config.upstream, goes_on), config.num_samples
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
    endless = endless and config.seconds is None
    if config.upstream and manifest.reads_segments:
        if given is not None:
            raise ValueError("compat='upstream' does not go on from tokens with open-musiclm's transformers. Leave one of the two out.")
        heard = manifest.semantic.max_length / manifest.semantic_tokens_per_second
        if long := next((one.sound.seconds for one in primes if one and one.sound.seconds > heard), None):
            raise ValueError(f"compat='upstream' hears the first {heard:g} s of a prime, as open-musiclm does, got {long:g} s. Cut it.")
        frames = output_frames(manifest, seconds_of(manifest, config.seconds), max(lengths) > 0) + max(lengths)
        samples = frames * manifest.codec.samples_per_frame
    else:
        frames, samples = (None, None) if endless else _duration(manifest, config, None if goes_on else given, max(lengths))
    windows = _windows(manifest, frames, samples, config)
    if given is not None and not _end_allowed(config) and not goes_on:
        check_covered(windows, given, manifest)
    return Request(
        prompts=prompts,
        single=single,
        config=config,
        seeds=seeds,
        num_samples=candidates,
        frames=frames,
        samples=samples,
        windows=windows,
        semantic_end_allowed=_end_allowed(config) or manifest.unique_consecutive,
        sampling=resolve_sampling(manifest, config.sampling or {}),
        tokens=given,
        primes=primes,
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


def _check_together(config: GenerationConfig, manifest: Manifest) -> None:
    """Raise ValueError for settings that exclude each other, and for a compat that the model's conditioning does not allow."""
    if config.plan == "low_latency" and config.upstream:
        raise ValueError("plan='low_latency' and compat='upstream' both say how a clip is cut into windows. Leave one of the two out.")
    if config.upstream and config.windows is not None:
        raise ValueError("compat='upstream' knows no windows. Leave one of the two out.")
    widths = manifest.conditioner.namespaces
    if config.upstream and "semantic" in widths and len(set(widths.values())) > 1:
        named = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise ValueError(
            f"compat='upstream' feeds the semantic conditioning to all stages, but theirs have other widths ({named}): leave it out."
        )


def _seeds(config: GenerationConfig, count: int) -> list[int]:
    seeds = [config.seed] * count if isinstance(config.seed, int) else list(config.seed)
    if len(seeds) != count:
        raise ValueError(f"got {len(seeds)} seeds for {count} prompts; give one seed, or one per prompt.")
    return seeds


def _end_allowed(config: GenerationConfig) -> bool:
    return config.upstream or config.stop == "eos"


def default_frames(manifest: Manifest) -> int:
    """Return the codec frames of a default clip: as the bundle says, or the longest that takes one window of every stage."""
    if manifest.seconds is not None:
        return math.ceil(manifest.seconds * manifest.codec.sample_hz / manifest.codec.samples_per_frame)
    return min(most_coarse_frames(manifest), manifest.fine.max_length)


def _duration(manifest: Manifest, config: GenerationConfig, given: list[Tokens] | None, primed: int) -> tuple[int, int]:
    """(frames to generate, or those that are given; samples of the wave), the `primed` frames included."""
    codec = manifest.codec
    fixed = max((len(item.coarse) for item in given if item.coarse is not None), default=None) if given else None
    limit, whole = fixed, default_frames(manifest)
    if fixed is None and config.upstream:
        limit = whole = primed + whole  # its coarse stage counts frames from the end of the prime
    elif fixed is None and given:
        covered = frames_covered(manifest, [item.windows for item in given], config.windows or {})
        whole = covered if covered > most_coarse_frames(manifest) else min(covered, whole)
    sound = primed * codec.samples_per_frame / codec.sample_hz
    asked = config.seconds
    if asked is None:
        if primed >= whole:
            raise ValueError(f"the prime counts towards the length, and its {sound:g} s fill the default. Ask for more seconds than that.")
        return (fixed or whole), (fixed or whole) * codec.samples_per_frame
    samples = max(round(asked * codec.sample_hz), 1)
    frames = -(-samples // codec.samples_per_frame)
    if frames <= primed:
        raise ValueError(f"the prime counts towards the length, and its {sound:g} s fill seconds = {asked:g}. Ask for more.")
    if limit is not None and frames > limit:
        most = limit * codec.samples_per_frame / codec.sample_hz
        has = "window of the model has" if fixed is None else "given tokens have"
        without = " with compat='upstream'" if fixed is None else ""
        raise ValueError(f"seconds = {asked:g} needs {frames} frames, but the {has} {limit}. Ask for at most {most:g} s{without}.")
    if asked > MOST_SECONDS:
        raise ValueError(f"seconds = {asked:g} is longer than a clip may be: ask for at most {MOST_SECONDS} s, a day.")
    if fixed is not None:
        return fixed, samples
    frames = max(frames, codec.min_frames)
    return (frames if limit is None else min(frames, limit)), samples


def _windows(manifest: Manifest, frames: int | None, samples: int | None, config: GenerationConfig) -> WindowPlan:
    """Plan the windows of the clip, with at most as many semantic tokens as the config allows."""
    if config.upstream and not manifest.reads_segments:
        assert frames is not None
        most = manifest.semantic.max_length
        return one_window(manifest, frames, _most_tokens(config, most, "the window of the model", most))
    first = None
    if config.plan == "low_latency":
        asked = round(config.first_window_s * manifest.codec.sample_hz / manifest.codec.samples_per_frame)
        first = max(asked, first_chunk_frames(manifest.codec))  # before which nothing sounds
    growth = (first, config.window_growth)
    plan = plan_windows(manifest, frames, samples or 0, None, config.windows or {}, *growth)
    if config.max_semantic_tokens is None:
        return plan
    if frames is None:
        raise ValueError("max_semantic_tokens is for a clip that has an end. Leave it out, or give seconds.")
    most, what = manifest.semantic.max_length, "the window of the model"
    if len(plan.coarse) > 1:
        most, what = max(most, plan.semantic_steps or 0), "all windows of this clip"
    tokens = _most_tokens(config, most, what, most)
    return plan_windows(manifest, frames, samples or 0, tokens, config.windows or {}, *growth)


def _most_tokens(config: GenerationConfig, most: int, what: str, default: int) -> int:
    """Return `max_semantic_tokens`, checked."""
    asked = config.max_semantic_tokens
    if asked is None:
        return default
    tokens = whole_number(asked)
    if tokens is None or not 0 <= tokens <= most:
        raise ValueError(f"max_semantic_tokens must be from 0 to {most} ({what}), got {asked!r}.")
    return tokens


def resolve_sampling(manifest: Manifest, configs: Mapping[str, SamplingConfig]) -> dict[str, Sampling]:
    """Return the sampling of each stage: the bundle's, but for what is chosen. Raises ValueError for guidance that a stage has not."""
    resolved = {}
    for stage in STAGES:
        decoder, config = getattr(manifest, stage), configs.get(stage, SamplingConfig())
        if config.cond_scale is not None and not decoder.guidance:
            raise ValueError(f"cond_scale has no effect on the {stage} stage, which was trained without a null condition. Leave it out.")
        chosen = {name: float(value) for name, value in vars(config).items() if value is not None}
        resolved[stage] = replace(decoder.sampling, **chosen)
    return resolved
