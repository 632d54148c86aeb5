"""The settings of a request: everything about how music is made that is not its prompt.

In: settings of any caller's types. Out: a `GenerationConfig` of Python's own, or a ValueError that names the setting. What depends on the
model is checked in `runtime.request`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict, Unpack

import numpy as np

from .arguments import items_of, number, whole_number
from .bundle import STAGES
from .sampling import SamplingConfig
from .windows import Window

STOPS = ("exact", "eos")
PLANS = ("trained", "low_latency")
LEAST_GROWTH = 1.1


class Settings(TypedDict, total=False):
    """The fields of `GenerationConfig` as keyword arguments, each of which may be left out."""

    seconds: float | None
    seed: int | Sequence[int]
    num_samples: int
    stop: str
    compat: str | None
    plan: str
    first_window_s: float
    window_growth: float
    max_semantic_tokens: int | None
    sampling: Mapping[str, SamplingConfig] | None
    windows: Mapping[str, Window] | None
    include_prime: bool


@dataclass(frozen=True)
class GenerationConfig:
    """How music is made: `model.generate("calm piano", config=GenerationConfig(seconds=10), seed=3)`. Settings override the config's."""

    # length of the wave, exact to the sample, the prime included whether the wave begins with it or not; by default the longest clip that
    # takes one window of every stage. A longer clip is made window by window.
    seconds: float | None = None
    seed: int | Sequence[int] = 0  # of the noise, one for all prompts or one each; the same seed gives the same wave in any batch
    num_samples: int = 1  # candidates per prompt, all of them kept; `Music.audio` is the one that MuLaN finds closest to the prompt
    stop: str = "exact"  # "exact" forbids the end token until `seconds` are reached, "eos" lets a clip end earlier
    # "upstream" reproduces audiolm-pytorch 2.4.0 token for token: the semantic conditioning in every stage, ends allowed, up to 2048
    # semantic tokens, candidates ranked without resampling; `seconds` is by default the window after the prime.
    compat: str | None = None
    plan: str = "trained"  # the first windows of a clip: as long as all others, or short and growing, "low_latency"
    first_window_s: float = 0.4  # with plan="low_latency": seconds of the first window of every stage
    window_growth: float = 2.0  # and how many times as far as the one before each of the next goes, until they have their full length
    max_semantic_tokens: int | None = None  # over the whole clip; by default as many as `seconds` can hold
    sampling: Mapping[str, SamplingConfig] | None = None  # by stage name, where it differs from the bundle's
    windows: Mapping[str, Window] | None = None  # by stage name, for clips longer than a trained window; where they differ from it
    include_prime: bool = True  # whether the wave begins with the prime, as the codec decodes it. Tokens always do.

    def __post_init__(self) -> None:
        """Replace numbers of other libraries by Python's. Raises ValueError for a setting that no model takes."""
        checked: dict[str, Any] = {
            "seconds": None if self.seconds is None else number(self.seconds),
            "seed": _seeds(self.seed),
            "num_samples": whole_number(self.num_samples),
            "first_window_s": number(self.first_window_s),
            "window_growth": number(self.window_growth),
            "sampling": _by_stage("sampling", self.sampling, SamplingConfig),
            "windows": _by_stage("windows", self.windows, Window),
        }
        seconds, candidates = checked["seconds"], checked["num_samples"]
        if self.seconds is not None and (seconds is None or not 0 < seconds < 1e9):
            raise ValueError(f"seconds must be a number above 0 and below 1e9, got {self.seconds!r}.")
        if candidates is None or candidates < 1:
            raise ValueError(f"num_samples must be a whole number of at least 1, got {self.num_samples!r}.")
        if not isinstance(self.stop, str) or self.stop not in STOPS:
            raise ValueError(f"stop must be 'exact' or 'eos', got {self.stop!r}.")
        if self.compat is not None and (not isinstance(self.compat, str) or self.compat != "upstream"):
            raise ValueError(f"compat must be None or 'upstream', got {self.compat!r}.")
        if not isinstance(self.plan, str) or self.plan not in PLANS:
            raise ValueError(f"plan must be 'trained' or 'low_latency', got {self.plan!r}.")
        for name, least in (("first_window_s", 0.01), ("window_growth", LEAST_GROWTH)):
            if checked[name] is None or not least <= checked[name] < 1e9:
                raise ValueError(f"{name} must be a number of at least {least}, got {getattr(self, name)!r}.")
        if not isinstance(self.include_prime, bool | np.bool_):
            raise ValueError(f"include_prime must be True or False, got {self.include_prime!r}.")
        checked["include_prime"] = bool(self.include_prime)
        tokens = whole_number(self.max_semantic_tokens)
        if tokens is not None:  # anything else but None is refused with the range, which depends on the model
            checked["max_semantic_tokens"] = tokens
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def upstream(self) -> bool:
        """Whether upstream's behaviour is reproduced, its mistakes included."""
        return self.compat == "upstream"


def config_of(config: GenerationConfig | None, **settings: Unpack[Settings]) -> GenerationConfig:
    """Return the config, `GenerationConfig()` in place of None, with these settings in place of its own.

    Raises TypeError for an unknown setting, ValueError for a value that no model takes.
    """
    known = [field.name for field in fields(GenerationConfig)]
    if unknown := [name for name in settings if name not in known]:
        raise TypeError(f"unknown setting {', '.join(unknown)}: the settings of a request are {', '.join(known)}.")
    if config is not None and not isinstance(config, GenerationConfig):
        raise ValueError(f"config must be a GenerationConfig, got {type(config).__name__}.")
    return replace(GenerationConfig() if config is None else config, **settings)


def _seeds(seed: int | Sequence[int]) -> int | tuple[int, ...]:
    items = items_of(seed, "seeds")
    seeds = []
    for item in [seed] if items is None else items:
        value = whole_number(item)
        if value is None or not 0 <= value < 2**64:
            raise ValueError(f"a seed must be a whole number from 0 to 2**64 - 1, got {item!r}.")
        seeds.append(value)
    return seeds[0] if items is None else tuple(seeds)


def _by_stage(name: str, given: Any, kind: type) -> dict[str, Any] | None:
    """Return the settings that were given by stage name, all of one kind."""
    if given is None:
        return None
    if not isinstance(given, Mapping) or not all(isinstance(value, kind) for value in given.values()):
        raise ValueError(f"{name} must map a stage to a {kind.__name__}, got {given!r}.")
    if unknown := [repr(stage) for stage in given if stage not in STAGES]:
        raise ValueError(f"{name} has the stages {', '.join(STAGES)}, got {', '.join(unknown)}.")
    return dict(given)
