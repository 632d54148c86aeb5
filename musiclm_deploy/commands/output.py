"""The outputs of `musiclm generate`: their options, the checks before anything is computed, and writing to files or standard output."""

from __future__ import annotations

import argparse
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ..runtime.user_files import expanded
from .console import leave_output

if TYPE_CHECKING:
    from ..runtime.mastering import Mastering
    from ..runtime.music import Music
    from .again import Again

STDOUT = "standard output"
_DEFAULT = Path("out.wav")
_BYTES_PER_SAMPLE = 10  # of a file while it is made: at most 8.6 measured, the wave at its rate and as much once more
STDOUTS = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--out",
        type=expanded,
        metavar="FILE",
        help=".wav, .flac, .ogg, .opus or .mp3, mono; - writes a wav to standard output (default: out.wav)",
    )
    parser.add_argument("--sample-rate", type=int, metavar="HZ", help="sample rate of the file (default: the codec's)")
    parser.add_argument(
        "--normalize",
        type=float,
        metavar="LUFS",
        help="bring the clip to this loudness (ITU-R BS.1770), such as -14 (default: as generated)",
    )
    parser.add_argument("--all", action="store_true", help="also write every candidate, as FILE-1, FILE-2, ...")
    parser.add_argument("--save-tokens", type=expanded, metavar="FILE", help="save every candidate's tokens (.npz)")


def numbered(path: Path, index: int) -> Path:
    """Return the name of the file of prompt or candidate `index`, which counts from 0: out.wav is out-1.wav, out-2.wav and so on."""
    if not path.name:
        raise ValueError(f"cannot write {path}: it is a directory.")
    return path.with_stem(f"{path.stem}-{index + 1}")


@dataclass(frozen=True)
class Outputs:
    """The files that one piece of music is written to, or standard output."""

    out: Path | None  # None is standard output
    candidates: list[Path]  # one for each, with --all
    tokens: Path | None
    mastering: Mastering

    @classmethod
    def of_each(cls, options: argparse.Namespace, prompts: int, candidates: int, again: Again | None) -> list[Outputs]:
        """Return the outputs of every prompt; those of --prompts are numbered."""
        if options.prompts is None:
            return [cls._of(options, options.out, options.save_tokens, candidates, again)]
        from ..runtime.outputs import is_stream

        out = options.out or _DEFAULT
        if str(out) in STDOUTS or is_stream(out):
            raise ValueError(
                f"-o {out} takes one sound, and --prompts makes several. Give -o FILE, which becomes FILE-1, FILE-2 and so on."
            )
        names = [(numbered(out, index), options.save_tokens and numbered(options.save_tokens, index)) for index in range(prompts)]
        return [cls._of(options, *pair, candidates, again) for pair in names]

    @classmethod
    def _of(cls, options: argparse.Namespace, out: Path | None, tokens: Path | None, candidates: int, again: Again | None) -> Outputs:
        from ..runtime.mastering import Mastering
        from ..runtime.request import MOST_ITEMS

        path = out or (_DEFAULT if again is None else again.out)
        for option in ("prime", "audio") if out is None and again is None else ():
            given = getattr(options, option)
            if given is not None and given.exists() and path.exists() and given.samefile(path):
                raise ValueError(f"{path}, where the music goes by default, is the sound of --{option}. Give another name with -o FILE.")
        every = [numbered(path, index) for index in range(min(candidates, MOST_ITEMS))] if options.all else []
        record = {} if again is None else again.record
        rate = record.get("sample_rate") if options.sample_rate is None else options.sample_rate
        loudness = record.get("normalize") if options.normalize is None else options.normalize
        return cls(None if str(path) in STDOUTS else path, every, tokens, Mastering(rate, loudness))

    @property
    def sounds(self) -> list[Path]:
        """The sound files."""
        return [path for path in (self.out, *self.candidates) if path is not None]

    def check(self) -> None:
        """Raise ValueError or OSError for an output that is known to be impossible. Changes nothing."""
        from ..runtime.music import check_tokens_name
        from ..runtime.outputs import check_output, is_stream
        from ..runtime.sound_files import format_of

        if self.candidates and (self.out is None or is_stream(self.out)):
            raise ValueError(f"--all writes files named after --out, and {self.out or STDOUT} is not a file. Give -o FILE.")
        if self.out is None:
            _check_stdout()
        for path in self.sounds:
            format_of(path)
            check_output(path)
        if self.mastering.sample_rate is not None:
            self.check_sound(self.mastering.sample_rate, None)
        if self.tokens:
            check_tokens_name(self.tokens)
            check_output(self.tokens)

    def check_sound(self, codec_hz: int, seconds: float | None) -> None:
        """Raise ValueError if the format does not take the sound, MemoryError if making the file takes too much memory.

        seconds: its length, None if not known, when only the rate is checked.
        """
        from ..runtime.memory import check_memory
        from ..runtime.sound_files import check_sound, format_of

        path = self.out or Path("-.wav")
        hz = self.mastering.sample_rate or codec_hz
        length = seconds if seconds is not None and 0 < seconds < 1e9 else 0  # the request refuses others
        check_sound(path, format_of(path), hz, round(length * hz))
        check_memory({"file": round(length * hz) * _BYTES_PER_SAMPLE})

    def write(self, music: Music, candidate: int | None) -> list[str]:
        """Write everything and return the names, the sound's first. candidate: the best by default.

        Tokens are written first: if a later file fails, they make the sounds again.
        """
        from ..runtime.outputs import named_errors, write_all

        wanted = vars(self.mastering)
        if self.tokens:
            music.save_tokens(self.tokens)
        if self.out is None:
            made = music.encode(".wav", candidate, **wanted)
            with named_errors(STDOUT):
                write_all(sys.stdout.buffer, made)
        else:
            music.save(self.out, candidate, **wanted)
        for index, name in enumerate(self.candidates):
            music.save(name, index, **wanted)
        return [str(name) for name in (self.out or STDOUT, *self.candidates, self.tokens) if name]

    def report(self) -> Report:
        """Return the stream for messages about the files: standard error if the sound goes to standard output."""
        return Report(sys.stderr if self.out is None else sys.stdout)


class Report(io.TextIOBase):
    """A stream for messages between files. One that fails (`| head`, a full disk) must not cost the files that come after it."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._error: OSError | None = None

    def write(self, text: str) -> int:
        if self._stream is not None and self._error is None:
            try:
                self._stream.write(text)
            except OSError as error:
                self._error = error
        return len(text)

    def finish(self) -> None:
        """Raise the OSError with which a message failed. A reader that is gone is no failure: the files are written."""
        if self._error is None and self._stream is not None:
            try:
                self._stream.flush()
            except OSError as error:
                self._error = error
        if isinstance(self._error, BrokenPipeError) and self._stream is sys.stdout:
            leave_output()
        elif self._error is not None:
            raise self._error


def _check_stdout() -> None:
    if sys.stdout is None:
        raise ValueError("-o -: standard output is closed. Give -o FILE.")
    if sys.stdout.isatty():
        raise ValueError("-o -: standard output is a terminal, which shows no sound. Pipe it (| aplay), redirect it, or give -o FILE.")
