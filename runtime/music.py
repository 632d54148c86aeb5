"""What a generation returns, and how its tokens are kept: small named objects with the sample rate inside."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .arguments import whole_number
from .mastering import Mastering
from .outputs import is_stream, write_output
from .player import player
from .shortage import naming_shortage
from .sound_files import encode, format_of
from .user_files import escape_surrogates, expanded

_ARRAYS = ("semantic", "coarse", "fine", "semantic_windows")  # of a candidate in a file; the last one only since long clips
_RECORD = "record"  # in a file of tokens: JSON as bytes
_WHOLE_REQUEST = ("total", "real_time_factor_made", "real_time_factor_kept")  # timings that belong to no single stage
_SHOWN = 60  # most characters of a prompt that a repr shows


@dataclass(frozen=True)
class Tokens:
    """One candidate's tokens; a later stage that has not run is None."""

    semantic: np.ndarray  # int64 [n]
    coarse: np.ndarray | None = None  # int64 [frames, Qc]
    fine: np.ndarray | None = None  # int64 [frames, Qf]
    # int64 [windows, 2], the first and one past the last semantic token of each window: of a long clip whose semantic tokens carry no time
    semantic_windows: np.ndarray | None = None

    @property
    def windows(self) -> list[slice]:
        """The semantic tokens of each window, those that it was told by the window before included."""
        if self.semantic_windows is None:
            return [slice(0, len(self.semantic))]
        return [slice(start, stop) for start, stop in self.semantic_windows.tolist()]

    def __repr__(self) -> str:
        arrays = [(name, getattr(self, name)) for name in ("semantic", "coarse", "fine")]
        parts = [f"{name} {list(array.shape)}" for name, array in arrays if array is not None]
        return f"Tokens({', '.join(parts)}{f', {len(self.windows)} windows' if len(self.windows) > 1 else ''})"


@dataclass(frozen=True)
class Candidate:
    audio: np.ndarray  # float32 [samples]
    tokens: Tokens
    score: float | None  # cosine of MuLaN's latents of text and audio; None when there was nothing to choose from

    def __repr__(self) -> str:
        score = "" if self.score is None else f", score {self.score:.3f}"
        return f"Candidate({len(self.audio)} samples{score}, {self.tokens!r})"


@dataclass(frozen=True)
class Music:
    """What one prompt gave: the best candidate, and all of them."""

    prompt: str
    seed: int
    sample_rate: int
    candidates: list[Candidate]
    best: int  # index of the candidate that MuLaN finds closest to the prompt
    # seconds per stage of the whole request and in "total"; "real_time_factor_made": seconds taken per second of audio, all candidates of
    # all prompts counted; "real_time_factor_kept": the same with the best candidates alone counted
    timings: dict[str, float]
    bundle_sha256: str
    settings: dict[str, Any] = field(default_factory=dict)  # the record of how it was made: `runtime.provenance.make_record`

    @property
    def audio(self) -> np.ndarray:
        return self.candidates[self.best].audio

    @property
    def tokens(self) -> Tokens:
        return self.candidates[self.best].tokens

    @property
    def stage_seconds(self) -> dict[str, float]:
        """The part of `timings` that has the seconds of each stage."""
        return {name: taken for name, taken in self.timings.items() if name not in _WHOLE_REQUEST}

    @property
    def speed(self) -> str:
        """The real-time factors in words. A factor is the seconds taken per second of audio; below 1 is faster than the clip plays."""
        made, kept = self.timings["real_time_factor_made"], self.timings["real_time_factor_kept"]
        both = f"{made:.2f} of all audio made, {kept:.2f} of the audio kept"
        return f"real-time factor {f'{kept:.2f}' if len(self.candidates) == 1 else both}"

    def __repr__(self) -> str:
        seconds, best = len(self.audio) / self.sample_rate, self.candidates[self.best]
        choice = "" if best.score is None else f", best of {len(self.candidates)} with score {best.score:.3f}"
        prompt = self.prompt if len(self.prompt) <= _SHOWN else f"{self.prompt[:_SHOWN]}..."
        return f"Music({prompt!r}, {seconds:g} s at {self.sample_rate} Hz, seed {self.seed}{choice})"

    def _repr_html_(self) -> str:
        """Return a player of the best candidate, with which a notebook shows the object."""
        seconds, best = len(self.audio) / self.sample_rate, self.candidates[self.best]
        choice = "" if best.score is None else f", best of {len(self.candidates)}"
        return player(self.encode(".wav"), f"{self.prompt} ({seconds:g} s, seed {self.seed}{choice})")

    def save(
        self, path: str | Path, candidate: int | None = None, *, sample_rate: int | None = None, normalize: float | None = None
    ) -> Path:
        """Write the best (or the given) candidate as wav, flac, ogg, opus or mp3 by suffix, with a comment that says how it was made.

        sample_rate: of the file, in Hz, by default the codec's. normalize: its integrated loudness in LUFS (ITU-R BS.1770), by default as
        generated. Raises ValueError for a candidate that is not there and for a suffix, a rate or samples that no such file has, OSError
        for a file that cannot be written.
        """
        path, mastering = expanded(path), Mastering(sample_rate, normalize)
        write_output(path, self._encoded(path, candidate, mastering))
        return path

    def encode(
        self, suffix: str = ".wav", candidate: int | None = None, *, sample_rate: int | None = None, normalize: float | None = None
    ) -> memoryview:
        """Return the bytes of the file that `save` would write with this suffix."""
        return self._encoded(Path(f"music{suffix}"), candidate, Mastering(sample_rate, normalize))

    def _encoded(self, path: Path, candidate: int | None, mastering: Mastering) -> memoryview:
        form, index = format_of(path), self.best if candidate is None else whole_number(candidate)
        if index is None or not -len(self.candidates) <= index < len(self.candidates):
            raise ValueError(f"candidate must be a whole number from 0 to {len(self.candidates) - 1}, got {candidate!r}.")
        audio = self.candidates[index].audio
        with naming_shortage(f"while {path} was made"):
            wave, hz = mastering.apply(path, audio, self.sample_rate)
            record = {"prompt": self.prompt, "seed": self.seed, "bundle_sha256": self.bundle_sha256, **self.settings}
            record |= {"candidate": range(len(self.candidates))[index], "best": self.best, "audio_sha256": audio_sha256(audio)}
            record |= {"sample_rate": hz, "normalize": None if mastering.normalize is None else float(mastering.normalize)}
            comment = escape_surrogates(json.dumps(record, ensure_ascii=form.ascii_only))  # those of the bundle's name
            return encode(path, form, wave, hz, comment)

    def save_tokens(self, path: str | Path) -> Path:
        """Write every candidate's tokens as .npz, from which `generate(tokens=...)` goes on."""
        return save_tokens(expanded(path), [candidate.tokens for candidate in self.candidates])


