"""A request, checked: what the caller asked for, turned into frames, steps and rows, before anything is computed.

In: the arguments of `MusicLM.generate`. Out: a `Request`, or a ValueError that says what was got, what is possible and what to do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any

import numpy as np

from .bundle import STAGES, Manifest, Sampling
from .music import Tokens, load_tokens
from .sampling import SamplingConfig

STOPS = ("exact", "eos")
_MOST_CHARACTERS = 10_000  # white space is no token, but every prompt is written into the file's comment
_MOST_ITEMS = 1 << 16  # clips in one batch: far above what memory holds, far below what the lists of a request cannot


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
    if not _is_whole(num_samples) or num_samples < 1:
        raise ValueError(f"num_samples must be a whole number of at least 1, got {num_samples!r}.")
    given = _given_tokens(tokens, manifest)
    if given is not None:
        if len(prompts) > 1:
            raise ValueError(f"tokens continue one prompt, got {len(prompts)} prompts.")
        if num_samples not in (1, len(given)):
            raise ValueError(f"num_samples is {num_samples}, but the tokens to continue from hold {len(given)} candidates. Leave it out.")
        num_samples = len(given)
    if num_samples * len(prompts) > _MOST_ITEMS:
        raise ValueError(f"{num_samples} samples of {len(prompts)} prompts are more than the {_MOST_ITEMS} clips of one request.")
    frames, samples = _duration(manifest, seconds, given)
    upstream = compat == "upstream"
    end_allowed = upstream or stop == "eos"
    return Request(
        prompts=prompts,
        seeds=seeds,
        num_samples=int(num_samples),
        frames=frames,
        samples=samples,
        semantic_steps=_semantic_steps(manifest, samples, max_semantic_tokens, upstream),
        end_allowed=end_allowed,
        semantic_end_allowed=end_allowed or manifest.unique_consecutive,
        upstream=upstream,
        sampling=_sampling(manifest, sampling or {}),
        tokens=given,
    )


def _is_whole(value: Any) -> bool:
    """Python's and numpy's integers, but not bool, which is one of Python's."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _prompts(text: str | Sequence[str]) -> list[str]:
    prompts = list(text) if isinstance(text, Iterable) and not isinstance(text, str | bytes) else [text]
    if not prompts:
        raise ValueError("no prompt: the list of texts is empty.")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise ValueError(f"a prompt must be a str, got {type(prompt).__name__}.")
        if len(prompt) > _MOST_CHARACTERS:
            raise ValueError(f"a prompt has at most {_MOST_CHARACTERS} characters, got {len(prompt)}: shorten {prompt[:60]!r}.")
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise ValueError(f"the prompt {prompt[:60]!r} holds bytes that are no text: give it in UTF-8.")
    return prompts


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
    seeds: list[Any] = list(seed) if isinstance(seed, Iterable) and not isinstance(seed, str | bytes) else [seed] * count
    if len(seeds) != count:
        raise ValueError(f"got {len(seeds)} seeds for {count} prompts; give one seed, or one per prompt.")
    for value in seeds:
        if not _is_whole(value) or not 0 <= value < 2**64:
            raise ValueError(f"a seed must be a whole number from 0 to 2**64 - 1, got {value!r}.")
    return [int(value) for value in seeds]


