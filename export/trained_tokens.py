"""The tokens that MuLaN's text tower was trained on: a row of its embedding table that no caption reached is still as it was drawn.

In: the table, and the optimizer's moments if the checkpoint has them. Out: one bool per token, or None if the table shows nothing, and the
reason in words.

A token without a caption has no gradient, and Adam leaves its row as it is. The row's size does not show that: in the demo's
checkpoint, 32 wide, the trained rows have root mean squares of 0.72 to 1.38, like fresh normal draws. So neither norms nor
spreads are used, but three marks that training leaves or removes for certain:

- **Zeros.** The row was emptied, as the demo's training empties those that no caption has.
- **Draws.** torch draws normal numbers on a CPU in blocks of 16: radius and angle of number i and number i + 8 come from two uniform
  numbers, each a multiple of 2^-24 (Box and Muller 1958). The angle can be computed back. In a row that nothing has changed it is a
  multiple again, up to float32's rounding; in a row that moved by 1e-6 it is anything. A row is as drawn if that is e^10 times likelier
  than chance: of 49,408 rows that had moved none was taken for such, at any width; of those that had not 78 % were found at a width of
  128, 97 % at 192, all at 512. Tables in 16 bits, or drawn on a GPU, or shrunk by weight decay, do not show it.
- **Moments.** The optimizer's second moment of a row is zero if it never had a gradient, also where weight decay shrank the row. They count
  only in a run so short that the moments of an early gradient cannot have faded to zero, and only if the rows are normally distributed
  together: those of a pretrained tower are not, and the captions of its first training left no moments.

If all rows have such a mark, the tower was not trained at all; if none has one, all rows may be trained. Neither tells words apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_BLOCK = 16  # numbers that torch draws together
_LEAST_WIDTH = 128  # narrower rows have too few angles
_MOST_TURN = 0.15  # turns; float32 rounds larger angles too coarsely
_LEAST_SPREAD = 0.004  # standard deviation of an angle's rounding, in units of 2^-24
_LEAST_EVIDENCE = 10.0  # nats
_FADED = 1e-30  # share to which a second moment may shrink in a run before it might be zero
_AT_ONCE = 4096  # rows


@dataclass(frozen=True)
class Moments:
    """An optimizer's second moments of one tensor."""

    second: Tensor  # in the tensor's shape
    steps: float
    beta: float  # factor by which a moment shrinks in a step


def moments_of(optimizer: Any, shape: tuple[int, ...]) -> Moments | None:
    """Return the moments of the tensor with this shape from an optimizer's state dict; None if no tensor has it, or several have."""
    if not isinstance(optimizer, Mapping) or not isinstance(optimizer.get("state"), Mapping):
        return None
    found = [kept for kept in optimizer["state"].values() if isinstance(kept, Mapping) and _has(kept.get("exp_avg_sq"), shape)]
    groups = optimizer.get("param_groups")
    try:
        (kept,), beta = found, max(float(group["betas"][1]) for group in groups)  # pyright: ignore[reportOptionalIterable]
        steps = float(kept["step"])
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError):  # the last one is torch's, for a tensor that is no number
        return None
    return Moments(kept["exp_avg_sq"], steps, beta) if 0 <= beta < 1 and steps >= 0 else None


def _has(tensor: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(tensor, Tensor) and tuple(tensor.shape) == shape and tensor.is_floating_point() and tensor.layout == torch.strided


def trained_tokens(table: Tensor, moments: Moments | None = None) -> tuple[np.ndarray | None, str]:
    """Find the trained rows of a table [V, dim]. Returns (bool [V], or None if the table shows nothing; the reason in words)."""
    zero = (table == 0).all(dim=1).numpy()
    evidence = _evidence(table)
    drawn, moved = evidence > _LEAST_EVIDENCE, (evidence < -_LEAST_EVIDENCE) & ~zero  # and those in between are taken for trained
    idle = np.zeros(len(table), bool)
    if moments is not None and moments.beta**moments.steps > _FADED:
        idle = (moments.second == 0).all(dim=1).numpy()
        idle &= ~zero
        if not idle.any() or not _is_normal(table[torch.from_numpy(idle)]):
            idle[:] = False
    untrained = zero | drawn | idle
    if untrained.all() or (drawn.any() and not moved.any()):
        return None, "cannot be known: every row is as it was drawn, so the tower was not trained"
    if not untrained.any():
        return None, "cannot be known: no row is zero or as torch draws them on a CPU; all may be trained"
    marks = {"zero": zero, "as drawn": drawn & ~zero, "without moments": idle & ~drawn}
    return ~untrained, "text.token_emb: the other rows are " + ", ".join(
        f"{mark} ({np.count_nonzero(rows)})" for mark, rows in marks.items() if rows.any()
    )


def _evidence(table: Tensor) -> np.ndarray:
    """Return float64 [V]: the log of how much likelier each row is as torch drew it than moved by a step; 0 if a table cannot show it."""
    V, width = table.shape
    if table.dtype != torch.float32 or width % _BLOCK or width < _LEAST_WIDTH:
        return np.zeros(V)
    return np.concatenate([_evidence_of_angles(part.numpy().astype(np.float64)) for part in table.split(_AT_ONCE)])


def _evidence_of_angles(rows: np.ndarray) -> np.ndarray:
    """Return float64 [n] for rows [n, dim]: the log of how much likelier the angles' distances from multiples of 2^-24 are in a drawn row.

    Float32 rounds an angle of t turns by about t units of 2^-24; chance puts it anywhere between two multiples.
    """
    blocks = rows.reshape(len(rows), -1, 2, _BLOCK // 2)
    x, y = blocks[:, :, 0].reshape(len(rows), -1), blocks[:, :, 1].reshape(len(rows), -1)
    counted = (x > 0) & (y > 0) & (y < math.tan(2 * math.pi * _MOST_TURN) * x)
    turns = np.arctan2(y[counted], x[counted]) / (2 * math.pi)
    units = turns * 2**24
    spread = np.maximum(turns, _LEAST_SPREAD)
    evidence = np.zeros(x.shape)
    evidence[counted] = -np.log(spread * math.sqrt(2 * math.pi)) - 0.5 * ((units - np.round(units)) / spread) ** 2
    return evidence.sum(axis=1)


def _is_normal(rows: Tensor) -> bool:
    """Return whether the numbers of all rows together have a normal distribution's mean and kurtosis, within five standard errors."""
    x = rows.double().flatten()
    x = x / x.square().mean().sqrt()
    errors = (x.mean(), 1), (x.pow(4).mean() - 3, 24)  # each with the variance of one draw
    return all(error.abs() < 5 * math.sqrt(variance / len(x)) for error, variance in errors)
