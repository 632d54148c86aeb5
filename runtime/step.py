"""Which form a decode step takes: the native function of kernels/decoder_step, or the ONNX graph. Decided here, and here alone.

In: what the caller asked for, a bundle's files. Out: the form with its reason, and the native models with weights read from the bundle.
A form that was named and cannot be had is an error; only "auto" chooses.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..kernels import decoder_step
from ..kernels.decoder_step.sizes import Sizes
from .backend import BackendError, available_processors
from .bundle import BundleError, Decoder
from .shortage import naming_shortage

STEPS = ("auto", "native", "graph")
_BITS = {"fp32": 32, "int8": 8, "int4": 4}
_TYPES = {"float32": np.float32, "uint8": np.uint8}


@dataclass(frozen=True)
class Choice:
    """native: whether the steps run in kernels/decoder_step; reason: in words, for people."""

    native: bool
    reason: str


def choose_step(step: str, decoders: Sequence[Decoder] = ()) -> Choice:
    """The form of a step for what the caller asked, of these decoders."""
    if step not in STEPS:
        raise BackendError(f"step must be one of {', '.join(STEPS)}, got {step!r}.")
    if step == "graph":
        return Choice(False, "asked for")
    try:
        path = decoder_step.paths()[-1]
        streams = max((decoder.step.streams for decoder in decoders), default=1)
        if streams > decoder_step.MAX_STREAMS:
            raise decoder_step.Unavailable(f"the native step covers {decoder_step.MAX_STREAMS} residual streams, the model has {streams}")
        return Choice(True, path)
    except decoder_step.Unavailable as error:
        if step == "native":
            raise BackendError(f"step='native': {error}.") from error
        return Choice(False, str(error))


def open_pool(threads: int | None) -> decoder_step.Pool:
    """Threads for all native models of one loaded bundle; `threads` None takes one per processor that this process may use."""
    threads = available_processors() if threads is None else threads
    try:
        return decoder_step.Pool(threads)
    except decoder_step.Unavailable as error:
        raise BackendError(f"{error}. Ask for fewer.") from error


def open_native(folder: Path, decoder: Decoder, pool: decoder_step.Pool, path: str | None = None) -> decoder_step.Model:
    """The native model of a stage of the bundle in `folder`. BundleError for weights that the file does not have.

    path: one of `decoder_step.paths()`, the best by default.
    """
    data = folder / f"{decoder.graph}.data"
    try:
        mapped, sizes, weights = open_weights(folder, decoder)
        with naming_shortage(f"while the weights of {decoder.graph} were packed", data.stat().st_size):
            model = decoder_step.Model(pool, sizes, weights, path)
    except ValueError as error:
        raise BundleError(f"{data}: {error}") from error
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)  # what was packed is not read again; tables and norms come back when they are used
    return model


def open_weights(folder: Path, decoder: Decoder) -> tuple[mmap.mmap, Sizes, dict[str, np.ndarray]]:
    """A stage's weights by the names of `Sizes.shapes()`, views of the file, of which nothing is read yet. BundleError as `open_native`."""
    data, step = folder / f"{decoder.graph}.data", decoder.step
    if step.precision not in _BITS:
        raise BundleError(f"{decoder.graph}: precision {step.precision!r}, expected one of {', '.join(_BITS)}: update musiclm-deploy")
    try:
        with data.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        weights = _weights(mapped, step.weights)
        if decoder.depth > len(weights):
            raise ValueError(f"{len(weights)} weights are too few for {decoder.depth} layers")
    except (OSError, ValueError) as error:
        raise BundleError(f"{data}: {error}") from error
    sizes = Sizes(
        dim=decoder.dim,
        depth=decoder.depth,
        heads=decoder.heads,
        dim_head=step.dim_head,
        cache_head_size=decoder.cache_head_size,
        inner=step.inner,
        streams=step.streams,
        vocabulary=decoder.vocabulary,
        outputs=sum(name.startswith("head.") and name.endswith(".weight") for name in weights),
        table_rows=len(weights["rows"]) if "rows" in weights else 1,
        bias_entries=decoder.bias.entries if decoder.bias else 0,
        value_residual=step.value_residual,
        cross_attention=decoder.conditioning == "cross_attention",
        normalised_attention=step.normalised_attention,
        convolution=step.convolution,
        positions=step.positions or 0,
        bits=_BITS[step.precision],
        block=step.block,
    )
    return mapped, sizes, weights


def _weights(data: mmap.mmap, places: dict[str, list]) -> dict[str, np.ndarray]:
    """The weights of a graph, where they lie in its data. ValueError for one that lies outside."""
    mapped, weights = np.frombuffer(data, np.uint8), {}
    for name, place in places.items():
        numbers = place[1:]
        if not numbers or place[0] not in list(_TYPES) or not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError(f"the weight {name!r} has the place {place}, expected a type, a byte offset and dimensions")
        dtype, (offset, *shape) = np.dtype(_TYPES[place[0]]), numbers
        end = offset + dtype.itemsize * math.prod(shape)
        if offset % dtype.itemsize or end > len(mapped):
            raise ValueError(f"the weight {name!r} would lie at bytes {offset} to {end} of {len(mapped)}")
        weights[name] = mapped[offset:end].view(dtype).reshape(shape)
    return weights
