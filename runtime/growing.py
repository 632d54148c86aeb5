"""A wav that grows while its music is made: valid after every chunk, in a file or on a pipe.

In: chunks of float32 [t], a record of how they are made. Out: a file that a player can open at any time and follow, or bytes to a pipe,
whose lengths are 0xFFFFFFFF ("until the end") as it cannot be gone back in.
"""

from __future__ import annotations

import hashlib
import json
import logging
import struct
from collections.abc import Mapping
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .outputs import is_stream, named_errors, write_all
from .user_files import escape_surrogates

_LOG = logging.getLogger(__name__)
_UNKNOWN = 0xFFFFFFFF
_NO_HASH = "0" * 64


class GrowingWav:
    """A mono wav of 16 bits that chunks are appended to."""

    def __init__(self, where: Path | BinaryIO | RawIOBase, sample_hz: int, record: Mapping[str, Any]) -> None:
        """where: a path, whose file is replaced when the first chunk comes, or a stream. record: of how the music is made, for the comment.

        Raises OSError for a path that cannot be written.
        """
        self._where, self._hz, self._record = where, sample_hz, dict(record)
        self._file: BinaryIO | RawIOBase | None = None
        self._samples, self._beyond, self._sha256 = 0, 0, hashlib.sha256()
        self._fixed = not isinstance(where, Path) or is_stream(where)  # a pipe takes bytes in order alone

    @property
    def seconds(self) -> float:
        """Seconds written so far."""
        return self._samples / self._hz

    def append(self, audio: np.ndarray) -> None:
        """Write float32 [t]. Samples beyond full scale are cut off, since what was written before cannot be scaled down."""
        with named_errors(str(self._where)):
            if self._file is None:
                self._file = self._where.open("wb", buffering=0) if isinstance(self._where, Path) else self._where
                write_all(self._file, self._header(_UNKNOWN if self._fixed else 0))
            self._beyond += int(np.count_nonzero(np.abs(audio) > 1))
            self._sha256.update(np.ascontiguousarray(audio, "<f4").tobytes())
            write_all(self._file, sixteen_bits(audio).tobytes())
            self._samples += len(audio)
            if not self._fixed:
                self._rewrite_header()

    def close(self) -> None:
        """End the file. A file that nothing was appended to was never opened, and is as it was."""
        if self._beyond:
            _LOG.warning("%d samples were beyond full scale and were cut off: a stream cannot be scaled down as a whole.", self._beyond)
        if self._file is not None and isinstance(self._where, Path):
            with named_errors(str(self._where)):
                self._file.close()

    def _rewrite_header(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        write_all(self._file, self._header(2 * self._samples))
        self._file.seek(0, 2)

    def _header(self, size: int) -> bytes:
        """Return everything before the samples; as long whatever the size and the hash of the samples."""
        known = self._samples and not self._fixed
        comment = stream_comment(self._record, self._hz, self._sha256.hexdigest() if known else _NO_HASH).encode() + b"\0"
        comment += b"\0" * (len(comment) % 2)
        info = b"INFO" + struct.pack("<4sI", b"ICMT", len(comment)) + comment
        form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, self._hz, 2 * self._hz, 2, 16)
        parts = form + struct.pack("<4sI", b"LIST", len(info)) + info + struct.pack("<4sI", b"data", size)
        whole = _UNKNOWN if size == _UNKNOWN else min(4 + len(parts) + size, _UNKNOWN)
        return struct.pack("<4sI4s", b"RIFF", whole, b"WAVE") + parts


def stream_comment(record: Mapping[str, Any], sample_hz: int, audio_sha256: str = _NO_HASH) -> str:
    """Return the comment of a file that is written while its music is made, as JSON; as long whatever the hash of the samples."""
    own = {"audio_sha256": audio_sha256, "candidate": 0, "best": 0, "sample_rate": sample_hz, "normalize": None}
    return escape_surrogates(json.dumps({**record, **own}, ensure_ascii=False))


def sixteen_bits(audio: np.ndarray) -> np.ndarray:
    """Return the samples that libsndfile makes of float32, so that a streamed file has the samples of one written as a whole."""
    wide = np.rint(audio.astype(np.float32) * np.float32(2**31)).astype(np.float64)
    return (np.clip(wide, -(2**31), 2**31 - 1).astype(np.int64) >> 16).astype("<i2")
