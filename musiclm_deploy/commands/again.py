"""`musiclm generate --again FILE`: the request that the file's record describes, repeated bit for bit, or what keeps it from that."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..runtime.user_files import expanded

if TYPE_CHECKING:
    from ..runtime.bundle import Bundle
    from ..runtime.music import Music
    from .output import Report

# Options that the file's record answers, by their attribute in argparse's namespace.
_ANSWERED = {
    "text": "TEXT",
    **{
        name: f"--{name.replace('_', '-')}"
        for name in (
            *("prompts", "audio_weight", "without_prime", "seconds", "seed", "num_samples", "stop", "compat", "plan"),
            *("max_semantic_tokens", "temperature", "filter_thres", "cond_scale", "window"),
        )
    },
}


def add_again_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--again",
        type=expanded,
        metavar="FILE",
        help="repeat the request that made this sound file; the sounds and tokens of that request must be given again",
    )
    parser.add_argument("--other-bundle", action="store_true", help="with --again: accept a BUNDLE that did not make FILE")


@dataclass(frozen=True)
class Again:
    """A sound file of ours to make again, and its record."""

    file: Path
    record: dict[str, Any]
    other_bundle: bool  # whether a bundle that did not make the file is allowed

    @classmethod
    def of(cls, options: argparse.Namespace) -> Again | None:
        """Read the file of --again; return None without that option.

        Ends with status 2 if another option is one that the record answers. Raises ValueError for a file without a record.
        """
        from ..runtime.provenance_file import read_record

        if options.again is None:
            if options.other_bundle:
                options.wrong_usage("--other-bundle goes with --again FILE")
            return None
        values = {option: getattr(options, name) for name, option in _ANSWERED.items()}
        if said := [option for option, value in values.items() if value is not None and value is not False and value != []]:
            options.wrong_usage(f"--again takes the request from {options.again}: leave out {', '.join(said)}")
        return cls(options.again, read_record(options.again), options.other_bundle)

    @property
    def out(self) -> Path:
        """The file that the repetition is written to by default."""
        return self.file.with_stem(f"{self.file.stem}-again")

    def request(self, options: argparse.Namespace) -> dict[str, Any]:
        """Return the arguments of `MusicLM.generate`, text and seed as lists of one. Raises ValueError for what cannot be repeated."""
        from ..runtime.music import load_tokens
        from ..runtime.provenance import generate_arguments
        from ..runtime.sounds import read_sound

        sounds = [] if options.audio is None else [read_sound(options.audio)]
        prime = None if options.prime is None else read_sound(options.prime)
        tokens = None if options.tokens is None else load_tokens(options.tokens)
        try:
            arguments = generate_arguments(self.record, sounds, prime, tokens)
        except ValueError as error:
            raise ValueError(f"--again {self.file}: {error}") from error
        return arguments | {"text": [arguments["text"]], "seed": [arguments["seed"]]}

    def bundle(self, options: argparse.Namespace) -> Path:
        """Return the bundle that was given, or the record's, if its path leads to a folder below the current one."""
        if options.bundle is not None:
            return options.bundle
        path = Path(self.record["bundle"])
        if path.is_absolute() or ".." in path.parts or not path.is_dir():
            raise ValueError(
                f"{self.file} was made with the bundle {str(path)!r}, which is not below this folder. "
                f"Give it as BUNDLE: its SHA-256 is {self.record['bundle_sha256']} (musiclm inspect BUNDLE)."
            )
        print(f"{self.file} was made with {path}, which is used.", file=sys.stderr)
        return path

    def placement(self, options: argparse.Namespace) -> dict[str, Any]:
        """Return the arguments of `md.load` that compute as the file was computed, unless the options say otherwise."""
        device = self.record["device"] if options.device == "auto" else options.device
        weights = options.weights or (self.record["precision"]["semantic"] if device == "cuda" == self.record["device"] else "fp16")
        threads = self.record.get("threads") if options.threads is None else options.threads
        return {"device": device, "weights": weights, "threads": threads, "step": "graph" if self.record["step"] == "graph" else "auto"}

    def check_outputs(self, names: Sequence[Path]) -> None:
        """Raise ValueError if the file to repeat is among the files to write."""
        for name in names:
            if name.exists() and name.samefile(self.file):
                raise ValueError(f"-o would write {name}, the file to repeat. Give another name, so that the two can be compared.")

    def check_bundle(self, bundle: Bundle) -> None:
        """Raise ValueError for a bundle that did not make the file, unless --other-bundle allows it."""
        made_by = self.record["bundle_sha256"]
        if bundle.sha256 != made_by and not self.other_bundle:
            raise ValueError(
                f"{self.file} was made with a bundle of SHA-256 {made_by}, and {bundle.root} has {bundle.sha256}. "
                "Give the bundle that made it, or --other-bundle to make other music from the same request."
            )

    def compare(self, music: Music, report: TextIO | Report) -> int:
        """Say whether the samples are those of the file, and if not, what may be the reason. Returns the exit status."""
        from ..runtime.music import audio_sha256

        if audio_sha256(music.candidates[self.record["candidate"]].audio) == self.record["audio_sha256"]:
            print(f"the same samples as in {self.file}, bit for bit", file=report)
            return 0
        if music.bundle_sha256 != self.record["bundle_sha256"]:
            print(f"other samples than in {self.file}, which another bundle made", file=report)
            return 0
        then, now = ({**made, **made["versions"]} for made in (self.record, music.settings))
        names = ("device", "step", "threads", "processors", "precision", *now["versions"])
        changed = [f"{name} was {then.get(name)}, is {now[name]}" for name in names if then.get(name) != now[name]]
        why = "; ".join(changed) or "nothing that its record says has changed, so the processor may round otherwise"
        print(f"musiclm: other samples than in {self.file}: {why}.", file=sys.stderr)
        return 1
