"""`musiclm generate`: a prompt to a file of music."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .prompts import Listed, batches_of, numbered, read_prompts, read_text, seeds_of
from .values import RANDOM, seed, stage_value, stage_window

_WORTH_SAYING_S = 30.0  # of work, before it begins
_SUMS = ("total", "real_time_factor")  # of timings; the others are stages


def add_options(commands: Any) -> None:
    parser = commands.add_parser("generate", help="make music from a text", description="Make music from a text.")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the directory that export_all.py made")
    parser.add_argument("text", metavar="TEXT", nargs="?", help="what the music should be like; - reads it from standard input")
    parser.add_argument(
        "--prompts", metavar="FILE", help="in place of TEXT, a prompt a line, or JSON lines with text and seed; - is standard input"
    )
    parser.add_argument("--audio", type=Path, metavar="FILE", help="a sound that it should be like, in place of TEXT or beside it")
    parser.add_argument("--audio-weight", type=float, metavar="W", help="of the sound beside TEXT, from 0 to 1 (default: 0.5)")
    parser.add_argument("--prime", type=Path, metavar="FILE", help="a sound that the music goes on from; alone, it is also what to be like")
    parser.add_argument("--without-prime", action="store_true", help="write only what comes after the sound of --prime")
    parser.add_argument("-o", "--out", type=Path, default=Path("out.wav"), metavar="FILE", help=".wav, .flac or .ogg (default: out.wav)")
    parser.add_argument("--seconds", type=float, metavar="S", help="length, exact to the sample (default: the model's window)")
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="of the noise: the same seed gives the same music; or random (default: 0)"
    )
    parser.add_argument(
        "--num-samples", type=int, default=1, metavar="N", help="candidates; MuLaN picks the one closest to the text (default: 1)"
    )
    parser.add_argument("--all", action="store_true", help="write every candidate, as FILE-1, FILE-2, ..., beside the best")
    parser.add_argument(
        "--stop", choices=["exact", "eos"], default="exact", help="exact length, or end where the model ends (default: exact)"
    )
    parser.add_argument("--compat", choices=["upstream"], help="reproduce audiolm-pytorch token for token")
    parser.add_argument("--max-semantic-tokens", type=int, metavar="N", help="at most (default: as many as the length can hold)")
    for name, what in (
        ("temperature", "0 is greedy"),
        ("filter-thres", "share of the vocabulary dropped, in [0, 1)"),
        ("cond-scale", "guidance, coarse only"),
    ):
        parser.add_argument(
            f"--{name}", type=stage_value, action="append", default=[], metavar="[STAGE=]X", help=f"{what}; for one stage, or for all"
        )
    parser.add_argument(
        "--window",
        type=stage_window,
        action="append",
        default=[],
        metavar="STAGE=LENGTH:OVERLAP",
        help="of clips longer than the trained windows, in tokens or frames; repeat for other stages (docs/long_clips.md)",
    )
    parser.add_argument("--tokens", type=Path, metavar="FILE", help="go on from saved tokens (.npz)")
    parser.add_argument("--save-tokens", type=Path, metavar="FILE", help="save every candidate's tokens (.npz)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "tensorrt"], help="where to run (default: auto)")
    parser.add_argument(
        "--weights",
        default="fp16",
        choices=["fp16", "bf16", "fp32", "int8"],
        help="of transformers on a GPU, as packed (default: fp16)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU (default: one per core)")
    parser.add_argument("--json", action="store_true", help="print what was made as one JSON object")
    parser.set_defaults(run=run, wrong_usage=parser.error)


def run(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ..runtime.audio import SUFFIXES
    from ..runtime.musiclm import load

    _check_usage(options)
    listed = [Listed(read_text(options.text))] if options.prompts is None else read_prompts(options.prompts)
    outs = iter(_outputs(options, len(listed), SUFFIXES))
    request = _request(options, listed)
    bars: dict[str, Any] = {}

    def progress(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            bars[stage] = tqdm(
                total=total, desc=f"{stage:8}", unit="tok" if stage not in ("codec", "rank") else "clip", file=sys.stderr, disable=None
            )
        bars[stage].update(done - bars[stage].n)
        if done == total:
            bars[stage].close()

    try:
        with load(options.bundle, options.device, threads=options.threads, weights=options.weights) as model:
            request["sampling"] = _sampling(options, model.bundle.manifest)
            parts, seconds, takes = batches_of(request, model.estimate)
            if seconds >= _WORTH_SAYING_S or len(parts) > 1:
                print(f"this will take {takes}.", file=sys.stderr)
            for part in parts:
                bars.clear()
                made = model.generate(**part, progress=progress)
                for music in made if isinstance(made, list) else [made]:
                    _write(options, music, *next(outs))
                    timings = music.timings  # of the whole batch
                if not options.json:
                    spent = ", ".join(f"{stage} {taken:.2f}" for stage, taken in timings.items() if stage not in _SUMS)
                    print(f"{timings['total']:.2f} s ({spent}), real-time factor {timings['real_time_factor']:.2f}")
    finally:
        for bar in bars.values():
            bar.close()
    return 0


def _request(options: argparse.Namespace, listed: list[Listed]) -> dict[str, Any]:
    """Arguments of `MusicLM.generate`, but for the sampling, which needs the bundle."""
    from ..runtime.audio import load_audio
    from ..runtime.windows import Window

    sound = None if options.audio is None else load_audio(options.audio)
    prompts = [_prompt(options, item.text, sound) for item in listed]
    return {
        "text": None if prompts == [None] else prompts,
        "prime": None if options.prime is None else load_audio(options.prime),
        "include_prime": not options.without_prime,
        "seconds": options.seconds,
        "seed": seeds_of(listed, options.seed),
        "num_samples": options.num_samples,
        "stop": options.stop,
        "compat": options.compat,
        "max_semantic_tokens": options.max_semantic_tokens,
        "windows": {stage: Window(*sizes) for stage, sizes in options.window} or None,
        "tokens": options.tokens,
    }


def _write(options: argparse.Namespace, music: Any, out: Path, tokens: Path | None) -> None:
    """Write one prompt's files, and say so on standard output."""
    files = [music.save(out)]
    if options.all:
        files += [music.save(numbered(out, index), candidate=index) for index in range(len(music.candidates))]
    if tokens:
        files.append(music.save_tokens(tokens))
    seconds = len(music.audio) / music.sample_rate
    if options.json:
        scores = [candidate.score for candidate in music.candidates]
        facts = {"seconds": seconds, "sample_rate": music.sample_rate, "seed": music.seed, "best": music.best, "scores": scores}
        facts |= {"timings": music.timings, "bundle_sha256": music.bundle_sha256}
        print(json.dumps({"files": [str(file) for file in files], "prompt": music.prompt, **facts}))
    else:
        seed = "" if options.seed != RANDOM and options.prompts is None else f", seed {music.seed}"
        which = "" if options.prompts is None else f": {music.prompt}"
        print(f"{', '.join(map(str, files))}: {seconds:g} s at {music.sample_rate} Hz{seed}{which}")


