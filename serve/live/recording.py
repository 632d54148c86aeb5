"""Recordings of live sessions, kept as files."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.growing import sixteen_bits
from ...runtime.mastering import Mastering
from ...runtime.sound_files import FORMATS, encode
from ...runtime.user_files import escape_surrogates
from ..errors import Refusal
from ..formats import FORMATS_SERVED, Format
from .messages import Recorded


class Recording:
    """Samples from one number on, as 16 bits, until there are as many as a file may have."""

    def __init__(self, form: str, rate: int, settings: Mapping[str, Any], first: int, most_s: float) -> None:
        """settings: how the music is made, for the file's comment; first: the number of the first sample."""
        self._form, self._rate, self._settings, self.first = FORMATS_SERVED[form], rate, dict(settings), first
        self._most, self._parts, self.samples = round(most_s * rate), list[np.ndarray](), 0

    @property
    def next(self) -> int:
        """The number of the sample that is to be added next."""
        return self.first + self.samples

    @property
    def full(self) -> bool:
        return self.samples >= self._most

    def add(self, audio: np.ndarray) -> None:
        """Add the samples that follow, float32 [t], as many as there is room for."""
        part = sixteen_bits(audio[: self._most - self.samples])
        self._parts.append(part)
        self.samples += len(part)

    def encoded(self, stop: int) -> tuple[bytes, str, float]:
        """Return the file of the samples before a number, the SHA-256 of these, and their seconds. Raises Refusal if there are none."""
        pcm = np.concatenate([np.zeros(0, "<i2"), *self._parts])[: max(stop - self.first, 0)]
        if not len(pcm):
            raise Refusal(400, "the recording has no samples yet.", "to_sample", "invalid_value")
        suffix = f".{self._form.name}"
        path, rate = Path(f"recording{suffix}"), self._form.rate(self._rate)
        wave, rate = Mastering(rate, None).apply(path, pcm.astype(np.float32) / np.float32(32768), self._rate)
        comment = escape_surrogates(json.dumps({**self._settings, "sample_rate": rate, "first_sample": self.first}, ensure_ascii=False))
        data = bytes(encode(path, FORMATS[suffix], wave, rate, comment))
        return data, hashlib.sha256(pcm.tobytes()).hexdigest(), len(pcm) / self._rate

    @property
    def form(self) -> Format:
        return self._form


@dataclass
class Stored:
    """A file that can be fetched."""

    owner: str
    form: Format
    data: bytes
    made: float = field(default_factory=time.time)


class Recordings:
    """The files of a server, the oldest of which go first."""

    def __init__(self, most_bytes: int, keep_s: float) -> None:
        self._most_bytes, self._keep_s = most_bytes, keep_s
        self._files: dict[str, Stored] = {}

    def add(self, owner: str, recording: Recording, stop: int) -> Recorded:
        """Encode a recording and keep it. Return the message that says where it is. Raises Refusal for one without samples."""
        data, sha256, seconds = recording.encoded(stop)
        name = f"rec_{secrets.token_hex(12)}"
        self._files[name] = Stored(owner, recording.form, data)
        self._sweep()
        return Recorded(
            url=f"/v1/live/recordings/{name}",
            format=recording.form.name,
            from_sample=recording.first,
            seconds=round(seconds, 6),
            pcm_sha256=sha256,
        )

    def get(self, owner: str, name: str) -> Stored:
        """Return a file. Raises Refusal (404) for one that is not there, any more, or that is somebody else's."""
        self._sweep()
        found = self._files.get(name)
        if found is None or found.owner != owner:
            raise Refusal(404, f"there is no recording {name!r}: recordings are kept {self._keep_s:g} s.", "name", "recording_not_found")
        return found

    def _sweep(self) -> None:
        size, now = 0, time.time()
        for name, one in reversed(list(self._files.items())):
            size += len(one.data)
            if now - one.made > self._keep_s or (size > self._most_bytes and size > len(one.data)):
                del self._files[name]
