"""The forms of the native step that this processor runs, or the reason why there is none; what this process has allocated."""

import ctypes
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from musiclm_deploy.kernels import decoder_step

try:
    PATHS, MISSING = decoder_step.paths(), ""
except decoder_step.Unavailable as missing:  # no compiler here
    PATHS, MISSING = ["portable"], str(missing)


class _Mallinfo(ctypes.Structure):
    names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in names]


def allocated_bytes() -> int:
    """Return what malloc has given out and was not freed. Skips the test where the C library is not glibc 2.33 or later."""
    function = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if function is None:
        pytest.skip("this C library has no mallinfo2")
    function.restype = _Mallinfo
    found = function()
    return found.hblkhd + found.uordblks


@contextmanager
def address_space_left(size: int) -> Iterator[None]:
    """Let this process take `size` bytes of address space more, and no others."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
