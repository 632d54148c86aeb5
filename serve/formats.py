"""A clip as bytes of a sound format, chunk by chunk: what was given out is never gone back to.

In: chunks of float32 [t] at the bundle's rate. Out: bytes that a player can begin with at once. PCM and wav hold the samples of a file of
`musiclm generate`; flac, opus and mp3 are libsndfile's; another rate is soxr's.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from ..runtime.growing import GrowingWav, sixteen_bits, stream_comment
from ..runtime.mastering import Mastering
from ..runtime.music import Music
from ..runtime.sound_files import FORMATS, MOST_COMMENT_BYTES
from ..runtime.user_files import escape_surrogates

_PAGE_MS = 50.0  # of an Ogg page: with libsndfile's one second nothing is heard for so long
_SET_PAGE_LATENCY = 0x1303  # libsndfile's SFC_SET_OGG_PAGE_LATENCY_MS, which soundfile has no word for
_MP3_KBPS = 128  # by default
_MPEG1_KBPS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # layer III (ISO 11172-3)
_MPEG2_KBPS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)  # ISO 13818-3
_MPEG1_HZ = (44100, 48000, 32000)


@dataclass(frozen=True)
class Format:
    """A format that clients can ask for."""

    name: str
    media_type: str
    suffix: str | None = None  # of `runtime.sound_files`; None: written here
    rates: tuple[int, ...] = ()  # Hz, ascending; empty: any

    def rate(self, hz: int) -> int:
        """Return the rate nearest to `hz` that the format has: the next one above, or else its highest."""
        return hz if not self.rates or hz in self.rates else next((one for one in self.rates if one > hz), self.rates[-1])


FORMATS_SERVED = {
    form.name: form
    for form in (
        Format("wav", "audio/wav"),
        Format("pcm", "audio/pcm"),
        Format("flac", "audio/flac", ".flac"),
        Format("opus", "audio/ogg", ".opus", (8000, 12000, 16000, 24000, 48000)),
        Format("mp3", "audio/mpeg", ".mp3", (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)),
    )
}


class Encoder:
    """One clip on its way into a format."""

    def __init__(
        self,
        form: Format,
        sample_hz: int,
        record: Mapping[str, Any],
        rate: int | None = None,
        kbps: int | None = None,
        samples: int | None = None,
    ) -> None:
        """sample_hz: of the samples, the bundle's; record: of how the clip is made, for the comment of wav, flac and opus; rate: of the
        bytes, in Hz, by default the bundle's, or the format's nearest to it; kbps: of mp3, 128 by default, and opus; samples: that will
        come, if that is known."""
        self.form, self.rate = form, form.rate(rate or sample_hz)
        self.pcm = hashlib.sha256()  # of the samples as 16 bits, little-endian, at the bundle's rate
        self._resampler = None
        if self.rate != sample_hz:
            import soxr

            self._resampler = soxr.ResampleStream(sample_hz, self.rate, 1, dtype="float32", quality="VHQ")
        self._samples = samples if self._resampler is None else None
        self._sink = _Sink()
        self._file: Any = None
        if form.name == "wav":
            self._file = GrowingWav(self._sink, self.rate, record)
        elif form.suffix is not None:
            self._file = _open(form.suffix, self._sink, self.rate, kbps)
            if form.name != "mp3":  # whose first frame must come first, see `_without_count`
                _describe(self._file, record, self.rate)

    def encode(self, audio: np.ndarray) -> bytes:
        """Return the bytes that the next samples, float32 [t], complete."""
        self.pcm.update(sixteen_bits(audio).tobytes())
        return self._write(audio if self._resampler is None else self._resampler.resample_chunk(audio))

    def finish(self) -> bytes:
        """Return the last bytes."""
        last = b"" if self._resampler is None else self._write(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        if self._file is not None:
            self._file.close()
        return last + self._taken()

    def _write(self, audio: np.ndarray) -> bytes:
        if self.form.name == "pcm":
            return sixteen_bits(audio).tobytes()
        if self.form.name == "wav":
            self._file.append(audio)
        elif len(audio):
            self._file.write(sixteen_bits(audio) if self.form.name == "flac" else np.clip(audio, -1, 1))
        return self._taken()

    def _taken(self) -> bytes:
        data = self._sink.take()
        if self._sink.begun or not data:
            return data
        self._sink.begun = True
        if self.form.name == "mp3":
            return _without_count(data)
        return _with_count(data, self._samples) if self.form.name == "flac" and self._samples else data


def pcm_sha256(audio: np.ndarray) -> str:
    """Return the SHA-256 of samples, float32 [t], as little-endian 16 bits: of what a client of PCM gets."""
    return hashlib.sha256(sixteen_bits(audio).tobytes()).hexdigest()


def whole_file(music: Music, form: Format, rate: int | None, kbps: int | None = None, normalize: float | None = None) -> bytes:
    """Return the best candidate as a file.

    rate: in Hz, by default the bundle's, or the format's nearest to it; kbps: as in `Encoder`; normalize: loudness in LUFS.
    """
    hz = form.rate(rate or music.sample_rate)
    if form.name != "pcm" and kbps is None:
        return bytes(music.encode(form.suffix or ".wav", sample_rate=hz, normalize=normalize))
    wave, hz = Mastering(hz, normalize).apply(Path(f"music.{form.name}"), music.audio, music.sample_rate)
    encoder = Encoder(form, hz, music.settings, kbps=kbps)
    return encoder.encode(wave) + encoder.finish()


class _Sink(io.RawIOBase):
    """A file that only grows: what libsndfile would write back into its beginning is left out."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting, self._at, self.size, self.begun = bytearray(), 0, 0, False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        data = bytes(data)
        if self._at == self.size:
            self._waiting += data
            self.size += len(data)
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = (0, self._at, self.size)[whence] + offset
        return self._at

    def read(self, _: int = -1) -> bytes:
        return b""

    def take(self) -> bytes:
        """Return what was written since the last call."""
        data = bytes(self._waiting)
        self._waiting.clear()
        return data