def _given_tokens(tokens: str | os.PathLike | Tokens | Sequence[Tokens] | None, manifest: Manifest) -> list[Tokens] | None:
    if tokens is None:
        return None
    if isinstance(tokens, str | os.PathLike):
        given = load_tokens(Path(tokens))
    else:
        given = list(tokens) if isinstance(tokens, Iterable) else [tokens]
    if not given or not all(isinstance(item, Tokens) for item in given):
        raise ValueError(f"tokens to continue from must be a file or one Tokens per candidate, got {short_repr(tokens)}.")
    for stage in STAGES:
        missing = [getattr(item, stage) is None for item in given]
        if any(missing) and (stage == "semantic" or not all(missing)):
            raise ValueError(f"tokens to continue from: {'some' if not all(missing) else 'all'} candidates have no {stage} tokens.")
    given = [Tokens(*(_checked(stage, getattr(item, stage), manifest) for stage in STAGES)) for item in given]
    for item in given:
        if item.fine is not None and (item.coarse is None or len(item.coarse) != len(item.fine)):
            raise ValueError("fine tokens need coarse tokens of as many frames.")
        if item.coarse is None and len(item.semantic) > manifest.semantic.max_length:
            raise ValueError(f"{len(item.semantic)} semantic tokens are more than the model's window of {manifest.semantic.max_length}.")
        if item.coarse is not None and item.fine is None and len(item.coarse) > _window(manifest):
            raise ValueError(f"{len(item.coarse)} frames of coarse tokens are more than the model's window of {_window(manifest)}.")
    return given


def _checked(stage: str, array: Any, manifest: Manifest) -> Any:
    """One candidate's tokens of a stage as int64, or None where it has none."""
    if array is None:
        return None
    array = np.asarray(array)
    if stage == "semantic":
        expected, fits, limit = "[n]", array.ndim == 1, manifest.semantic.vocabulary - 1
    else:
        quantizers = manifest.coarse.coarse_quantizers if stage == "coarse" else manifest.fine.fine_quantizers
        columns, limit = (quantizers or 1) * manifest.codec.groups, manifest.codec.codebook_size
        expected, fits = f"[n > 0, {columns}]", array.ndim == 2 and array.shape[1] == columns and len(array) > 0
    if array.dtype.kind not in "iu" or not fits:
        raise ValueError(f"{stage} tokens must be whole numbers of shape {expected}, got {array.dtype} {list(array.shape)}.")
    if array.size and (array.min() < 0 or array.max() >= limit):
        raise ValueError(f"{stage} tokens must lie in [0, {limit}), got {array.min()} to {array.max()}.")
    return array.astype(np.int64)


def _window(manifest: Manifest) -> int:
    """Frames of the longest clip."""
    return min(manifest.coarse.max_length, manifest.fine.max_length)


def _duration(manifest: Manifest, seconds: float | None, given: list[Tokens] | None) -> tuple[int, int]:
    """(frames to generate, or those that are given; samples of the wave)."""
    codec = manifest.codec
    fixed = max((len(item.coarse) for item in given if item.coarse is not None), default=None) if given else None
    limit = _window(manifest) if fixed is None else fixed
    if seconds is None:
        return limit, limit * codec.samples_per_frame
    if not isinstance(seconds, Real) or isinstance(seconds, bool) or not 0 < seconds < 1e9:
        raise ValueError(f"seconds must be a number above 0 and below 1e9, got {seconds!r}.")
    samples = max(round(float(seconds) * codec.sample_hz), 1)
    frames = -(-samples // codec.samples_per_frame)
    if frames > limit:
        most = limit * codec.samples_per_frame / codec.sample_hz
        has = "window of the model has" if fixed is None else "given tokens have"
        raise ValueError(f"seconds = {float(seconds):g} needs {frames} frames, but the {has} {limit}. Ask for at most {most:g} s.")
    return min(max(frames, codec.min_frames), limit) if fixed is None else fixed, samples


def _semantic_steps(manifest: Manifest, samples: int, asked: int | None, upstream: bool) -> int:
    limit = manifest.semantic.max_length
    if asked is not None:
        if not _is_whole(asked) or not 0 <= asked <= limit:
            raise ValueError(f"max_semantic_tokens must be from 0 to {limit} (the window of the model), got {asked!r}.")
        return int(asked)
    return limit if upstream else min(math.ceil(samples / manifest.codec.sample_hz * manifest.semantic_tokens_per_second), limit)


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
        chosen = {name: value for name, value in vars(config).items() if value is not None}
        resolved[stage] = replace(decoder.sampling, **chosen)
    return resolved
