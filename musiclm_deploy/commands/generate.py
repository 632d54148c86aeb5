"""`musiclm generate`: prompts to files of music."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ..runtime.user_files import expanded
from .again import Again, add_again_options
from .output import Outputs, Report, add_output_options
from .prompts import Listed, batches_of, read_prompts, read_text, seeds_of
from .stream import add_stream_options, check_usage, run_stream
from .values import RANDOM, seed, stage_value, stage_window

_ANNOUNCED_S = 30.0  # longer requests state their time and memory before they begin


def add_options(commands: Any) -> None:
    parser = commands.add_parser("generate", help="make music from a text", description="Make music from a text.")
    parser.add_argument(
        "bundle", type=expanded, metavar="BUNDLE", nargs="?", help="the folder that the export made; may be left out with --again"
    )
    parser.add_argument("text", metavar="TEXT", nargs="?", help="a description of the music; - reads it from standard input")
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="in place of TEXT, a file with a prompt a line, or JSON lines with text and seed; - is standard input",
    )
    parser.add_argument("--audio", type=expanded, metavar="FILE", help="a reference sound, in place of TEXT or together with it")
    parser.add_argument("--audio-weight", type=float, metavar="W", help="weight of --audio beside TEXT, from 0 to 1 (default: 0.5)")
    parser.add_argument("--prime", type=expanded, metavar="FILE", help="a sound that the music continues; alone, it is also the prompt")
    parser.add_argument("--without-prime", action="store_true", help="write only what follows the sound of --prime")
    add_output_options(parser)
    add_again_options(parser)
    add_stream_options(parser)
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="length, exact to the sample (default: that of a default clip, which inspect states)"
    )
    parser.add_argument("--seed", type=seed, metavar="N", help="the same seed gives the same music; random draws one (default: 0)")
    parser.add_argument("--num-samples", type=int, metavar="N", help="candidates; MuLaN picks the one closest to the text (default: 1)")
    parser.add_argument("--stop", choices=["exact", "eos"], help="exact length, or end where the model ends (default: exact)")
    parser.add_argument("--compat", choices=["upstream"], help="reproduce audiolm-pytorch token for token")
    parser.add_argument(
        "--plan",
        choices=["trained", "low_latency"],
        help="windows of the clip: as they were trained, or with short first ones, heard sooner (default: trained)",
    )
    parser.add_argument(
        "--max-semantic-tokens", type=int, metavar="N", help="most semantic tokens (default: as many as the length can hold)"
    )
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
        help="windows of clips longer than the trained ones, in tokens or frames; repeat for other stages (docs/long_clips.md)",
    )
    parser.add_argument("--tokens", type=expanded, metavar="FILE", help="continue from saved tokens (.npz)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "tensorrt"], help="where to run (default: auto)")
    parser.add_argument(
        "--weights",
        choices=["fp16", "bf16", "fp32", "int8"],
        help="type of the transformers' weights on a GPU, one that --kernels packed (default: fp16)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one per core)")
    parser.add_argument("--json", action="store_true", help="print what was made as one JSON object")
    parser.set_defaults(run=run, wrong_usage=parser.error)


def run(options: argparse.Namespace) -> int:
    from ..runtime.musiclm import load
    from ..runtime.progress import progress_bars

    if options.stream:
        check_usage(options)
    again = Again.of(options)
    if again is None:
        _check_usage(options)
    bundle = options.bundle if again is None else again.bundle(options)
    request = _request(options) if again is None else again.request(options)
    candidates = request["num_samples"] if request["tokens"] is None else len(request["tokens"])
    outputs = Outputs.of_each(options, len(request["seed"]), candidates, again)
    for output in outputs:
        output.check()
        if again is not None:
            again.check_outputs(output.sounds)
    placement = (
        {"device": options.device, "weights": options.weights or "fp16", "threads": options.threads}
        if again is None
        else again.placement(options)
    )
    with load(bundle, **placement) as model:
        if again is None:
            request["sampling"] = _sampling(options, model.bundle.manifest)
        else:
            again.check_bundle(model.bundle)
        if options.stream:
            return run_stream(model, options, request)
        outputs[0].check_sound(model.bundle.manifest.codec.sample_hz, request["seconds"])
        parts, seconds, takes = batches_of(request, model.estimate)
        if seconds >= _ANNOUNCED_S or len(parts) > 1:
            print(f"this will take {takes}.", file=sys.stderr)
        waiting, report = iter(outputs), outputs[0].report()
        for part in parts:
            with progress_bars(True) as progress:
                made = model.generate(**part, progress=progress)
            made = made if isinstance(made, list) else [made]
            for music in made:
                _write(options, music, next(waiting), again, report)
            if not options.json:
                spent = ", ".join(f"{stage} {taken:.2f}" for stage, taken in made[0].stage_seconds.items())
                print(f"{made[0].timings['total']:.2f} s ({spent}), {made[0].speed}", file=report)
    status = 0 if again is None else again.compare(made[0], sys.stderr if options.json else report)
    report.finish()
    return status


def _request(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `MusicLM.generate`, text and seed as lists, without the sampling, for which the bundle is needed."""
    from ..runtime.music import load_tokens
    from ..runtime.sounds import read_sound
    from ..runtime.windows import Window

    listed = [Listed(read_text(options.text))] if options.prompts is None else read_prompts(options.prompts)
    sound = None if options.audio is None else read_sound(options.audio)
    prompts = [_prompt(options, item.text, sound) for item in listed]
    return {
        "text": None if prompts == [None] else prompts,
        "prime": None if options.prime is None else read_sound(options.prime),
        "include_prime": not options.without_prime,
        "seconds": options.seconds,
        "seed": seeds_of(listed, 0 if options.seed is None else options.seed),
        "num_samples": 1 if options.num_samples is None else options.num_samples,
        "stop": options.stop or "exact",
        "compat": options.compat,
        "plan": options.plan or "trained",
        "max_semantic_tokens": options.max_semantic_tokens,
        "windows": {stage: Window(*sizes) for stage, sizes in options.window} or None,
        "tokens": None if options.tokens is None else load_tokens(options.tokens),
    }


