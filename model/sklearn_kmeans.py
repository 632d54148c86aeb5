"""Cluster centres out of a k-means model that scikit-learn fitted and joblib, or pickle, wrote, or as numpy.save writes them alone; nothing
in the file is executed.

In: a path. Out: centres float32 [K, F]. The file is a pickle, which could name any function to call. Here a name on the list below becomes
an inert stand-in, arrays are cut out of the bytes by hand, and every other name is refused. It does not know what was clustered.
"""

import bz2
import io
import lzma
import os
import pickle
import re
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..runtime.user_files import expanded
from .archive import ZIP

_MAX_BYTES = 1 << 28  # unpacked; 500 centres of HuBERT's 768 features are 1.5 MB, and a label per frame of 300 hours 216 MB
_AGAIN = "Save cluster_centers_ again with joblib.dump of the fitted KMeans or MiniBatchKMeans."
# Parts of such a model that play no role here: the estimator itself, its random state, its scalars.
_INERT = re.compile(
    r"sklearn\.cluster\.(_kmeans|k_means_)\.(MiniBatchKMeans|KMeans)|sklearn\.utils\._bunch\.Bunch"
    r"|numpy\.random\.(_pickle\.|mtrand\.|_mt19937\.)?(__randomstate_ctor|__bit_generator_ctor|__RandomState_ctor|RandomState|MT19937)"
    r"|numpy\.(_core|core)\.multiarray\.scalar|numpy\.(ndarray|float32|float64|int32|int64)"
)


class _Inert:
    """Takes whatever it is built with; keeps the state it is given."""

    state: Any = None

    def __new__(cls, *args: Any) -> "_Inert":
        made = super().__new__(cls)
        made.args = args
        return made

    def __init__(self, *args: Any) -> None:
        self.args = args


class _Dtype(_Inert):
    """numpy.dtype(code, ...), whose byte order comes as its state."""

    def real(self) -> np.dtype:
        code = self.args[0] if self.args else None
        if not isinstance(code, str) or not re.fullmatch(r"[fiu][1248]|b1", code):
            raise ValueError("an array of what is no number")  # without the type: a text of it may be of any length
        order = self.state[1] if isinstance(self.state, tuple) and len(self.state) > 1 else "="
        return np.dtype(code).newbyteorder(order if order in ("<", ">") else "=")


class _Array(_Inert):
    """numpy's own pickled array: its state is (version, shape, dtype, Fortran order, bytes)."""


class _JoblibArray(_Inert):
    """joblib's: its state describes the array, whose bytes follow in the file outside the pickle."""


class _Latin1(_Inert):
    """Bytes as protocol 2 has them: a text of as many characters."""

    def __new__(cls, text: str, encoding: str) -> Any:
        return text.encode("latin-1") if encoding == "latin1" else super().__new__(cls)


class _Buffer(_Inert):
    """numpy's array of protocol 5: its bytes, type, shape and order as arguments."""

    def __new__(cls, data: bytes | bytearray, dtype: _Dtype, shape: Any, order: str) -> Any:
        return _array(bytes(data), dtype, shape, order == "F")


_STAND_INS = {
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.core.numeric._frombuffer": _Buffer,
    "numpy._core.numeric._frombuffer": _Buffer,
    "joblib.numpy_pickle.NumpyArrayWrapper": _JoblibArray,
    "_codecs.encode": _Latin1,
}


class _Unpickler(pickle._Unpickler):  # pyright: ignore[reportAttributeAccessIssue]
    """The unpickler written in Python: joblib puts arrays between opcodes, where the one written in C has read ahead.

    On its stack are plain data, stand-in classes and their instances, so that no opcode finds anything else to call.
    """

    dispatch = pickle._Unpickler.dispatch.copy()  # pyright: ignore[reportAttributeAccessIssue]

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)
        super().__init__(self._file)

    def find_class(self, module_name: str, global_name: str) -> type[_Inert]:
        name = f"{module_name}.{global_name}"
        if name in _STAND_INS:
            return _STAND_INS[name]
        if _INERT.fullmatch(name):
            return _Inert
        raise _Refused(f"it names {name}, which is no part of a k-means model and could run code")

    def load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]  # pyright: ignore[reportAttributeAccessIssue]
        if not isinstance(made, _Inert):
            raise ValueError("a state for something that has none")
        made.state = state
        if isinstance(made, _Array):
            _, shape, dtype, fortran, data = state
            self.stack[-1] = _array(data, dtype, shape, fortran)  # pyright: ignore[reportAttributeAccessIssue]
        elif isinstance(made, _JoblibArray):
            if state.get("numpy_array_alignment_bytes") is not None:  # joblib 1.2 and later
                self._file.read(self._file.read(1)[0])
            dtype, shape = state["dtype"].real(), state["shape"]
            data = self._file.read(_count(shape) * dtype.itemsize)
            self.stack[-1] = _array(data, state["dtype"], shape, state["order"] == "F")  # pyright: ignore[reportAttributeAccessIssue]

    dispatch[pickle.BUILD[0]] = load_build  # pyright: ignore[reportArgumentType]

    def get_extension(self, code: int) -> None:
        raise _Refused("it refers to a registry of this process")