def _check_usage(options: argparse.Namespace) -> None:
    """End with status 2 where options do not go together."""
    given = [name for name in ("text", "prompts", "audio", "prime") if getattr(options, name) is not None]
    if not given:
        options.wrong_usage(
            "say what the music should be like: TEXT, --audio FILE or both, a list of texts with --prompts FILE, "
            "or give a sound to go on from with --prime FILE"
        )
    if options.prompts is not None and options.text is not None:
        options.wrong_usage("TEXT and --prompts are both what the music should be like: leave one out")
    if options.prompts is not None and options.tokens is not None:
        options.wrong_usage("--tokens goes on from the tokens of one prompt: give TEXT in place of --prompts")
    if options.without_prime and options.prime is None:
        options.wrong_usage("--without-prime leaves out the sound of --prime, and there is none")
    worded = options.text is not None or options.prompts is not None
    if options.audio_weight is not None and (not worded or options.audio is None or not 0 <= options.audio_weight <= 1):
        options.wrong_usage("--audio-weight is the share of --audio beside TEXT, from 0 to 1")


def _outputs(options: argparse.Namespace, prompts: int, suffixes: Collection[str]) -> list[tuple[Path, Path | None]]:
    """(file of the music, file of its tokens or None) of each prompt, checked; those of --prompts are numbered."""
    if options.prompts is None:
        outs = [(options.out, options.save_tokens)]
    else:
        outs = [(numbered(options.out, index), options.save_tokens and numbered(options.save_tokens, index)) for index in range(prompts)]
    for out, tokens in outs:
        _check_writable(out, suffixes)
        if tokens:
            _check_writable(tokens, [".npz"])
    return outs


def _prompt(options: argparse.Namespace, text: str | None, sound: Any) -> Any:
    """A text, a sound, or both blended; None with a prime alone."""
    from ..runtime.prompts import Blend

    if sound is None:
        return text
    weight = 0.5 if options.audio_weight is None else options.audio_weight
    return Blend([(sound, 1.0)] if text is None else [(text, 1 - weight), (sound, weight)])


def _check_writable(path: Path, suffixes: Collection[str]) -> None:
    """What can be known of an output before minutes are spent on what goes into it."""
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"cannot write {path}: the suffix must be {' or '.join(suffixes)}.")
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a directory.")
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: {path.parent} is not a directory.")


def _sampling(options: argparse.Namespace, manifest: Any) -> dict[str, Any]:
    """`--temperature 0.9 --temperature fine=0.7`: a value without a stage is for every stage that takes it."""
    from ..runtime.bundle import STAGES
    from ..runtime.sampling import SamplingConfig

    chosen: dict[str, dict[str, float]] = {}
    for name in ("temperature", "filter_thres", "cond_scale"):
        for stage, value in sorted(getattr(options, name), key=lambda pair: pair[0] != ""):
            guided = [s for s in STAGES if name != "cond_scale" or getattr(manifest, s).guidance]
            for target in [stage] if stage else guided:
                chosen.setdefault(target, {})[name] = value
    return {stage: SamplingConfig(**values) for stage, values in chosen.items()}
