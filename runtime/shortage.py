"""One sentence for memory that runs out inside another library: ONNX Runtime, numpy and C++ each report it in other words.

In: an exception. Out: a MemoryError that says what was being done, how much is free and what to do. A request's memory is checked before it
runs (`runtime.memory`); this module is for memory that other programs took meanwhile, and for needs that could not be known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .memory import OutOfMemory, least_memory

_SIGNS = (
    "bad_alloc",
    "bad allocation",
    "cannot allocate memory",  # the system's own
    "failed to allocate",
    "unable to allocate",
    "not enough memory",
    "pthread_create failed",  # no room for a thread's stack
    "can't start new thread",
    "out of memory",
)


def is_shortage(error: BaseException) -> bool:
    """Return whether an exception says, in any library's words, that memory ran out."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _SIGNS)


@contextmanager
def naming_shortage(what: str, needed: int | None = None, passed_on: Sequence[Exception] = ()) -> Iterator[None]:
    """Turn a shortage of memory inside the block into an OutOfMemory.

    what: the work, in words that follow "memory ran out"; needed: bytes that it takes, if known; passed_on: exceptions to raise unchanged.
    """
    try:
        yield
    except OutOfMemory:
        raise
    except Exception as error:
        if not is_shortage(error) or any(error is one for one in passed_on):
            raise
        least = least_memory()
        takes = "" if needed is None else f", which takes up to {needed / 1e6:.1f} MB"
        left = "" if least is None else f"{least.bytes / 1e6:.1f} MB are free. "
        raise OutOfMemory(
            f"memory ran out {what}{takes}. {left}Ask for fewer seconds, samples or prompts at once, use fewer threads, "
            "or end what else takes memory."
        ) from error
