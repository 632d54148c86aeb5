"""The command `musiclm`: export, doctor, build, generate, inspect, bench.

Exit status: 0 done, 1 refused or failed (the reason is on standard error), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from .options import make_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(options, "text", "") is None:
        options.text = rest.pop()  # argparse gives up a positional that may be missing at the first option before it
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    sys.stderr = sys.stderr or io.StringIO()  # closed by the caller; a progress bar cannot do without
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        status = _COMMANDS[options.command](options)
        print(end="", flush=True)  # a reader that is gone shows here, not when Python ends
        return status
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader is gone: nothing more can be said there
        return 1
    except (ValueError, OSError, RuntimeError, MemoryError, ImportError) as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # while a module of machine code was loaded
            return _interrupted()
        print(f"musiclm: {str(error) or type(error).__name__}", file=sys.stderr)
        return 1
    except Exception as error:  # ONNX Runtime's own, which have no common base; or a mistake of ours
        logging.getLogger(__name__).info("unexpected", exc_info=True)
        print(f"musiclm: {type(error).__name__}: {error} (musiclm -v says where)", file=sys.stderr)
        return 1


def _interrupted() -> int:
    print("musiclm: interrupted; nothing half-written was left behind.", file=sys.stderr)
    return 130


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
        with load(options.bundle, options.device, threads=options.threads, weights=options.weights) as model:
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


def _build(options: argparse.Namespace) -> int:
    from .runtime.bundle import Bundle
    from .runtime.engines.build import Target, build
    from .runtime.engines.profiles import Limits

    bundle, target = Bundle.open(options.bundle), Target.here(options.compute_capability)
    folder, made, built = build(bundle, target, Limits(options.sequences, options.seconds), options.quiet)
    for graph, engine in made.engines.items():
        spent = f"{engine.seconds:7.1f} s" if graph in built else "as it was"
        print(f"  {Path(graph).stem:17} {engine.bytes / 1e6:7.1f} MB  {spent}")
    print(f"{folder}: {len(made.engines)} engines in {made.precision}, {len(built)} built, for {target}")
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
        target=options.target,
        precision=precisions,
        force=options.force,
        calibration=options.calibration,
        kernels=options.kernels or (),
        compute_capabilities=options.compute_capability,
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


_COMMANDS = {"generate": _generate, "inspect": _inspect, "bench": _bench, "build": _build, "export": _export, "doctor": _doctor}


if __name__ == "__main__":
    sys.exit(main())