def audio_sha256(wave: np.ndarray) -> str:
    """Return the SHA-256 of samples as little-endian float32."""
    return hashlib.sha256(np.ascontiguousarray(wave, "<f4").tobytes()).hexdigest()


def save_tokens(path: Path, candidates: list[Tokens], record: Mapping[str, Any] | None = None) -> Path:
    """Write tokens as .npz, and how they were made, if that is given."""
    check_tokens_name(path)
    arrays = {
        f"{index}.{stage}": array
        for index, tokens in enumerate(candidates)
        for stage in _ARRAYS
        if (array := getattr(tokens, stage)) is not None
    }
    if record is not None:
        arrays[_RECORD] = np.frombuffer(json.dumps(record).encode(), np.uint8)
    made = io.BytesIO()
    np.savez_compressed(made, allow_pickle=False, **arrays)
    write_output(path, made.getbuffer())
    return path


def check_tokens_name(path: Path) -> None:
    """Raise ValueError for a name that `load_tokens` would not be given. A pipe or a device may have any."""
    if path.suffix != ".npz" and not is_stream(path):
        raise ValueError(f"cannot write {path}: tokens are saved as .npz.")


def load_tokens(path: Path) -> list[Tokens]:
    """Read the tokens that `save_tokens` wrote, now or before there were windows; nothing pickled is accepted."""
    arrays = _load_arrays(path)
    arrays.pop(_RECORD, None)
    candidates = []
    while (semantic := arrays.pop(f"{len(candidates)}.semantic", None)) is not None:
        candidates.append(Tokens(semantic, *(arrays.pop(f"{len(candidates)}.{name}", None) for name in _ARRAYS[1:])))
    if not candidates or arrays:
        raise ValueError(f"{path} is not a file of tokens: it holds {', '.join(arrays) or 'nothing'}.")
    return candidates


def load_record(path: Path) -> dict[str, Any] | None:
    """Read how the tokens were made that `save_tokens` wrote, if the file says so."""
    data = _load_arrays(path).get(_RECORD)
    if data is None:
        return None
    try:
        record = json.loads(data.tobytes())
    except ValueError as error:
        raise ValueError(f"{path} is not a file of tokens: its record is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} is not a file of tokens: its record is not an object, but {type(record).__name__}.")
    return record


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in file.files}  # a member that is no array comes as bytes
    except OSError as error:
        raise ValueError(f"{path} is not a file of tokens: {error.strerror or error}.") from error
    except Exception as error:  # zipfile, zlib and numpy fail on a damaged file in a dozen ways
        raise ValueError(f"{path} is not a file of tokens: {error}") from error
