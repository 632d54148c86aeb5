"""A request, checked: what the caller asked for, turned into frames, steps and rows, before anything is computed.

In: the arguments of `MusicLM.generate`. Out: a `Request`, or a ValueError that says what was got, what is possible and what to do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .bundle import STAGES, Manifest, Sampling
from .music import Tokens, load_tokens
from .sampling import SamplingConfig

STOPS = ("exact", "eos")


@dataclass(frozen=True)
class Request:
    prompts: list[str]
    seeds: list[int]  # one per prompt
    num_samples: int
    frames: int  # codec frames to generate
    samples: int  # length of the wave asked for
    semantic_steps: int
    end_allowed: bool  # in coarse; and in semantic, unless its tokens carry time
    semantic_end_allowed: bool
    upstream: bool  # reproduce upstream's behaviour, its mistakes included
    sampling: dict[str, Sampling]
    tokens: list[Tokens] | None  # to go on from, one per candidate of the one prompt

    @property
    def items(self) -> int:
        return len(self.prompts) * self.num_samples

    def stage_done(self, stage: str) -> bool:
        return self.tokens is not None and getattr(self.tokens[0], stage) is not None


def make_request(
    manifest: Manifest,
    text: str | Sequence[str],
    seconds: float | None,
    seed: int | Sequence[int],
    num_samples: int,
    stop: str,
    compat: str | None,
    max_semantic_tokens: int | None,
    sampling: Mapping[str, SamplingConfig] | None,
    tokens: str | os.PathLike | Tokens | Sequence[Tokens] | None,
) -> Request:
    """See `MusicLM.generate` for the arguments."""
    prompts = _prompts(text)
    seeds = _seeds(seed, len(prompts))
    if stop not in STOPS:
        raise ValueError(f"stop must be 'exact' or 'eos', got {stop!r}.")
    if compat not in (None, "upstream"):
        raise ValueError(f"compat must be None or 'upstream', got {compat!r}.")
    given = _given_tokens(tokens, manifest)
    if given is not None:
        if len(prompts) > 1:
            raise ValueError(f"tokens continue one prompt, got {len(prompts)} prompts.")
        num_samples = len(given)
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples must be a whole number of at least 1, got {num_samples!r}.")
    frames, samples = _duration(manifest, seconds, given)
    upstream = compat == "upstream"
    end_allowed = upstream or stop == "eos"
    return Request(
        prompts=prompts,
        seeds=seeds,
        num_samples=num_samples,
        frames=frames,
        samples=samples,
        semantic_steps=_semantic_steps(manifest, samples, max_semantic_tokens, upstream),
        end_allowed=end_allowed,
        semantic_end_allowed=end_allowed or manifest.unique_consecutive,
        upstream=upstream,
        sampling=_sampling(manifest, sampling or {}),
        tokens=given,
    )


def _prompts(text: str | Sequence[str]) -> list[str]:
    prompts = [text] if isinstance(text, str) else list(text)
    if not prompts:
        raise ValueError("no prompt: the list of texts is empty.")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise ValueError(f"a prompt must be a str, got {type(prompt).__name__}.")
    return prompts


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
    seeds = [seed] * count if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise ValueError(f"got {len(seeds)} seeds for {count} prompts; give one seed, or one per prompt.")
    for value in seeds:
        if not isinstance(value, int) or not 0 <= value < 2**64:
            raise ValueError(f"a seed must be a whole number from 0 to 2**64 - 1, got {value!r}.")
    return seeds


def _given_tokens(tokens: str | os.PathLike | Tokens | Sequence[Tokens] | None, manifest: Manifest) -> list[Tokens] | None:
    if tokens is None:
        return None
    given = load_tokens(Path(tokens)) if isinstance(tokens, str | os.PathLike) else [tokens] if isinstance(tokens, Tokens) else list(tokens)
    if not given:
        raise ValueError("tokens to continue from: the list is empty.")
    columns = {"coarse": manifest.coarse.coarse_quantizers, "fine": manifest.fine.fine_quantizers}
    limits = {"semantic": manifest.semantic.vocabulary - 1, "coarse": manifest.codec.codebook_size, "fine": manifest.codec.codebook_size}
    for stage in STAGES:
        arrays = [getattr(item, stage) for item in given]
        if any(array is None for array in arrays) and any(array is not None for array in arrays):
            raise ValueError(f"tokens to continue from: some candidates have {stage} tokens and some have none.")
        for array in arrays:
            if array is None:
                continue
            Q = (columns.get(stage) or 1) * manifest.codec.groups
            expected = f"[n]{'' if stage == 'semantic' else f' x {Q}'}"
            if (
                array.dtype.kind not in "iu"
                or array.ndim != (1 if stage == "semantic" else 2)
                or (stage != "semantic" and array.shape[1] != Q)
            ):
                raise ValueError(f"{stage} tokens must be whole numbers of shape {expected}, got {array.dtype} {list(array.shape)}.")
            if array.size and (array.min() < 0 or array.max() >= limits[stage]):
                raise ValueError(f"{stage} tokens must lie in [0, {limits[stage]}), got {array.min()} to {array.max()}.")
    if any(item.fine is not None and (item.coarse is None or len(item.coarse) != len(item.fine)) for item in given):
        raise ValueError("fine tokens need coarse tokens of as many frames.")
    return given


def _duration(manifest: Manifest, seconds: float | None, given: list[Tokens] | None) -> tuple[int, int]:
    codec = manifest.codec
    longest = min(manifest.coarse.max_length, manifest.fine.max_length)
    fixed = max((len(item.coarse) for item in given if item.coarse is not None), default=None) if given else None
    if seconds is None:
        frames = longest if fixed is None else fixed
        return frames, frames * codec.samples_per_frame
    if not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds <= 0:
        raise ValueError(f"seconds must be a number above 0, got {seconds!r}.")
    samples = max(round(seconds * codec.sample_hz), 1)
    frames = max(-(-samples // codec.samples_per_frame), codec.min_frames)
    limit = longest if fixed is None else fixed
    if frames > limit:
        most = limit * codec.samples_per_frame / codec.sample_hz
        raise ValueError(
            f"seconds = {seconds:g} needs {frames} frames, but the {'window of the model' if fixed is None else 'given tokens'} "
            f"has {limit}. Ask for at most {most:g} s."
        )
    return frames, samples


def _semantic_steps(manifest: Manifest, samples: int, asked: int | None, upstream: bool) -> int:
    limit = manifest.semantic.max_length
    if asked is not None:
        if not isinstance(asked, int) or not 0 <= asked <= limit:
            raise ValueError(f"max_semantic_tokens must be from 0 to {limit} (the window of the model), got {asked!r}.")
        return asked
    return limit if upstream else min(math.ceil(samples / manifest.codec.sample_hz * manifest.semantic_tokens_per_second), limit)


def _sampling(manifest: Manifest, configs: Mapping[str, SamplingConfig]) -> dict[str, Sampling]:
    unknown = set(configs) - set(STAGES)
    if unknown:
        raise ValueError(f"sampling has the stages {', '.join(STAGES)}, got {', '.join(map(repr, sorted(unknown)))}.")
    resolved = {}
    for stage in STAGES:
        decoder, config = getattr(manifest, stage), configs.get(stage, SamplingConfig())
        if config.cond_scale is not None and not decoder.guidance:
            raise ValueError(
                f"cond_scale has no effect on the {stage} stage: audiolm-pytorch trains it without a null condition. Leave it out."
            )
        chosen = {name: value for name, value in vars(config).items() if value is not None}
        resolved[stage] = replace(decoder.sampling, **chosen)
    return resolved
