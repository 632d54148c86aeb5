"""From logits to a token: guidance, the forbidden entry, top-k, temperature, noise, argmax.

    token = argmax( top_k(null + (cond - null) * scale) / temperature + gumbel )

In: float32 logits and noise. Out: one token per row. It knows nothing of stages or models.
"""

from dataclasses import dataclass

import numpy as np

from .arguments import number


@dataclass(frozen=True)
class SamplingConfig:
    """How one stage samples; None takes the bundle's default."""

    temperature: float | None = None  # 0 is greedy: the most likely token, no noise
    filter_thres: float | None = None  # share of the vocabulary that is dropped before sampling, in [0, 1)
    cond_scale: float | None = None  # classifier-free guidance: 1 is none

    def __post_init__(self) -> None:
        for name in ("temperature", "filter_thres", "cond_scale"):
            given = getattr(self, name)
            value = number(given)
            if given is not None and value is None:
                raise ValueError(f"{name} must be a number, got {given!r}.")
            # Python's numbers: a float32 of numpy's would not come back from the record's JSON as the same threshold
            object.__setattr__(self, name, value)
        # below 1e-30 logits divided by it overflow float32, and infinite scores have no order
        if self.temperature is not None and self.temperature != 0 and not 1e-30 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 (greedy) or a number of at least 1e-30, got {self.temperature}.")
        if self.filter_thres is not None and not 0 <= self.filter_thres < 1:
            raise ValueError(f"filter_thres must be in [0, 1), got {self.filter_thres}.")
        if self.cond_scale is not None and not abs(self.cond_scale) < float("inf"):
            raise ValueError(f"cond_scale must be finite, got {self.cond_scale}.")


def guide(cond: np.ndarray, null: np.ndarray, scale: float) -> np.ndarray:
    """Classifier-free guidance (Ho and Salimans 2022): cond, null [B, V] -> [B, V]."""
    return null + (cond - null) * np.float32(scale)


def sample(logits: np.ndarray, gumbel: np.ndarray, temperature: float, filter_thres: float, forbid_last: bool | np.ndarray) -> np.ndarray:
    """logits, gumbel float32 [B, V] -> tokens int64 [B].

    `forbid_last`, one for all or bool [B], excludes the last entry before top-k, whose k counts it all the same, as upstream does. Entries
    equal to the k-th all stay, so that the result does not depend on how a machine orders them.
    """
    V = logits.shape[-1]
    logits = logits.copy()
    logits[:, -1][forbid_last] = -np.inf
    if temperature == 0:
        return logits.argmax(axis=-1)
    place = V - max(int((1 - filter_thres) * V), 1)
    ordered = logits.copy()
    ordered.partition(place, axis=-1)
    scores = np.where(logits >= ordered[:, place, None], logits / np.float32(temperature) + gumbel, -np.inf)
    return scores.argmax(axis=-1)
