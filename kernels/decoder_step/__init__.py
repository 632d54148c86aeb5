"""Decoding with a token transformer in C++: whole steps for rows that are each as long as they are, sampling, and the loop around them.

    x[s] = rows[id];  for each branch of each layer:  x = mix(x, branch(norm(mix(x))));  logits = norm(sum_s x[s]) W_head + bias

The branches are those of the neighbouring folders: attention (self and cross), geglu, hyper_connection around each. A model may have more:
normalised queries and keys, a convolution of three positions before the GEGLU, absolute positions.

`decoder_step.h` is the C interface, bound in `interface.py` with ctypes, so that one library serves every Python. `batch.cpp` decides which
rows a step has, `step.cpp` is the sequence of operations, `lanes.h` all of them but the quantized products, `products*.cpp` those for each
kind of processor, `sampler.cpp` makes a token of logits, `slot.cpp` and `sequence.cpp` hold the caches and what is drawn, `pool.cpp` the
threads.
In: weights by name and shape, float32 or quantized as kernels/quantized_product says; sequences, see `slots.py`. Out: tokens. Bundles,
stages and windows are not known here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import c_void_p

import numpy as np

from ..quantized_product.reference import quantize
from .interface import LIBRARY, Connection, Layer, Matrix, Norm, Unavailable, Weights, library, refusal
from .sizes import Sizes

MAX_STREAMS = 16  # kMaxStreams in kernels.h
PATHS = ("portable", "AVX2", "AVX-VNNI", "AVX-512 VNNI")


def paths() -> list[str]:
    """The forms of the code that this processor runs, the best last."""
    found = library().ds_paths()
    return [name for index, name in enumerate(PATHS) if found >> index & 1]


class Pool:
    """Threads, shared by any number of models; they sleep when there is nothing to do."""

    def __init__(self, threads: int, least_bytes: int = 4 << 20) -> None:
        """least_bytes: of weights, times rows; a step that reads fewer is run by its caller alone, since its barriers would take longer."""
        self.threads, self._library = threads, library()
        self.handle = self._library.ds_pool_create(threads, least_bytes)
        if not self.handle:
            raise Unavailable(f"the native step could not start {threads} threads")

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self._library.ds_pool_free(self.handle)

    def product(self, x: np.ndarray, w: np.ndarray, bits: int, block: int = 32, path: str | None = None) -> np.ndarray:
        """x float32 [B, inputs] @ w float32 [inputs, outputs] as a step computes it with weights of 32, 8 or 4 bits: for tests."""
        x, w = np.ascontiguousarray(x, np.float32), np.ascontiguousarray(w, np.float32)
        parts = (w,) if bits == 32 else quantize(w, bits, block)
        y = np.empty((len(x), w.shape[1]), np.float32)
        index, matrix = PATHS.index(path or paths()[-1]), Matrix(*(part.ctypes.data for part in parts))
        status = self._library.ds_product(self.handle, index, bits, block, len(x), *w.shape, x.ctypes.data, matrix, y.ctypes.data)
        if status:
            raise ValueError(f"there is no product of {bits} bits in blocks of {block} by {PATHS[index]} here")
        return y

    def read(self, data: np.ndarray) -> float:
        """The sum of a float32 array, by all threads with the widest loads there are: for measuring what memory allows."""
        return self._library.ds_read(self.handle, PATHS.index(paths()[-1]), data.ctypes.data, data.size)


class Model:
    """The packed weights of one transformer; unchanged once made, shared by any number of batches."""

    def __init__(self, pool: Pool, sizes: Sizes, weights: Mapping[str, np.ndarray], path: str | None = None) -> None:
        """weights: arrays by the names and shapes of `sizes.shapes()`, and `<norm>.bias`, `head.bias` where there are any.

        path: one of `paths()`, the best by default. ValueError names what is missing or misshapen.
        """
        self.pool, self.sizes, self._library = pool, sizes, library()
        self.handle = None
        self._weights = sizes.checked(weights)
        self._keep: list[object] = []
        error = ctypes.create_string_buffer(200)
        described = self._describe()
        index = -1 if path is None else PATHS.index(path)
        self.handle = self._library.ds_model_create(pool.handle, ctypes.byref(described), index, error, len(error))
        self._keep.clear()  # the structures; the arrays stay
        if not self.handle:
            raise refusal(error.value.decode(), "the native step does not take these weights: ")

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self._library.ds_model_free(self.handle)

    @property
    def path(self) -> str:
        return PATHS[self._library.ds_model_path(self.handle)]

    @property
    def bytes_read(self) -> int:
        """Bytes of packed weights that a step reads."""
        return self._library.ds_model_bytes(self.handle)

    def slot_bytes(self, positions: int, context: int, prefix: int) -> int:
        """Return the bytes of a slot with caches of so many positions: a sequence has one, and if guided a second, without prefix.

        context: keys of the cross-attention; prefix: positions of a conditioning prefix.
        """
        return self._library.ds_slot_bytes(self.handle, positions, context, prefix)

    def scratch_bytes(self, rows: int, positions: int, context: int) -> int:
        """Return the bytes of scratch of a batch whose steps have so many rows, with caches of so many positions.

        rows: slots, or positions of prompts, of which 64 are computed at a time, whichever are more.
        """
        return self._library.ds_scratch_bytes(self.pool.handle, self.handle, rows, positions, context)

    def _describe(self) -> Weights:
        sizes, at = self.sizes, self._address
        layers = (Layer * sizes.depth)()
        for index, layer in enumerate(layers):
            name = f"layers.{index}"
            for branch in range(3):
                parts = ("norm", "dynamic", "scale", "static")
                layer.connections[branch] = Connection(*(at(f"{name}.{branch}.connection.{part}") for part in parts))
            for kind, branch in (("attention", "attention"), ("cross", "cross_attention"), ("feed", "feed_forward")):
                setattr(layer, f"{kind}_norm", self._norm(f"{name}.{branch}.norm"))
                for part in ("q", "kv", "in", "out"):
                    if hasattr(layer, f"{kind}_{part}"):
                        setattr(layer, f"{kind}_{part}", self._matrix(f"{name}.{branch}.w_{part}"))
            layer.inner_norm = self._norm(f"{name}.feed_forward.inner_norm")
            layer.key_scale, layer.taps = at(f"{name}.attention.key_scale"), at(f"{name}.feed_forward.taps")
        heads = (c_void_p * sizes.outputs)(*(at(f"head.{q}.weight") for q in range(sizes.outputs)))
        self._keep += [layers, heads]
        counts = (sizes.dim, sizes.depth, sizes.heads, sizes.dim_head, sizes.cache_head_size, sizes.inner, sizes.streams)
        counts += (
            sizes.vocabulary,
            sizes.outputs,
            sizes.table_rows,
            sizes.bias_entries,
            int(sizes.value_residual),
            sizes.bits,
            sizes.block,
        )
        added = (int(sizes.normalised_attention), int(sizes.convolution), sizes.positions)
        return Weights(*counts, at("rows"), at("bias_table"), layers, self._norm("norm"), heads, at("head.bias"), *added, at("positions"))

    def _norm(self, name: str) -> Norm:
        return Norm(self._address(f"{name}.gain"), self._address(f"{name}.bias"))

    def _matrix(self, name: str) -> Matrix:
        quantized = self.sizes.bits != 32
        return Matrix(self._address(f"{name}.values" if quantized else name), self._address(f"{name}.scales"))

    def _address(self, name: str) -> int | None:
        return self._weights[name].ctypes.data if name in self._weights else None


__all__ = ["LIBRARY", "MAX_STREAMS", "PATHS", "Model", "Pool", "Sizes", "Unavailable", "library", "paths"]
