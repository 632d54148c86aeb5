"""Arguments as callers have them: numbers of Python, numpy, PyTorch or JAX, and lists of anything.

In: a value of any type. Out: Python's own int, float or list; which numbers and how many items make sense is for the caller to check.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from itertools import islice
from numbers import Integral, Real
from typing import Any

MOST_ITEMS = 1 << 16  # clips in one batch: far above what memory holds, far below what the lists of a request cannot


def number(value: Any) -> int | float | None:
    """Return a real number as Python's int or float, a 0-d array or tensor included. Return None for anything else, bool included."""
    try:
        if getattr(value, "shape", None) == () and hasattr(value, "item"):
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, Real):
            return None
        return int(value) if isinstance(value, Integral) else float(value)
    except (ArithmeticError, RuntimeError, TypeError, ValueError):  # a tensor without memory; a fraction beyond what a float holds
        return None


def whole_number(value: Any) -> int | None:
    """Return a whole number as Python's int. Return None for anything else: a float has no place among seeds, even 3.0."""
    found = number(value)
    return found if isinstance(found, int) else None


def items_of(value: Any, name: str) -> list[Any] | None:
    """Return the items of a list, an array or an iterator. Return None for a single thing; text and bytes are one too.

    Raises ValueError for a dict or a set, whose order is nobody's intention, and for more items than one request may have. name: of the
    items, for messages.
    """
    if isinstance(value, str | bytes | bytearray):
        return None
    if isinstance(value, Mapping | Set):
        raise ValueError(f"{name} must be given as a list, in order, got {type(value).__name__}.")
    try:
        iterator = iter(value)
    except TypeError:  # also raised by 0-d arrays
        return None
    items = list(islice(iterator, MOST_ITEMS + 1))
    if len(items) > MOST_ITEMS:
        raise ValueError(f"{name}: one request takes at most {MOST_ITEMS}, got more.")
    return items