def _open(suffix: str, sink: _Sink, hz: int, kbps: int | None) -> Any:
    import soundfile

    kind = FORMATS[suffix]
    options: dict[str, Any] = {}
    if kind.subtype != "PCM_16" and (kbps or kind.name == "MP3"):  # mp3 of changing bitrates needs a count of its frames to be seeked
        options["compression_level"] = _level(kind.subtype, hz, kbps or _MP3_KBPS)
        options |= {"bitrate_mode": "CONSTANT"} if kind.name == "MP3" else {}
    file = soundfile.SoundFile(cast(BinaryIO, sink), "w", samplerate=hz, channels=1, format=kind.name, subtype=kind.subtype, **options)
    if kind.subtype == "OPUS":
        value = soundfile._ffi.new("double*", _PAGE_MS)
        soundfile._snd.sf_command(file._file, _SET_PAGE_LATENCY, value, soundfile._ffi.sizeof("double"))
    return file


def _describe(file: Any, record: Mapping[str, Any], hz: int) -> None:
    """Write the prompt as the title, and the record of how the music is made as the comment. Nothing may have been written before."""
    title, comment = escape_surrogates(str(record.get("prompt") or "")), stream_comment(record, hz)
    if len(title.encode()) + len(comment.encode()) <= MOST_COMMENT_BYTES:
        file.title, file.comment = title, comment


def _level(subtype: str, hz: int, kbps: int) -> float:
    """Return libsndfile's compression level of a bitrate: it falls evenly from the highest, at 0, to the lowest, at 1."""
    if subtype == "OPUS":
        least, most = 6, 256
    else:  # of MPEG 1, 2 and 2.5
        least, most = (32, 320) if hz >= 32000 else (8, 160) if hz >= 16000 else (8, 64)
    return min(max((most - kbps) / (most - least), 0.0), 0.999)


def _with_count(data: bytes, samples: int) -> bytes:
    """Return flac that says how many samples it has: libsndfile, which would write that at the end, reads no file that does not."""
    field = slice(18, 26)  # of STREAMINFO (RFC 9639, 8.2): rate, channels, bits, and in the last 36 bits the samples
    return data[: field.start] + (int.from_bytes(data[field], "big") | samples).to_bytes(8, "big") + data[field.stop :]


def _without_count(data: bytes) -> bytes:
    """Return mp3 without its first frame, in which libsndfile's LAME counts the frames, wrongly while they are still to come."""
    length = _frame_bytes(data)
    return data[length:] if length and (b"Xing" in data[:length] or b"Info" in data[:length]) else data


def _frame_bytes(data: bytes) -> int:
    """Return the bytes of the layer III frame that data begins with, 0 if it begins with none."""
    header = int.from_bytes(data[:4], "big")
    version, bits, rate = header >> 19 & 3, header >> 12 & 15, header >> 10 & 3
    if header >> 21 != 0x7FF or version == 1 or bits in (0, 15) or rate == 3:
        return 0
    hz = _MPEG1_HZ[rate] >> (0, 0, 1, 0)[version] if version != 0 else _MPEG1_HZ[rate] >> 2
    slots, kbps = (144, _MPEG1_KBPS) if version == 3 else (72, _MPEG2_KBPS)
    return slots * 1000 * kbps[bits] // hz + (header >> 9 & 1)