def _write(options: argparse.Namespace, music: Any, output: Outputs, again: Again | None, report: Report) -> None:
    """Write one prompt's files, and print which."""
    files = output.write(music, None if again is None else again.record["candidate"])
    hz, seconds = output.mastering.sample_rate or music.sample_rate, len(music.audio) / music.sample_rate
    if options.json:
        scores = [candidate.score for candidate in music.candidates]
        facts = {"seconds": seconds, "sample_rate": hz, "seed": music.seed, "best": music.best, "scores": scores}
        facts |= {"timings": music.timings, "bundle_sha256": music.bundle_sha256}
        print(json.dumps({"files": files, "prompt": music.prompt, **facts}), file=report)
    else:
        seed = "" if options.seed != RANDOM and options.prompts is None else f", seed {music.seed}"
        which = "" if options.prompts is None else f": {' '.join(music.prompt.split())}"
        print(f"{', '.join(files)}: {seconds:g} s at {hz} Hz{seed}{which}", file=report)


def _check_usage(options: argparse.Namespace) -> None:
    """End with status 2 where options do not go together."""
    if options.bundle is None:
        options.wrong_usage("the following arguments are required: BUNDLE")
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


def _prompt(options: argparse.Namespace, text: str | None, sound: Any) -> Any:
    """Return a text, a sound, or both blended; None with a prime alone."""
    from ..runtime.prompts import Blend

    if sound is None:
        return text
    weight = 0.5 if options.audio_weight is None else options.audio_weight
    return Blend([(sound, 1.0)] if text is None else [(text, 1 - weight), (sound, weight)])


def _sampling(options: argparse.Namespace, manifest: Any) -> dict[str, Any]:
    """Return each stage's sampling. A value without a stage, as in `--temperature 0.9 --temperature fine=0.7`, is for all that take it."""
    from ..runtime.bundle import STAGES
    from ..runtime.sampling import SamplingConfig

    chosen: dict[str, dict[str, float]] = {}
    for name in ("temperature", "filter_thres", "cond_scale"):
        for stage, value in sorted(getattr(options, name), key=lambda pair: pair[0] != ""):
            guided = [s for s in STAGES if name != "cond_scale" or getattr(manifest, s).guidance]
            # where no stage is guided, the request refuses a scale for what it is
            for target in [stage] if stage else guided or STAGES:
                chosen.setdefault(target, {})[name] = value
    return {stage: SamplingConfig(**values) for stage, values in chosen.items()}
