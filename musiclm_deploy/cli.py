"""The command `musiclm`: export, doctor, generate, inspect, bench.

Exit status: 0 done, 1 refused or failed (the reason is on standard error), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from . import __version__

_EXAMPLES = """examples:
  musiclm generate bundle "calm piano in a ballroom" -o out.wav --seconds 10 --seed 0
  musiclm generate bundle "brass band" -o best.flac --num-samples 4 --save-tokens tokens.npz
  musiclm generate bundle "brass band" --prime intro.wav -o on.wav --seconds 20
  musiclm inspect bundle
  musiclm bench bundle --seconds 10
  musiclm doctor checkpoints/*.pt
  musiclm export --semantic S.pt --coarse C.pt --fine F.pt --codec K.pt --mulan M.pt --quantizer Q.pt --out bundle
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(options, "text", "") is None:
        options.text = rest.pop()  # argparse gives up a positional that may be missing at the first option before it
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    sys.stderr = sys.stderr or io.StringIO()  # closed by the caller; a progress bar cannot do without
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        status = options.run(options)
        print(end="", flush=True)  # a reader that is gone shows here, not when Python ends
        return status
    except KeyboardInterrupt:
        print("musiclm: interrupted; nothing half-written was left behind.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader is gone: nothing more can be said there
        return 1
    except (ValueError, OSError, RuntimeError, MemoryError, ImportError) as error:
        print(f"musiclm: {str(error) or type(error).__name__}", file=sys.stderr)
        return 1
    except Exception as error:  # ONNX Runtime's own, which have no common base; or a mistake of ours
        logging.getLogger(__name__).info("unexpected", exc_info=True)
        print(f"musiclm: {type(error).__name__}: {error} (musiclm -v says where)", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "musiclm", description="MusicLM, deployed: checkpoints to a bundle, a bundle to music.", epilog=_EXAMPLES, formatter_class=raw
    )
    parser.add_argument("--version", action="version", version=f"musiclm-deploy {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is done, and the memory it takes")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    generate = commands.add_parser("generate", help="make music from a text", description="Make music from a text.")
    generate.add_argument("bundle", type=Path, metavar="BUNDLE", help="the directory that export_all.py made")
    generate.add_argument("text", metavar="TEXT", nargs="?", help="what the music should be like")
    generate.add_argument("--audio", type=Path, metavar="FILE", help="a sound that it should be like, in place of TEXT or beside it")
    generate.add_argument("--audio-weight", type=float, metavar="W", help="of the sound beside TEXT, from 0 to 1 (default: 0.5)")
    generate.add_argument(
        "--prime", type=Path, metavar="FILE", help="a sound that the music goes on from; alone, it is also what to be like"
    )
    generate.add_argument("--without-prime", action="store_true", help="write only what comes after the sound of --prime")
    generate.add_argument("-o", "--out", type=Path, default=Path("out.wav"), metavar="FILE", help=".wav, .flac or .ogg (default: out.wav)")
    generate.add_argument("--seconds", type=float, metavar="S", help="length, exact to the sample (default: the model's window)")
    generate.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise: the same seed gives the same music (default: 0)")
    generate.add_argument(
        "--num-samples", type=int, default=1, metavar="N", help="candidates; MuLaN picks the one closest to the text (default: 1)"
    )
    generate.add_argument("--all", action="store_true", help="write every candidate, as FILE-1, FILE-2, ..., beside the best")
    generate.add_argument(
        "--stop", choices=["exact", "eos"], default="exact", help="exact length, or end where the model ends (default: exact)"
    )
    generate.add_argument("--compat", choices=["upstream"], help="reproduce audiolm-pytorch token for token")
    generate.add_argument("--max-semantic-tokens", type=int, metavar="N", help="at most (default: as many as the length can hold)")
    for name, what in (
        ("temperature", "0 is greedy"),
        ("filter-thres", "share of the vocabulary dropped, in [0, 1)"),
        ("cond-scale", "guidance, coarse only"),
    ):
        generate.add_argument(
            f"--{name}", type=_stage_value, action="append", default=[], metavar="[STAGE=]X", help=f"{what}; for one stage, or for all"
        )
    generate.add_argument(
        "--window",
        type=_stage_window,
        action="append",
        default=[],
        metavar="STAGE=LENGTH:OVERLAP",
        help="of clips longer than the trained windows, in tokens or frames; repeat for other stages (docs/long_clips.md)",
    )
    generate.add_argument("--tokens", type=Path, metavar="FILE", help="go on from saved tokens (.npz)")
    generate.add_argument("--save-tokens", type=Path, metavar="FILE", help="save every candidate's tokens (.npz)")
    generate.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "tensorrt"], help="where to run (default: auto)")
    generate.add_argument("--threads", type=int, metavar="N", help="of the CPU (default: one per core)")
    generate.add_argument("--json", action="store_true", help="print what was made as one JSON object")
    generate.set_defaults(run=_generate, wrong_usage=generate.error)

    inspect = commands.add_parser("inspect", help="say what a bundle holds", description="Check a bundle and say what it holds.")
    inspect.add_argument("bundle", type=Path, metavar="BUNDLE")
    inspect.add_argument("--json", action="store_true", help="print the manifest as JSON")
    inspect.set_defaults(run=_inspect)

    bench = commands.add_parser(
        "bench", help="say what a bundle costs here", description="Time a bundle's steps, clips and start on this machine."
    )
    bench.add_argument("bundle", type=Path, metavar="BUNDLE")
    bench.add_argument("--only", choices=["steps", "clips", "start"], help="one part of it (default: all three)")
    bench.add_argument("--seconds", type=float, default=2.0, metavar="S", help="length of the clips (default: 2)")
    bench.add_argument("--cond-scale", type=float, metavar="X", help="guidance of the clips (default: the bundle's)")
    bench.add_argument("--fine-window", type=_count, metavar="N", help="frames of a fine window (default: the trained window)")
    bench.add_argument("--steps", type=_count, default=40, metavar="N", help="timed steps of each case (default: 40)")
    bench.add_argument("--repeats", type=_count, default=3, metavar="N", help="of each clip and each start (default: 3)")
    bench.add_argument("--threads", type=_count, metavar="N", help="of the CPU (default: one per core)")
    bench.add_argument("--json", type=Path, metavar="FILE", help="append the rows to this file, one JSON object a line")
    bench.set_defaults(run=_bench)

    export = commands.add_parser(
        "export", help="turn trained checkpoints into a bundle", description="Turn trained checkpoints into a bundle."
    )
    for name, what in (
        ("semantic", "semantic transformer"),
        ("coarse", "coarse transformer"),
        ("fine", "fine transformer"),
        ("codec", "codec: a SoundStream, or an EnCodec at 24 kHz"),
    ):
        export.add_argument(f"--{name}", type=Path, required=True, metavar="FILE", help=f"checkpoint of the {what}")
    export.add_argument("--mulan", type=Path, metavar="FILE", help="checkpoint of MuLaN; not needed where the quantizer's holds it")
    export.add_argument(
        "--quantizer",
        action="append",
        required=True,
        metavar="[STAGE=]FILE",
        help="checkpoint of the MuLaN quantizer; repeat with STAGE= if each stage has its own",
    )
    export.add_argument(
        "--semantic-features", type=Path, metavar="FILE", help="the MelKmeans that the semantic transformer was trained with"
    )
    export.add_argument(
        "--hubert", type=Path, metavar="FILE", help="or the HuBERT it was trained with: fairseq's checkpoint, or a Hugging Face folder"
    )
    export.add_argument("--kmeans", type=Path, metavar="FILE", help="the k-means model, of scikit-learn, that goes with --hubert")
    export.add_argument(
        "--config", type=Path, metavar="FILE", help='JSON of what checkpoints cannot tell: {"semantic": {"cond_as_self_attn_prefix": true}}'
    )
    export.add_argument(
        "--precision",
        action="append",
        default=[],
        metavar="[STAGE=]P",
        help="of the transformers' weights: fp32 (default), int8, int4, or auto, the narrowest that loses little; for one stage or all",
    )
    export.add_argument("--force", action="store_true", help="take a precision that loses more than it may")
    export.add_argument(
        "--calibration", type=Path, metavar="DIR", help="measure that on these sounds, not on what the fp32 model makes of a few texts"
    )
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="the bundle to make")
    export.add_argument("--overwrite", action="store_true", help="replace a bundle that is there already")
    export.add_argument("--quiet", action="store_true", help="no progress bar, no table of settings")
    export.set_defaults(run=_export)

    doctor = commands.add_parser(
        "doctor",
        help="say what checkpoints are and what an export would refuse",
        description="Say what each file is, what an export would read from it, what is missing and what would be refused.",
    )
    doctor.add_argument("files", type=Path, nargs="+", metavar="FILE", help="checkpoints, folders and bundles, in any order")
    doctor.add_argument("--config", type=Path, metavar="FILE", help="as for export")
    doctor.add_argument("--json", action="store_true", help="print the report as one JSON object")
    doctor.set_defaults(run=_doctor)
    return parser


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,5}", text):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _stage_value(text: str) -> tuple[str, float]:
    stage, _, value = text.rpartition("=")
    try:
        return stage, float(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a number, or STAGE=number, got {text!r}") from error


def _stage_window(text: str) -> tuple[str, tuple[int | None, int | None]]:
    match = re.fullmatch(r"(\w+)=(\d{1,9})?(?::(\d{1,9}))?", text)
    if match is None or match[2] is match[3] is None:
        raise argparse.ArgumentTypeError(f"expected STAGE=LENGTH:OVERLAP, STAGE=LENGTH or STAGE=:OVERLAP, whole numbers, got {text!r}")
    length, overlap = (None if number is None else int(number) for number in match.group(2, 3))
    return match[1], (length, overlap)


def _generate(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from .runtime.audio import SUFFIXES, load_audio
    from .runtime.musiclm import load
    from .runtime.windows import Window

    _check_writable(options.out, SUFFIXES)
    if options.save_tokens:
        _check_writable(options.save_tokens, [".npz"])
    prompt, prime = _prompt(options), None if options.prime is None else load_audio(options.prime)
    windows = {stage: Window(*sizes) for stage, sizes in options.window} or None
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
        with load(options.bundle, options.device, threads=options.threads) as model:
            music = model.generate(
                prompt,
                prime=prime,
                include_prime=not options.without_prime,
                seconds=options.seconds,
                seed=options.seed,
                num_samples=options.num_samples,
                stop=options.stop,
                compat=options.compat,
                max_semantic_tokens=options.max_semantic_tokens,
                sampling=_sampling(options, model.bundle.manifest),
                windows=windows,
                tokens=options.tokens,
                progress=progress,
            )
    finally:
        for bar in bars.values():
            bar.close()
    files = [music.save(options.out)]
    if options.all:
        names = [options.out.with_stem(f"{options.out.stem}-{index + 1}") for index in range(len(music.candidates))]
        files += [music.save(name, candidate=index) for index, name in enumerate(names)]
    if options.save_tokens:
        files.append(music.save_tokens(options.save_tokens))
    seconds = len(music.audio) / music.sample_rate
    if options.json:
        scores = [candidate.score for candidate in music.candidates]
        facts = {"seconds": seconds, "sample_rate": music.sample_rate, "seed": music.seed, "best": music.best, "scores": scores}
        print(json.dumps({"files": [str(file) for file in files], **facts, "timings": music.timings, "bundle_sha256": music.bundle_sha256}))
    else:
        spent = ", ".join(f"{stage} {taken:.2f}" for stage, taken in music.timings.items() if stage not in ("total", "real_time_factor"))
        print(f"{', '.join(map(str, files))}: {seconds:g} s at {music.sample_rate} Hz")
        print(f"{music.timings['total']:.2f} s ({spent}), real-time factor {music.timings['real_time_factor']:.2f}")
    return 0


def _prompt(options: argparse.Namespace) -> Any:
    """A text, a sound, or both blended; None with a prime alone."""
    from .runtime.audio import load_audio
    from .runtime.prompts import Blend

    weight = 0.5 if options.audio_weight is None else options.audio_weight
    if options.text is None and options.audio is None and options.prime is None:
        options.wrong_usage(
            "say what the music should be like: TEXT, --audio FILE or both, or give a sound to go on from with --prime FILE"
        )
    if options.without_prime and options.prime is None:
        options.wrong_usage("--without-prime leaves out the sound of --prime, and there is none")
    if options.audio_weight is not None and (options.text is None or options.audio is None or not 0 <= weight <= 1):
        options.wrong_usage("--audio-weight is the share of --audio beside TEXT, from 0 to 1")
    if options.audio is None:
        return options.text
    sound = load_audio(options.audio)
    return Blend([(sound, 1.0)] if options.text is None else [(options.text, 1 - weight), (sound, weight)])


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
    from .runtime.bundle import STAGES
    from .runtime.sampling import SamplingConfig

    chosen: dict[str, dict[str, float]] = {}
    for name in ("temperature", "filter_thres", "cond_scale"):
        for stage, value in sorted(getattr(options, name), key=lambda pair: pair[0] != ""):
            guided = [s for s in STAGES if name != "cond_scale" or getattr(manifest, s).guidance]
            for target in [stage] if stage else guided:
                chosen.setdefault(target, {})[name] = value
    return {stage: SamplingConfig(**values) for stage, values in chosen.items()}


def _inspect(options: argparse.Namespace) -> int:
    from .runtime.bundle import Bundle
    from .runtime.description import describe

    bundle = Bundle.open(options.bundle)
    print(bundle.manifest.to_json() if options.json else describe(bundle), end="")
    return 0


def _bench(options: argparse.Namespace) -> int:
    from .runtime.bench import PARTS, bench
    from .runtime.bench.table import as_text

    named = {name: getattr(options, name) for name in ("seconds", "cond_scale", "fine_window", "steps", "repeats", "threads", "json")}
    print(as_text(bench(options.bundle, PARTS if options.only is None else (options.only,), **named)))
    return 0


def _export(options: argparse.Namespace) -> int:
    from . import export_checkpoints

    config = _read_config(options.config)
    quantizers, precisions = _by_stage("quantizer", options.quantizer), _by_stage("precision", options.precision)
    names = ("semantic", "coarse", "fine", "codec", "mulan", "semantic_features", "hubert", "kmeans")
    checkpoints = {name: getattr(options, name) for name in names}
    out = export_checkpoints(
        **checkpoints,
        quantizer=quantizers,
        out=options.out,
        config=config,
        precision=precisions,
        force=options.force,
        calibration=options.calibration,
        overwrite=options.overwrite,
        quiet=options.quiet,
    )
    print(f'{out}: done. Try: musiclm generate {out} "calm piano in a ballroom" -o out.wav')
    return 0


def _by_stage(option: str, items: Sequence[str]) -> dict[str, str]:
    """`{stage: value}` of an option that is given once, or with STAGE= for each stage; "" is the value for all."""
    from .export.errors import ExportError
    from .runtime.bundle import STAGES

    values: dict[str, str] = {}
    for item in items:
        stage, _, value = item.partition("=")
        stage, value = (stage, value) if stage in STAGES else ("", item)  # a path may hold "=" as well
        if stage in values:
            raise ExportError(
                f"--{option} {item}: {stage or 'one for all stages'} was given already. Repeat it with STAGE= for each stage."
            )
        values[stage] = value
    return values


def _doctor(options: argparse.Namespace) -> int:
    from . import diagnose

    report = diagnose(options.files, _read_config(options.config))
    print(report.to_json() if options.json else report)
    return 1 if report.faults else 0


def _read_config(path: Path | None) -> dict[str, Any]:
    from .export.errors import ExportError

    if path is None:
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"--config {path}: {error}") from error
    if not isinstance(config, dict):
        raise ExportError(f"--config {path}: expected a JSON object, got {type(config).__name__}.")
    return config


if __name__ == "__main__":
    sys.exit(main())
