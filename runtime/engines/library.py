"""The TensorRT that is installed: the full library from 10.15 on, or TensorRT-RTX. What is used of both has the same names.

In: what Python finds. Out: a `Library`. Neither is imported before it is asked for.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from ..backend import BackendError
from ..device.driver import DeviceError
from ..install import install_command

_LOG = logging.getLogger(__name__)
_LEAST = 10, 15  # of the full library: the first whose caches are updated in place
# It is said of every graph that an int64 input once was none; and without a GPU, that there is none.
_NO_MATTER = ("Int64 binding", "cudaError 35", "CUDA initialization failure with error: 35")


@dataclass(frozen=True)
class Library:
    name: str  # "TensorRT" or "TensorRT-RTX"
    version: str
    trt: Any  # its module
    log: Any  # that all its objects share: it keeps the first that it is given

    @property
    def portable(self) -> bool:
        """Whether its engines are built for a compute capability and need no GPU for it; else they are of the GPU that builds them."""
        return self.name == "TensorRT-RTX"

    def accept(self, accepted: bool, what: str) -> None:
        """DeviceError, with what TensorRT said, where it has refused `what`."""
        if not accepted:
            said = "; ".join(self.log.faults[-3:]) or "it gives no reason"
            again = "Load the bundle in a new process; if it is refused there too, build its engines again: musiclm build."
            raise DeviceError(f"{self.name} refused {what}: {said.removesuffix('.')}. {again}")


def find_library(portable: bool | None = None) -> Library:
    """The full library if it is installed, or TensorRT-RTX; portable: which of them it must be. BackendError says what is missing."""
    faults = []
    for find in [_full, _rtx] if portable is None else [_rtx] if portable else [_full]:
        try:
            return find()
        except (ImportError, RuntimeError) as error:  # what is on the package index is a stub, which may raise either
            faults.append(str(error).strip().split("\n")[0])
    either = f"for TensorRT {install_command('tensorrt')}; for TensorRT-RTX {install_command('tensorrt-rtx')}"
    raise BackendError(f"TensorRT cannot be used here: {'; '.join(faults)}. Install one: {either}.")


def _full() -> Library:
    trt = import_module("tensorrt")
    version = str(trt.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < _LEAST:
        raise ImportError(f"TensorRT {version} is installed, {'.'.join(map(str, _LEAST))} is the least")
    return Library("TensorRT", version, trt, _log(trt))


def _rtx() -> Library:
    import_module("tensorrt_rtx_libs")  # loads the library that the bindings are linked to
    trt = import_module("tensorrt_rtx_bindings")
    return Library("TensorRT-RTX", str(trt.__version__), trt, _log(trt))


@cache
def _log(trt: Any) -> Any:
    """Return the one logger that a TensorRT module takes."""

    class Log(trt.ILogger):
        """Faults are told here and nowhere else: they are kept, for the error that follows."""

        def __init__(self) -> None:
            super().__init__()
            self.faults: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING and not any(part in message for part in _NO_MATTER):
                self.faults.append(message)
                del self.faults[:-32]  # a process may run for months
                _LOG.info("TensorRT: %s", message)

    return Log()
