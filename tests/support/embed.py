"""libmusiclm, built by CMake and called through ctypes, as any host that is not C would call it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_float, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from .shared import shared

SOURCE = Path(__file__).parents[2] / "embed"
ONNXRUNTIME = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
OK, BAD_ARGUMENT, BAD_BUNDLE, NO_RUNTIME, NO_MEMORY, ENDED, TIMEOUT, FAILED = range(8)
BUILT = "MUSICLM_EMBED"  # the variable in which `make embed` says where it has built
TOOLS = ("cmake", "g++")
MISSING = [name for name in TOOLS if shutil.which(name) is None]
if not Path("/usr/include/nlohmann/json.hpp").is_file():
    MISSING.append("nlohmann-json3-dev")


class Part(Structure):
    _fields_ = [("text", c_char_p), ("weight", c_float)]


class Info(Structure):
    _fields_ = [("sample_rate", c_uint32), ("latent_size", c_uint32), ("default_seconds", c_double), ("chunk_seconds", c_double)]


OPTION = ("name", "type", "bounds", "standard", "meaning")


class Option(Structure):
    _fields_ = [(name, c_char_p) for name in OPTION]


SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ml_abi_version": (c_uint32, []),
    "ml_version": (c_char_p, []),
    "ml_status_name": (c_char_p, [c_int]),
    "ml_last_error": (c_char_p, []),
    "ml_options_new": (c_void_p, []),
    "ml_options_free": (None, [c_void_p]),
    "ml_options_set": (c_int, [c_void_p, c_char_p, c_char_p]),
    "ml_model_option": (POINTER(Option), [c_size_t]),
    "ml_stream_option": (POINTER(Option), [c_size_t]),
    "ml_model_open": (c_int, [c_char_p, c_void_p, POINTER(c_void_p)]),
    "ml_model_free": (None, [c_void_p]),
    "ml_model_info": (c_int, [c_void_p, POINTER(Info)]),
    "ml_embed_text": (c_int, [c_void_p, c_char_p, POINTER(c_float)]),
    "ml_stream_start": (c_int, [c_void_p, POINTER(Part), c_size_t, c_void_p, POINTER(c_void_p)]),
    "ml_stream_free": (None, [c_void_p]),
    "ml_stream_read": (c_int, [c_void_p, POINTER(c_float), c_size_t, c_double, POINTER(c_size_t)]),
    "ml_stream_read_rt": (c_size_t, [c_void_p, POINTER(POINTER(c_float)), c_size_t, c_size_t]),
    "ml_stream_rate": (c_uint32, [c_void_p]),
    "ml_stream_buffered": (c_size_t, [c_void_p]),
    "ml_stream_latency": (c_size_t, [c_void_p]),
    "ml_stream_underruns": (c_uint64, [c_void_p]),
    "ml_stream_ended": (c_int, [c_void_p]),
    "ml_stream_set_prompt": (c_int, [c_void_p, POINTER(Part), c_size_t, POINTER(c_double)]),
    "ml_stream_cancel": (None, [c_void_p]),
    "ml_stream_save": (c_int, [c_void_p, c_char_p]),
    "ml_stream_resume": (c_int, [c_void_p, c_char_p, c_double, POINTER(c_void_p)]),
    "ml_generate": (c_int, [c_void_p, POINTER(Part), c_size_t, c_void_p, POINTER(POINTER(c_float)), POINTER(c_size_t)]),
    "ml_free": (None, [c_void_p]),
}


class Refused(Exception):
    """A call ended with another status than ML_OK."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def built() -> Path:
    """Return the folder in which CMake has built the library: `make embed`'s, or else one of this run of the tests."""
    return Path(os.environ[BUILT]) if BUILT in os.environ else shared("embed", lambda folder: build(folder, []))


