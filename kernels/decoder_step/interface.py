"""The C interface of the native step (`decoder_step.h`) in ctypes: its structures, its functions, and how it says what is wrong."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path

RULES = 12  # integers of ds_rules
LIBRARY = "libdecoder_step.so"  # on every system: only ctypes opens it


class Unavailable(RuntimeError):
    """The native step cannot be used here; the message says why."""


class Norm(Structure):
    _fields_ = [("gain", c_void_p), ("bias", c_void_p)]


class Matrix(Structure):
    _fields_ = [("data", c_void_p), ("scales", c_void_p)]


class Connection(Structure):
    _fields_ = [(name, c_void_p) for name in ("gain", "dynamic", "scale", "offset")]


class Layer(Structure):
    _fields_ = [
        ("connections", Connection * 3),
        ("attention_norm", Norm),
        *((name, Matrix) for name in ("attention_q", "attention_kv", "attention_out")),
        ("cross_norm", Norm),
        *((name, Matrix) for name in ("cross_q", "cross_out")),
        ("feed_norm", Norm),
        ("feed_in", Matrix),
        ("inner_norm", Norm),
        ("feed_out", Matrix),
        *((name, c_void_p) for name in ("key_scale", "taps")),
    ]


_COUNTS = ("dim", "depth", "heads", "head_dim", "cache_dim", "inner", "streams", "vocabulary", "outputs", "table_rows", "bias_entries")


class Weights(Structure):
    _fields_ = [
        *((name, c_int32) for name in (*_COUNTS, "value_residual", "bits", "block")),
        ("rows", c_void_p),
        ("bias", c_void_p),
        ("layers", POINTER(Layer)),
        ("norm", Norm),
        ("heads_out", POINTER(c_void_p)),
        ("head_bias", c_void_p),
        *((name, c_int32) for name in ("normalised", "convolution", "positions")),
        ("positions_table", c_void_p),
    ]


class Sequence(Structure):
    _fields_ = [
        ("positions", c_int64),
        *((name, c_void_p) for name in ("ids", "query_coordinates", "key_coordinates")),
        ("context", c_int64),
        *((name, POINTER(c_void_p)) for name in ("context_keys", "context_values")),
        ("prefix_positions", c_int64),
        ("prefix", c_void_p),
        ("guided", c_int32),
        ("rules", c_int64 * RULES),
        *((name, c_int64) for name in ("known", "in_frames", "steps")),
        ("seed", c_uint64),
        *((name, c_int64) for name in ("item", "first")),
        *((name, c_float) for name in ("temperature", "scale")),
        ("position_ids", c_void_p),
    ]


@cache
def library() -> ctypes.CDLL:
    """Return the native library. Raises Unavailable where it was not built, or does not load."""
    path = Path(__file__).with_name(LIBRARY)
    if not path.is_file():
        raise Unavailable("the native step was not built: installing from source builds it where a C++ compiler is (g++ or clang++)")
    try:
        found = ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"the native step does not load: {error}") from error
    pointer, text, number = c_void_p, c_char_p, c_int64
    functions = {
        "ds_path_name": (text, [c_int]),
        "ds_pool_create": (pointer, [c_int, c_size_t]),
        "ds_pool_free": (None, [pointer]),
        "ds_model_create": (pointer, [pointer, POINTER(Weights), c_int, text, c_size_t]),
        "ds_model_bytes": (c_size_t, [pointer]),
        "ds_model_path": (c_int, [pointer]),
        "ds_model_free": (None, [pointer]),
        "ds_product": (c_int, [pointer, *[c_int] * 6, pointer, Matrix, pointer]),
        "ds_read": (c_float, [pointer, c_int, pointer, c_size_t]),
        "ds_sample": (number, [pointer, pointer, c_int, POINTER(Sequence), c_int, c_uint32, pointer]),
        "ds_batch_create": (pointer, [pointer, pointer]),
        "ds_batch_free": (None, [pointer]),
        "ds_batch_join": (number, [pointer, POINTER(Sequence), text, c_size_t]),
        "ds_batch_advance": (c_int, [pointer, number, number]),
        "ds_batch_interrupt": (None, [pointer]),
        "ds_batch_waiting": (number, [pointer]),
        "ds_batch_computed": (number, [pointer]),
        "ds_batch_collect": (number, [pointer, number, pointer, number, POINTER(c_int)]),
        "ds_batch_leave": (c_int, [pointer, number]),
        "ds_batch_noise": (c_int, [pointer, number, pointer]),
        "ds_batch_sampled": (number, [pointer, number]),
        "ds_batch_logits": (c_int, [pointer, number, pointer]),
        "ds_slot_bytes": (c_size_t, [pointer, number, number, number]),
        "ds_scratch_bytes": (c_size_t, [pointer, pointer, number, number, number]),
    }
    for name, (result, arguments) in functions.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


def refusal(fault: str, before: str = "") -> Exception:
    """Return the error for what a function of the library wrote."""
    return MemoryError(fault) if fault.startswith("not enough memory") else ValueError(before + fault)
