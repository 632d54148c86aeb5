"""Where `musiclm generate` writes: its options, checked before anything is computed, and the files or the standard output afterwards."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..runtime.music import Music

STDOUT = "standard output"


def add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("out.wav"),
        metavar="FILE",
        help=".wav, .flac, .ogg, .opus or .mp3, mono; - writes a wav to standard output (default: out.wav)",
    )
    parser.add_argument("--all", action="store_true", help="write every candidate, as FILE-1, FILE-2, ..., beside the best")
    parser.add_argument("--save-tokens", type=Path, metavar="FILE", help="save every candidate's tokens (.npz)")


@dataclass(frozen=True)
class Outputs:
    """What one piece of music is written to."""

    out: Path | None  # None is standard output
    numbered: list[Path]  # of every candidate, if they are all asked for
    tokens: Path | None

    @classmethod
    def of(cls, options: argparse.Namespace, candidates: int) -> Outputs:
        out = None if str(options.out) in ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1") else options.out
        numbered = [options.out.with_stem(f"{options.out.stem}-{index + 1}") for index in range(candidates)] if options.all else []
        return cls(out, numbered, options.save_tokens)

    def check(self) -> None:
        """Raise ValueError or OSError for whatever is known to be impossible, and leave everything as it is."""
        from ..runtime.music import check_tokens_name
        from ..runtime.outputs import check_output, is_stream
        from ..runtime.sound_files import format_of

        if self.numbered and (self.out is None or is_stream(self.out)):
            raise ValueError(f"--all writes files named after --out, and {self.out or STDOUT} is not a file. Give -o FILE.")
        if self.out is None:
            _check_stdout()
        for path in filter(None, [self.out, *self.numbered]):
            format_of(path)
            check_output(path)
        if self.tokens:
            check_tokens_name(self.tokens)
            check_output(self.tokens)

    def check_sound(self, codec_hz: int, seconds: float | None) -> None:
        """Raise ValueError if the format does not take the sound; for a length that is not known yet, its rate alone counts."""
        from ..runtime.sound_files import check_sound, format_of

        path = self.out or Path("-.wav")
        check_sound(path, format_of(path), codec_hz, round((seconds or 0) * codec_hz))

    def write(self, music: Music) -> list[str]:
        """Write everything, the tokens first, from which the rest can be made again. Returns the names, the sound first."""
        if self.tokens:
            music.save_tokens(self.tokens)
        if self.out is None:
            sys.stdout.buffer.write(music.encode())
            sys.stdout.buffer.flush()
        else:
            music.save(self.out)
        for index, name in enumerate(self.numbered):
            music.save(name, candidate=index)
        return [str(name) for name in (self.out or STDOUT, *self.numbered, self.tokens) if name]

    @property
    def report(self) -> Any:
        """The stream for what is said about the files: standard error if the sound takes the standard output."""
        return sys.stderr if self.out is None else sys.stdout


def _check_stdout() -> None:
    if sys.stdout is None:
        raise ValueError("-o -: standard output is closed. Give -o FILE.")
    if sys.stdout.isatty():
        raise ValueError("-o -: standard output is a terminal, which shows no sound. Pipe it (| aplay), redirect it, or give -o FILE.")