class _Refused(ValueError):
    """The file is not damaged but must not be used."""


def read_cluster_centers(path: str | os.PathLike) -> Tensor:
    """The `cluster_centers_` of a `KMeans` or `MiniBatchKMeans`, float32 [K, F]; joblib may have compressed it with all but lz4. Or an
    array [K, F] of numpy.save.

    Raises ValueError, which says why, for everything else.
    """
    path = expanded(path)
    if not os.path.isfile(path):  # unlike Path's own it says no of a name that no file can have
        raise ValueError(f"{path}: there is no such file.")
    try:
        data = _unpacked(path.read_bytes())
        if data.startswith(np.lib.format.MAGIC_PREFIX):
            centres = _saved_array(data)
        else:
            model = _Unpickler(data).load()
            if not isinstance(model, _Inert) or not isinstance(model.state, dict):
                raise _Refused(f"it holds a {type(model).__name__}")
            centres = model.state.get("cluster_centers_")
        if not isinstance(centres, np.ndarray) or centres.ndim != 2 or centres.dtype.kind != "f" or 0 in centres.shape:
            raise _Refused("it has no cluster_centers_ [K, F]; was it fitted?")
        with np.errstate(over="ignore"):
            centres = np.array(centres, np.float32, order="C")
        if not np.isfinite(centres).all():
            raise _Refused("its cluster_centers_ hold NaN, infinite or, for float32, too large values")
    except _Refused as error:
        raise ValueError(f"{path}: not a k-means model that can be used: {error}. {_AGAIN}") from error
    except MemoryError as error:
        raise ValueError(f"{path}: cannot be read (MemoryError).") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f"{path}: not a file of joblib or pickle, or a damaged one ({error}). Was it copied whole?") from error
    return torch.from_numpy(centres)


def _unpacked(data: bytes) -> bytes:
    if data[:1] == b"\x78" or data[:2] == b"\x1f\x8b":
        unpack = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress  # 32: zlib or gzip, whichever it is
    elif data[:3] == b"BZh":
        unpack = bz2.BZ2Decompressor().decompress
    elif data[:6] == b"\xfd7zXZ\x00" or data[:3] == b"\x5d\x00\x00":
        unpack = lzma.LZMADecompressor().decompress
    elif data[:4] == b"\x04\x22\x4d\x18" or data[:2] == b"ZF":
        raise _Refused("it is compressed with lz4, or by joblib before 0.10")
    elif data.startswith(ZIP):
        raise _Refused("it is a zip archive, as torch.save and numpy.savez write one")
    else:
        return data
    found = unpack(data, _MAX_BYTES)
    if len(found) == _MAX_BYTES:
        raise _Refused(f"it unpacks to {_MAX_BYTES} bytes or more")
    return found


def _saved_array(data: bytes) -> np.ndarray:
    """Of numpy.save. Its own reader makes room for whatever shape the header claims."""
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("a format of numpy that only names of fields beyond ASCII need")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject or _count(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError("an array that is shorter or longer than its shape")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")


def _count(shape: Any) -> int:
    if not isinstance(shape, tuple) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError("an array without a shape")
    count = 1
    for size in shape:
        count *= size
    return count


def _array(data: Any, dtype: Any, shape: Any, fortran: bool) -> np.ndarray:
    real = dtype.real()
    if not isinstance(data, bytes) or len(data) != _count(shape) * real.itemsize:
        raise ValueError("an array that is shorter or longer than its shape")
    return np.frombuffer(data, real).reshape(shape, order="F" if fortran else "C")
