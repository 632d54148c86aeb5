"""`musiclm generate --stream`: one clip to a wav that grows while it is made, or to standard output."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, BinaryIO

from .output import STDOUT, STDOUTS, Report

_DEFAULT = Path("out.wav")


def add_stream_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stream",
        action="store_true",
        help="write the wav while the music is made, so that it can be heard at once; --seconds inf goes on until it is interrupted",
    )


def check_usage(options: argparse.Namespace) -> None:
    """End with status 2 where an option needs the whole clip, or several."""
    whole = {
        "--prompts": options.prompts,
        "--num-samples": options.num_samples not in (None, 1),
        "--all": options.all,
        "--normalize": options.normalize,
        "--sample-rate": options.sample_rate,
        "--compat": options.compat,
        "--again": options.again,
    }
    if said := [option for option, value in whole.items() if value is not None and value is not False]:
        options.wrong_usage(f"--stream writes one clip as it is made, which does not go with {', '.join(said)}: leave out one of them")
    if options.save_tokens and options.seconds == float("inf"):
        options.wrong_usage("of music without end only the last minutes of tokens are kept: leave out --save-tokens, or give --seconds S")
    if options.out is not None and str(options.out) not in STDOUTS and options.out.suffix.lower() not in ("", ".wav"):
        options.wrong_usage(f"--stream writes a .wav, got {options.out}: give another name, or leave out --stream")


def run_stream(model: Any, options: argparse.Namespace, request: dict[str, Any]) -> int:
    """Write the request's clip as it is made. request: arguments of `MusicLM.generate`, text and seed as lists of one."""
    from ..runtime.growing import GrowingWav
    from ..runtime.outputs import check_output

    to_stdout = options.out is not None and str(options.out) in STDOUTS
    where: Path | BinaryIO = sys.stdout.buffer if to_stdout else options.out or _DEFAULT
    if isinstance(where, Path):
        check_output(where)
    report = Report(sys.stderr if to_stdout else sys.stdout)
    arguments = {**request, "text": request["text"] and request["text"][0], "seed": request["seed"][0], "seconds": _seconds(model, options)}
    with model.stream(**arguments) as stream:
        wav, stopped = GrowingWav(where, stream.sample_rate, stream.settings), False
        try:
            for chunk in stream:
                if not wav.seconds and not options.json:
                    print(f"first audio after {stream.timings['first_audio']:.2f} s", file=sys.stderr, flush=True)
                wav.append(chunk.audio)
        except KeyboardInterrupt:  # how music without end ends
            stopped = True
        finally:
            wav.close()
        if options.save_tokens:
            stream.save_tokens(options.save_tokens)
        _tell(options, stream, wav.seconds, STDOUT if to_stdout else str(where), report)
    report.finish()
    return 130 if stopped and arguments["seconds"] is not None else 0


def _seconds(model: Any, options: argparse.Namespace) -> float | None:
    """Return the length that was asked for, that of a default clip, or None for music without end."""
    from ..runtime.request import default_frames

    if options.seconds == float("inf"):
        return None
    codec = model.bundle.manifest.codec
    return options.seconds or default_frames(model.bundle.manifest) * codec.samples_per_frame / codec.sample_hz


def _tell(options: argparse.Namespace, stream: Any, seconds: float, name: str, report: Report) -> None:
    """Print what was made."""
    timings = stream.timings
    if options.json:
        facts = {"seconds": seconds, "sample_rate": stream.sample_rate, "seed": stream.seed, "timings": timings}
        files = [name, *([str(options.save_tokens)] if options.save_tokens else [])]
        print(json.dumps({"files": files, "prompt": stream.settings["prompt"], **facts}), file=report)
        return
    print(f"{name}: {seconds:g} s at {stream.sample_rate} Hz, seed {stream.seed}", file=report)
    heard = f"first audio after {timings['first_audio']:.2f} s, " if "first_audio" in timings else ""
    print(f"{heard}{timings['underruns']:.0f} gaps in playing", file=report)