def build(folder: Path, options: list[str], *targets: str) -> None:
    """Build the library and its tests, or only some of them with what they need. folder: becomes a link to where that is done."""
    made = folder.with_name(f"{folder.stem}-made")  # which is not moved afterwards: what CMake has written names it
    configure = ["cmake", "-S", SOURCE, "-B", made, "-DMUSICLM_TESTS=ON", *options]
    for command in (configure, ["cmake", "--build", made, "-j2", "--target", *(targets or ["all"])]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert not done.returncode, done.stdout[-4000:] + done.stderr[-4000:]
    folder.symlink_to(made)


def load() -> ctypes.CDLL:
    library = ctypes.CDLL(str(built() / "libmusiclm.so"))
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def check(library: ctypes.CDLL, status: int) -> None:
    """Raise Refused unless a call ended well."""
    if status:
        raise Refused(status, library.ml_last_error().decode())


def parts_of(prompt: str | dict[str, float]) -> tuple[Any, int]:
    """Return a prompt as the library takes it."""
    weights = {prompt: 1.0} if isinstance(prompt, str) else prompt
    return (Part * len(weights))(*(Part(text.encode(), weight) for text, weight in weights.items())), len(weights)


class Model:
    """An opened bundle. An option that is None is left to the library."""

    def __init__(self, library: ctypes.CDLL, root: Path, **options: Any) -> None:
        self.library, self.handle = library, c_void_p()
        options = {"onnxruntime": ONNXRUNTIME, "threads": 1} | options
        with Options(library, {name: value for name, value in options.items() if value is not None}) as given:
            check(library, library.ml_model_open(str(root).encode(), given, byref(self.handle)))

    def info(self) -> Info:
        info = Info()
        check(self.library, self.library.ml_model_info(self.handle, byref(info)))
        return info

    def embed_text(self, text: str) -> np.ndarray:
        latent = np.empty(self.info().latent_size, np.float32)
        check(self.library, self.library.ml_embed_text(self.handle, text.encode(), _floats(latent)))
        return latent

    def generate(self, prompt: str | dict[str, float], **options: Any) -> np.ndarray:
        wave, frames = POINTER(c_float)(), c_size_t()
        with Options(self.library, options) as given:
            check(self.library, self.library.ml_generate(self.handle, *parts_of(prompt), given, byref(wave), byref(frames)))
        copy = np.ctypeslib.as_array(wave, (frames.value,)).copy() if frames.value else np.zeros(0, np.float32)
        self.library.ml_free(wave)
        return copy

    def stream(self, prompt: str | dict[str, float], **options: Any) -> Stream:
        handle = c_void_p()
        with Options(self.library, options) as given:
            check(self.library, self.library.ml_stream_start(self.handle, *parts_of(prompt), given, byref(handle)))
        return Stream(self.library, handle)

    def resume(self, path: Path, start_s: float) -> Stream:
        handle = c_void_p()
        check(self.library, self.library.ml_stream_resume(self.handle, str(path).encode(), start_s, byref(handle)))
        return Stream(self.library, handle)

    def close(self) -> None:
        self.library.ml_model_free(self.handle)
        self.handle = c_void_p()


class Stream:
    """A clip as it is made."""

    def __init__(self, library: ctypes.CDLL, handle: c_void_p) -> None:
        self.library, self.handle = library, handle

    def read(self, frames: int, timeout: float = -1.0) -> np.ndarray:
        """Return the next frames, fewer at the end. Raises Refused at the end."""
        out, got = np.empty(frames, np.float32), c_size_t()
        check(self.library, self.library.ml_stream_read(self.handle, _floats(out), frames, timeout, byref(got)))
        return out[: got.value]

    def rest(self, frames: int = 1000) -> np.ndarray:
        """Return all that is still to be read, read in pieces."""
        pieces = []
        while True:
            try:
                pieces.append(self.read(frames))
            except Refused as end:
                if end.status != ENDED:
                    raise
                return np.concatenate([np.zeros(0, np.float32), *pieces])

    def read_now(self, frames: int, channels: int = 2) -> tuple[np.ndarray, int]:
        """Return what an audio thread gets, float32 [channels, frames], and how much of it is music."""
        out = np.full((channels, frames), np.nan, np.float32)
        pointers = (POINTER(c_float) * channels)(*(_floats(row) for row in out))
        return out, self.library.ml_stream_read_rt(self.handle, pointers, channels, frames)

    def set_prompt(self, prompt: str | dict[str, float]) -> float:
        heard = c_double()
        check(self.library, self.library.ml_stream_set_prompt(self.handle, *parts_of(prompt), byref(heard)))
        return heard.value

    def save(self, path: Path) -> None:
        check(self.library, self.library.ml_stream_save(self.handle, str(path).encode()))

    def cancel(self) -> None:
        self.library.ml_stream_cancel(self.handle)

    @property
    def ended(self) -> bool:
        return bool(self.library.ml_stream_ended(self.handle))

    @property
    def buffered(self) -> int:
        return self.library.ml_stream_buffered(self.handle)

    @property
    def underruns(self) -> int:
        return self.library.ml_stream_underruns(self.handle)

    def close(self) -> None:
        self.library.ml_stream_free(self.handle)
        self.handle = c_void_p()


class Options:
    """Options as the library takes them, for one call."""

    def __init__(self, library: ctypes.CDLL, options: dict[str, Any]) -> None:
        self.library, self.options = library, options

    def __enter__(self) -> c_void_p:
        self.handle = c_void_p(self.library.ml_options_new())
        for name, value in self.options.items():
            check(self.library, self.library.ml_options_set(self.handle, name.replace("__", ".").encode(), str(value).encode()))
        return self.handle

    def __exit__(self, *_: object) -> None:
        self.library.ml_options_free(self.handle)


def _floats(array: np.ndarray) -> Any:
    return array.ctypes.data_as(POINTER(c_float))
