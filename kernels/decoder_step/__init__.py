"""One whole decode step of a token transformer as a native function, for rows that are each as long as they are.

    x[s] = rows[id];  for each branch of each layer:  x = mix(x, branch(norm(mix(x))));  logits = norm(sum_s x[s]) W_head + bias

The branches are those of the neighbouring folders: attention (self and cross), geglu, hyper_connection around each. `decoder_step.h` is the
C interface, bound here with ctypes, so that one library serves every Python; `step.cpp` is the sequence of operations, `lanes.h` all of
them but the quantized products, `products*.cpp` those for each kind of processor, `pool.cpp` the threads.
In: weights by name and shape, float32 or quantized as kernels/quantized_product says, the same caches that the ONNX graph is bound to.
Out: logits. It knows neither bundles nor tokens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import POINTER, Structure, c_char_p, c_float, c_int, c_int32, c_size_t, c_void_p
from functools import cache
from pathlib import Path

import numpy as np

from ..quantized_product.reference import quantize
from .sizes import Sizes

LIBRARY = "libdecoder_step.so"  # on every system: only ctypes opens it
MAX_STREAMS = 16  # kMaxStreams in kernels.h
PATHS = ("portable", "AVX2", "AVX-VNNI", "AVX-512 VNNI")
_STATUS = {1: "a row of the table of embeddings", 2: "a length", 3: "an output projection", 5: "a sequence or a number of rows"}
_NO_MEMORY = 6


class Unavailable(RuntimeError):
    """The native step cannot be used here; the message says why."""


class _Norm(Structure):
    _fields_ = [("gain", c_void_p), ("bias", c_void_p)]


class _Matrix(Structure):
    _fields_ = [("data", c_void_p), ("scales", c_void_p)]


class _Connection(Structure):
    _fields_ = [(name, c_void_p) for name in ("gain", "dynamic", "scale", "offset")]


class _Layer(Structure):
    _fields_ = [
        ("connections", _Connection * 3),
        ("attention_norm", _Norm),
        *((name, _Matrix) for name in ("attention_q", "attention_kv", "attention_out")),
        ("cross_norm", _Norm),
        *((name, _Matrix) for name in ("cross_q", "cross_out")),
        ("feed_norm", _Norm),
        ("feed_in", _Matrix),
        ("inner_norm", _Norm),
        ("feed_out", _Matrix),
    ]


_COUNTS = ("dim", "depth", "heads", "head_dim", "cache_dim", "inner", "streams", "vocabulary", "outputs", "table_rows", "bias_entries")


class _Weights(Structure):
    _fields_ = [
        *((name, c_int32) for name in (*_COUNTS, "value_residual", "bits", "block")),
        ("rows", c_void_p),
        ("bias", c_void_p),
        ("layers", POINTER(_Layer)),
        ("norm", _Norm),
        ("heads_out", POINTER(c_void_p)),
        ("head_bias", c_void_p),
    ]


class _Buffers(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("rows", "sequences", "capacity", "context", "prefix_rows")),
        *((name, c_void_p) for name in ("sequence_ids", "row_ids", "query_coordinates", "lengths", "key_coordinates")),
        *((name, POINTER(c_void_p)) for name in ("keys", "values", "context_keys", "context_values")),
        *((name, c_void_p) for name in ("prefix", "logits")),
    ]


@cache
def library() -> ctypes.CDLL:
    """The native library. Raises Unavailable where it was not built, or does not load."""
    path = Path(__file__).with_name(LIBRARY)
    if not path.is_file():
        raise Unavailable("the native step was not built: installing from source builds it where a C++ compiler is (g++ or clang++)")
    try:
        found = ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"the native step does not load: {error}") from error
    pointer, text = c_void_p, c_char_p
    found.ds_path_name.restype = text
    found.ds_pool_create.restype = found.ds_model_create.restype = found.ds_run_create.restype = pointer
    found.ds_pool_create.argtypes = [c_int, c_size_t]
    found.ds_model_bytes.restype = c_size_t
    found.ds_model_create.argtypes = [pointer, POINTER(_Weights), c_int, text, c_size_t]
    found.ds_run_create.argtypes = [pointer, pointer, POINTER(_Buffers), text, c_size_t]
    found.ds_product.argtypes = [pointer, *[c_int] * 6, pointer, _Matrix, pointer]
    found.ds_read.argtypes, found.ds_read.restype = [pointer, c_int, pointer, c_size_t], c_float
    found.ds_step.argtypes = [pointer, c_int, c_int]
    for name in ("ds_pool_free", "ds_model_free", "ds_run_free", "ds_model_bytes", "ds_model_path"):
        getattr(found, name).argtypes = [pointer]
    return found


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
        index, matrix = PATHS.index(path or paths()[-1]), _Matrix(*(part.ctypes.data for part in parts))
        status = self._library.ds_product(self.handle, index, bits, block, len(x), *w.shape, x.ctypes.data, matrix, y.ctypes.data)
        if status:
            raise ValueError(f"there is no product of {bits} bits in blocks of {block} by {PATHS[index]} here")
        return y

    def read(self, data: np.ndarray) -> float:
        """The sum of a float32 array, by all threads with the widest loads there are: for measuring what memory allows."""
        return self._library.ds_read(self.handle, PATHS.index(paths()[-1]), data.ctypes.data, data.size)


class Model:
    """The packed weights of one transformer; unchanged once made, shared by any number of runs."""

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
            raise _refusal(error.value.decode(), "the native step does not take these weights: ")

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

    def _describe(self) -> _Weights:
        sizes, at = self.sizes, self._address
        layers = (_Layer * sizes.depth)()
        for index, layer in enumerate(layers):
            name = f"layers.{index}"
            for branch in range(3):
                parts = ("norm", "dynamic", "scale", "static")
                layer.connections[branch] = _Connection(*(at(f"{name}.{branch}.connection.{part}") for part in parts))
            for kind, branch in (("attention", "attention"), ("cross", "cross_attention"), ("feed", "feed_forward")):
                setattr(layer, f"{kind}_norm", self._norm(f"{name}.{branch}.norm"))
                for part in ("q", "kv", "in", "out"):
                    if hasattr(layer, f"{kind}_{part}"):
                        setattr(layer, f"{kind}_{part}", self._matrix(f"{name}.{branch}.w_{part}"))
            layer.inner_norm = self._norm(f"{name}.feed_forward.inner_norm")
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
        return _Weights(*counts, at("rows"), at("bias_table"), layers, self._norm("norm"), heads, at("head.bias"))

    def _norm(self, name: str) -> _Norm:
        return _Norm(self._address(f"{name}.gain"), self._address(f"{name}.bias"))

    def _matrix(self, name: str) -> _Matrix:
        quantized = self.sizes.bits != 32
        return _Matrix(self._address(f"{name}.values" if quantized else name), self._address(f"{name}.scales"))

    def _address(self, name: str) -> int | None:
        return self._weights[name].ctypes.data if name in self._weights else None


def _refusal(fault: str, before: str = "") -> Exception:
    return MemoryError(fault) if fault.startswith("not enough memory") else ValueError(before + fault)


class Run:
    """Steps on some sequences' caches: one position of each, or, for a prefill, many of one. All arrays are bound once and kept."""

    def __init__(
        self,
        model: Model,
        *,
        sequence_ids: np.ndarray,
        row_ids: np.ndarray,
        query_coordinates: np.ndarray,
        lengths: np.ndarray,
        key_coordinates: np.ndarray,
        keys: Sequence[np.ndarray],
        values: Sequence[np.ndarray],
        context_keys: Sequence[np.ndarray],
        context_values: Sequence[np.ndarray],
        logits: np.ndarray,
        prefix: np.ndarray | None = None,
    ) -> None:
        """Of B rows and N sequences. int64: sequence_ids, row_ids, query_coordinates, lengths [B], key_coordinates [N, capacity].
        float32: keys, values per layer [N, 1, capacity, D]; context_keys [N, dim_head, C] and context_values [N, C, dim_head] per layer, or
        none; logits [B, V]; prefix [P, dim], whose rows are numbered from the end of the table on. `decoder_step.h` says more."""
        self._model, self._library, self.handle = model, library(), None
        sizes, B, (N, capacity) = model.sizes, len(row_ids), key_coordinates.shape
        C = context_values[0].shape[1] if context_values else 0
        prefix = np.zeros((0, sizes.dim), np.float32) if prefix is None else prefix
        numbers = (sequence_ids, row_ids, query_coordinates, lengths)
        wanted: list[tuple[np.ndarray, type, tuple[int, ...]]] = [(a, np.int64, (B,)) for a in numbers]
        wanted += [(key_coordinates, np.int64, (N, capacity)), (logits, np.float32, (B, sizes.vocabulary))]
        wanted += [(a, np.float32, (N, 1, capacity, sizes.cache_head_size)) for a in (*keys, *values)]
        wanted += [(a, np.float32, (N, sizes.dim_head, C)) for a in context_keys]
        wanted += [(a, np.float32, (N, C, sizes.dim_head)) for a in context_values]
        wanted += [(prefix, np.float32, (len(prefix), sizes.dim))]
        for array, dtype, shape in wanted:
            if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
                raise ValueError(f"the native step needs {np.dtype(dtype)} {list(shape)}, got {array.dtype} {list(array.shape)}")
        if {len(keys), len(values)} != {sizes.depth} or {len(context_keys), len(context_values)} != {sizes.depth * sizes.cross_attention}:
            raise ValueError(f"the native step needs caches and contexts of {sizes.depth} layers, got {len(keys)} and {len(context_keys)}")
        tables = [(c_void_p * len(table))(*(a.ctypes.data for a in table)) for table in (keys, values, context_keys, context_values)]
        places = [a.ctypes.data for a in (*numbers, key_coordinates)]
        buffers = _Buffers(B, N, capacity, C, len(prefix), *places, *tables, prefix.ctypes.data, logits.ctypes.data)
        self._rows = B
        self._keep = (*numbers, key_coordinates, *keys, *values, *context_keys, *context_values, prefix, logits)
        error = ctypes.create_string_buffer(200)
        self.handle = self._library.ds_run_create(model.pool.handle, model.handle, ctypes.byref(buffers), error, len(error))
        if not self.handle:
            raise _refusal(error.value.decode())

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self._library.ds_run_free(self.handle)

    def step(self, head: int | None, rows: int | None = None) -> None:
        """Compute what the arrays hold now for the first `rows` rows, all by default, and the logits of an output projection, if any.

        ValueError when a number points outside its table, MemoryError without memory to begin; nothing is written then.
        """
        status = self._library.ds_step(self.handle, self._rows if rows is None else rows, -1 if head is None else head)
        if status == _NO_MEMORY:
            raise MemoryError("not enough memory for the threads of a step")
        if status:
            raise ValueError(f"the native step was given {_STATUS[status]} that does not exist")


__all__ = ["LIBRARY", "MAX_STREAMS", "PATHS", "Model", "Pool", "Run", "Sizes", "Unavailable", "library", "paths"]
