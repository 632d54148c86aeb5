"""Memory that runs out inside another library, as one sentence: ONNX Runtime, numpy and C++ each have words of their own for it.

In: an exception. Out: a MemoryError that says what was being done, what is free and what to do. What a request takes is known before it
runs (`runtime.memory`); this is for what others took meanwhile, and for what could not be known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .memory import OutOfMemory, available_memory_bytes

_SIGNS = (
    "bad_alloc",
    "bad allocation",
    "cannot allocate memory",  # the system's own
    "failed to allocate",
    "unable to allocate",
    "not enough memory",
    "pthread_create failed",  # a thread's stack is what it had no room for
    "can't start new thread",
    "out of memory",
)


def is_shortage(error: BaseException) -> bool:
    """Whether an exception says, in whoever's words, that memory ran out."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _SIGNS)


@contextmanager
def naming_shortage(what: str, needed: int | None = None, passed_on: Sequence[Exception] = ()) -> Iterator[None]:
    """Turn a shortage of memory inside of the block into an OutOfMemory. what: is being done; needed: bytes that it takes, if known;
    passed_on: exceptions that stay as they are."""
    try:
        yield
    except OutOfMemory:
        raise
    except Exception as error:
        if not is_shortage(error) or any(error is one for one in passed_on):
            raise
        free = available_memory_bytes()
        takes = "" if needed is None else f", which takes up to {needed / 1e6:.1f} MB"
        left = "" if free is None else f"{free / 1e6:.1f} MB are free. "
        raise OutOfMemory(
            f"memory ran out {what}{takes}. {left}Ask for fewer seconds, samples or prompts at once, use fewer threads, "
            "or end what else takes memory."
        ) from error
