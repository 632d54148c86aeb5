"""Saved tokens that a request goes on from, checked against the model and the clip.

In: what the caller gave for `tokens`. Out: `Tokens` of int64, or a ValueError that names the stage and what is wrong. It runs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from reprlib import repr as short_repr
from typing import Any

import numpy as np

from .bundle import STAGES, Manifest
from .music import Tokens, load_tokens
from .user_files import expanded
from .windows import WindowPlan


@dataclass(frozen=True)
class Known:
    """Tokens that a clip begins with."""

    tokens: Tokens  # of a prime: semantic tokens with their repeats, coarse and fine frames
    stages: tuple[str, ...] = ()  # those whose tokens are all there is; the others go on from them
    is_sound: bool = False  # whether it is a prime's


def given_tokens(
    tokens: str | os.PathLike | Tokens | Sequence[Tokens] | None, manifest: Manifest, upstream: bool, goes_on: bool = False
) -> list[Tokens] | None:
    """Return one `Tokens` of int64 per candidate, or None. Raises ValueError for tokens that are not this model's.

    goes_on: whether they are of a clip that was cut off, in which every stage may have ended anywhere.
    """
    if tokens is None:
        return None
    if isinstance(tokens, str | os.PathLike):
        given = load_tokens(expanded(tokens))
    else:
        given = list(tokens) if isinstance(tokens, Iterable) else [tokens]
    if not given or not all(isinstance(item, Tokens) for item in given):
        raise ValueError(f"tokens to continue from must be a file or one Tokens per candidate, got {short_repr(tokens)}.")
    for stage in STAGES:
        missing = [getattr(item, stage) is None for item in given]
        if any(missing) and (stage == "semantic" or not all(missing)):
            raise ValueError(f"tokens to continue from: {'some' if not all(missing) else 'all'} candidates have no {stage} tokens.")
    given = [
        Tokens(
            *[_checked(stage, getattr(item, stage), manifest, goes_on) for stage in STAGES],
            semantic_windows=_checked_windows(item, manifest),
        )
        for item in given
    ]
    for item in given:
        if goes_on:
            if item.fine is not None and len(item.fine) > (0 if item.coarse is None else len(item.coarse)):
                raise ValueError("fine tokens need coarse tokens of as many frames.")
            continue
        if item.fine is not None and (item.coarse is None or len(item.coarse) != len(item.fine)):
            raise ValueError("fine tokens need coarse tokens of as many frames.")
        longest, most = max(window.stop - window.start for window in item.windows), manifest.semantic.max_length
        if item.coarse is None and longest > most and (manifest.unique_consecutive or upstream):
            raise ValueError(f"{longest} semantic tokens are more than the model's window of {most}.")
        if upstream and item.coarse is None and len(item.windows) > 1:
            raise ValueError(f"the semantic tokens are of {len(item.windows)} windows, compat='upstream' knows one only.")
        most = min(manifest.coarse.max_length, manifest.fine.max_length)
        if upstream and item.coarse is not None and item.fine is None and len(item.coarse) > most:
            raise ValueError(f"{len(item.coarse)} frames of coarse tokens are more than the model's window of {most}.")
    return given


def _checked(stage: str, array: Any, manifest: Manifest, may_be_empty: bool) -> Any:
    """One candidate's tokens of a stage as int64, or None where it has none."""
    if array is None:
        return None
    array = np.asarray(array)
    if stage == "semantic":
        expected, fits, limit = "[n]", array.ndim == 1, manifest.semantic.vocabulary - 1
    else:
        columns, limit = manifest.columns(stage), manifest.codec.codebook_size
        expected, fits = f"[n > 0, {columns}]", array.ndim == 2 and array.shape[1] == columns and (may_be_empty or len(array) > 0)
    if array.dtype.kind not in "iu" or not fits:
        raise ValueError(f"{stage} tokens must be whole numbers of shape {expected}, got {array.dtype} {list(array.shape)}.")
    if array.size and (array.min() < 0 or array.max() >= limit):
        raise ValueError(f"{stage} tokens must lie in [0, {limit}), got {array.min()} to {array.max()}.")
    return array.astype(np.int64)


def _checked_windows(item: Tokens, manifest: Manifest) -> np.ndarray | None:
    """The windows as int64 [windows, 2]: in order, without a gap, and all of the semantic tokens."""
    if item.semantic_windows is None or not manifest.unique_consecutive:
        return None
    windows = np.asarray(item.semantic_windows)
    if windows.dtype.kind not in "iu" or windows.ndim != 2 or windows.shape[1] != 2 or not len(windows):
        raise ValueError(f"semantic_windows must be whole numbers of shape [n > 0, 2], got {windows.dtype} {list(windows.shape)}.")
    starts, stops = windows.T.astype(np.int64)
    before = np.concatenate([[0], stops[:-1]])  # a window begins in the one before it, or where that ends
    begins = np.concatenate([[0], starts[:-1]])
    if (starts < begins).any() or (starts > before).any() or (stops < before).any() or stops[-1] != len(item.semantic):
        raise ValueError(
            f"semantic_windows must cover the {len(item.semantic)} semantic tokens in order, got {short_repr(windows.tolist())}."
        )
    return windows.astype(np.int64)


def check_covered(plan: WindowPlan, given: list[Tokens], manifest: Manifest) -> None:
    """Refuse a clip that is longer than the semantic tokens it would go on from; one window takes what there is."""
    for item in given:
        if item.coarse is not None or len(plan.coarse) == 1:
            continue
        if not plan.timed and len(item.windows) < len(plan.coarse):
            raise ValueError(
                f"the semantic tokens are of {len(item.windows)} windows, this length needs {len(plan.coarse)}. Ask for fewer seconds."
            )
        if plan.timed and not plan.reached(len(plan.coarse) - 1, len(item.semantic)):
            seconds = len(item.semantic) / manifest.semantic_tokens_per_second
            raise ValueError(f"the semantic tokens are {len(item.semantic)}, enough for {seconds:g} s. Ask for fewer seconds.")
