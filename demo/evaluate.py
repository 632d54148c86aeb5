"""What the demo's model can do, in numbers, on captions and pieces it was never trained on.

In: bundles of one checkpoint, the checkpoint, the rendered clips. Out: tables in Markdown that name commit, machine and command, and
JSON. The first bundle is the reference: the others, short first windows (`plan="low_latency"`), other guidance, and the conditioning of
upstream's MusicLM are compared with it clip by clip, on the same noise. `--plans` compares only the two plans, with first windows of
several lengths, on clips of one trained window and of several.

    python -m demo.evaluate build/demo/bundle [build/int8 ...] --into demo/README.md
    python -m demo.evaluate build/demo/bundle --plans --into demo/README.md
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import musiclm_deploy as md
from demo.compose import SECONDS, STYLES
from demo.data import Clips
from demo.judge import Judge, confusion, paired, share
from demo.sizes import SIZES, codec
from demo.train_codec import SpectralDistance, si_snr
from musiclm_deploy.runtime.backend import available_processors
from musiclm_deploy.runtime.bench.record import circumstances
from musiclm_deploy.runtime.bundle import Sampling

_TRAINED_PIECES = 800  # that the judge learns from, one window each
_BATCH = 8
_LENGTHS = SIZES.window_seconds, 24.0  # of clips, to compare the plans: one trained window, and several
_SILENCE = 1e-3  # root mean square over half a second; clips have 0.1
Rows = dict[str, str]
Ways = dict[str, tuple[Path, dict[str, Any]]]  # name -> bundle and settings of `generate`
Results = dict[str, dict[str, Any]]  # name of a way -> its row of the table


def main() -> None:
    parser = argparse.ArgumentParser(description="What the model can do, on captions and pieces it was never trained on.")
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE", help="the reference first, then others of the same checkpoint")
    parser.add_argument("--checkpoint", type=Path, default=Path("demo/checkpoint"))
    parser.add_argument("--clips", type=Path, default=Path("build/clips"))
    parser.add_argument("--out", type=Path, default=Path("build/evaluation"))
    parser.add_argument("--per-style", type=int, default=20, help="prompts of each style; there are 20 test pieces of each")
    parser.add_argument("--guidance", type=float, nargs="*", default=[1, 2, 3, 4, 5], help="of the coarse stage, to compare")
    parser.add_argument("--plans", type=float, nargs="*", metavar="SECONDS", help="compare the plans, on clips of these lengths (4 24)")
    parser.add_argument("--first-window", type=float, nargs="*", default=[0.25, 0.4, 0.8], help="seconds, to compare with --plans")
    parser.add_argument("--takes", type=int, default=1, help="clips of each prompt, each on noise of its own")
    parser.add_argument("--into", type=Path, help="a Markdown file, between whose marks the tables are written")
    arguments = parser.parse_args()
    marks = [f"<!-- {place}: demo.evaluate{'' if arguments.plans is None else ' plans'} -->\n" for place in ("begin", "end")]
    if arguments.into is not None and not all(mark in arguments.into.read_text(encoding="utf-8") for mark in marks):
        parser.error(f"{arguments.into} has no lines {' and '.join(mark.strip() for mark in marks)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    test = Clips(arguments.clips, "test")
    judge, real = judge_of(Clips(arguments.clips, "train")), _windows(test)
    styles, first = [piece.style for piece in test.pieces], arguments.bundles[0]
    pieces = range(min(arguments.per_style * len(STYLES), len(test)))
    takes = [piece + take * len(test) for take in range(arguments.takes) for piece in pieces]
    parts: Rows = {"judge, on real test clips": share(judge.name(real), styles)}
    if arguments.plans is None:
        parts |= _codec(arguments.checkpoint, real, judge, styles)
        with md.load(first, device="cpu") as model:
            parts |= _retrieval(model, test, real, styles)
        ways = one_window(arguments.bundles, arguments.guidance)
        generated = {SIZES.window_seconds: compare(ways, SIZES.window_seconds, test, takes, real, judge)}
    else:
        whole = _windows(test, seconds=SECONDS)
        parts |= {f"judge, on whole test pieces of {SECONDS:g} s": share(judge.name(whole), styles)}
        generated = {}
        for seconds in arguments.plans or _LENGTHS:
            like = whole if seconds > SIZES.window_seconds else real
            generated[seconds] = compare(plans(first, arguments.first_window), seconds, test, takes, like, judge)
    around = circumstances(f"python -m demo.evaluate {shlex.join(sys.argv[1:])}", available_processors())
    text, name = tables(parts, generated, around), "evaluation" if arguments.plans is None else "plans"
    result = {"circumstances": around, "parts": parts, "generated": generated}
    (arguments.out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (arguments.out / f"{name}.md").write_text(text, encoding="utf-8")
    if arguments.into is not None:
        page, (begin, end) = arguments.into.read_text(encoding="utf-8"), marks
        before, after = page.split(begin)[0], page.split(end)[1]
        arguments.into.write_text(f"{before}{begin}{text}{end}{after}", encoding="utf-8")
    print(text)


def _windows(clips: Clips, count: int | None = None, seconds: float = SIZES.window_seconds) -> np.ndarray:
    """Return float32 [pieces, samples]: a window of each piece, which begins where a bar may or may not."""
    samples = round(seconds * SIZES.sample_hz)
    fit = round(SECONDS * SIZES.sample_hz) // samples
    pieces = range(len(clips) if count is None else min(count, len(clips)))
    return np.stack([clips.part(piece, samples * (piece // len(STYLES) % fit), samples).numpy() for piece in pieces])


def judge_of(clips: Clips, seconds: float = SIZES.window_seconds) -> Judge:
    """Return a judge of windows of so many seconds, fitted to training pieces."""
    waves = _windows(clips, _TRAINED_PIECES, seconds)
    return Judge(waves, [piece.style for piece in clips.pieces[: len(waves)]], SIZES.sample_hz)


@torch.no_grad()
def _codec(checkpoint: Path, real: np.ndarray, judge: Judge, styles: list[str]) -> Rows:
    model = codec(SIZES)
    model.load_state_dict(torch.load(checkpoint / "codec.pt", map_location="cpu", weights_only=True)["model"])
    model.eval()
    waves = torch.from_numpy(real)
    codes = torch.cat([model(part, return_encoded=True)[1] for part in waves.split(_BATCH)])
    made = torch.cat([model.decode_from_codebook_indices(part)[:, 0] for part in codes.split(_BATCH)])
    logarithmic, linear, flutter = SpectralDistance(SIZES.sample_hz)(made, waves)
    used = [len(codes[..., quantizer].unique()) for quantizer in range(codes.shape[-1])]
    return {
        "judge, on test clips through the codec": share(judge.name(made.numpy()), styles),
        "codec: SI-SNR": f"{si_snr(made, waves).mean():.1f} dB (median {si_snr(made, waves).median():.1f})",
        "codec: multi-scale log-mel distance": f"{logarithmic:.3f} nats",
        "codec: difference of the log-mel bands' flutter": f"{flutter:.3f} nats a frame",
        "codec: error of magnitudes": f"{linear:.1%}",
        "codec: entries used, of the least used quantizer": f"{min(used)} of {SIZES.codebook_size}",
        "Fréchet distance, real test clips to the same through the codec": f"{judge.frechet(made.numpy(), real):.2f}",
        "Fréchet distance, one half of the real test clips to the other": f"{judge.frechet(real[::2], real[1::2]):.2f}",
    }


def _retrieval(model: Any, test: Clips, real: np.ndarray, styles: list[str]) -> Rows:
    """Each test caption looks for its clip among all test clips."""
    texts = model.embed_text([test.caption(piece, 0) for piece in range(len(test))])
    sounds = np.concatenate([model.embed_audio((wave, SIZES.sample_hz)) for wave in real])
    order = np.argsort(-(texts @ sounds.T), axis=1)
    nearest = [styles[index] for index in order[:, 0]]
    five = [style if style in [styles[index] for index in row[:5]] else "" for style, row in zip(styles, order, strict=True)]
    places = [str(index) for index in range(len(styles))]
    exact = [str(index) for index in order[:, 0]]
    exact5 = [place if int(place) in row[:5] else "" for place, row in zip(places, order, strict=True)]
    return {
        "MuLaN: nearest clip has the caption's style": share(nearest, styles),
        "MuLaN: one of the five nearest has": share(five, styles),
        "MuLaN: nearest clip is the caption's own": share(exact, places),
        "MuLaN: among the five nearest": share(exact5, places),
    }


def one_window(bundles: list[Path], guidance: list[float]) -> Ways:
    """Return the ways to generate a clip of one trained window; the first is the reference of all others."""
    first = bundles[0]
    ways: Ways = {bundle.name: (bundle, {}) for bundle in bundles}
    ways["low latency"] = (first, {"plan": "low_latency"})
    ways["upstream's conditioning"] = (first, {"compat": "upstream", "seconds": None})  # its window, a little shorter
    for scale in guidance:
        if scale != Sampling().cond_scale:
            ways[f"guidance {scale:g}"] = (first, {"sampling": {"coarse": md.SamplingConfig(cond_scale=scale)}})
    return ways


def plans(bundle: Path, first_windows: list[float]) -> Ways:
    """Return the trained windows, which are the reference, and low latency with first windows of these seconds."""
    ways: Ways = {"trained": (bundle, {"plan": "trained"})}
    for seconds in first_windows:
        ways[f"low latency, {seconds:g} s"] = (bundle, {"plan": "low_latency", "first_window_s": seconds})
    return ways


def compare(ways: Ways, seconds: float, test: Clips, takes: list[int], real: np.ndarray, judge: Judge) -> Results:
    """Generate the same clips in every way; return a row for each way.

    takes: seeds, one for each clip; the prompt is a caption of the piece of that number, counted round and round.
    """
    styles, results, reference = [test.pieces[take % len(test)].style for take in takes], {}, None
    for name, (bundle, options) in ways.items():
        with md.load(bundle, device="cpu") as model:
            results[name], found = _generated(name, model, test, takes, real, judge, {"seconds": seconds} | options)
        reference = reference or found
        results[name]["against the first, points"] = paired(found, reference, styles) if found is not reference else ""
    return results


def _generated(
    name: str, model: Any, test: Clips, takes: list[int], real: np.ndarray, judge: Judge, options: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return a way's row of the table, and the style that the judge hears in each clip."""
    pieces = [take % len(test) for take in takes]
    prompts, styles = [test.caption(piece, 1) for piece in pieces], [test.pieces[piece].style for piece in pieces]
    songs, started = [], time.process_time()
    for first in tqdm(range(0, len(takes), _BATCH), desc=name, unit="batch"):
        part = slice(first, first + _BATCH)
        songs += model.generate(prompts[part], seed=takes[part], **options)
    took = time.process_time() - started
    half = SIZES.sample_hz // 2
    # Upstream's conditioning comes with its early ends: what is shorter than half a second counts as silence.
    waves = [np.pad(song.audio, (0, max(half - len(song.audio), 0))) for song in songs]
    found = judge.name(waves)
    shuffled = np.random.default_rng(0).permutation(len(pieces))
    texts = model.embed_text(prompts)
    sounds = np.stack([_latent(model, wave) for wave in waves])
    right, wrong = (texts * sounds).sum(1), (texts[shuffled] * sounds).sum(1)
    loudness = [[np.sqrt(np.square(wave[start : start + half]).mean()) for start in range(0, len(wave), half)] for wave in waves]
    return {
        "named as prompted": share(found, styles),
        "as another's prompt": share(found, [styles[index] for index in shuffled]),
        "MuLaN, own prompt": f"{right.mean():.3f} ± {right.std():.3f}",
        "another's": f"{wrong.mean():.3f} ± {wrong.std():.3f}",
        "Fréchet": f"{judge.frechet(waves, real):.2f}",
        "silent": f"{np.mean([min(levels) < _SILENCE for levels in loudness]):.1%}",
        "clipped": f"{np.mean([np.abs(wave).max() >= 1 for wave in waves]):.1%}",
        "CPU": f"{took * SIZES.sample_hz / sum(map(len, waves)):.2f}",
        "confusion": confusion(found, styles),
    }, found


def _latent(model: Any, wave: np.ndarray) -> np.ndarray:
    """Return MuLaN's latent of a clip, float32 [dim_latent]: the mean over whole parts of the length that MuLaN was trained on."""
    samples = round(SIZES.window_seconds * SIZES.sample_hz)
    parts = [wave[start : start + samples] for start in range(0, max(len(wave) - samples, 0) + 1, samples)]
    return np.mean([model.embed_audio((part, SIZES.sample_hz))[0] for part in parts], axis=0)


def tables(parts: Rows, generated: dict[float, Results], around: dict[str, Any]) -> str:
    """Return the tables as Markdown, that of generated clips for each length in seconds, with an explanation of their columns."""
    lines = ["| the parts | |", "|---|---|", *(f"| {name} | {value} |" for name, value in parts.items())]
    for seconds, rows in generated.items():
        columns = [name for name in next(iter(rows.values())) if name != "confusion"]
        lines += ["", f"| generated, {seconds:g} s | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        lines += [f"| {name} | {' | '.join(row[column] for column in columns)} |" for name, row in rows.items()]
    config = md.GenerationConfig()
    notes = (
        "Shares with Wilson's interval of 95 %. Named as prompted: by the judge, chance 12.5 %; against the first: the difference to the",
        "first row in points, clip by clip on the same noise, with its interval of 95 %. MuLaN: cosine of prompt and clip, of a long clip",
        f"the mean over its parts of {SIZES.window_seconds:g} s. Fréchet: distance to the real test clips in the judge's features, of long",
        "clips to the whole pieces. Silent: half a second of silence; clipped: a sample at full scale. CPU: seconds of processor time per",
        f"second of music, {_BATCH} prompts at once. Guidance is {Sampling().cond_scale:g} by default. Low latency: first windows of",
        f"{config.first_window_s:g} s unless the row names others, each going {config.window_growth:g} times as far as the one before,",
        "up to the trained length.",
        f"Commit {around['git']}, {around['machine']}: `{around['command']}`.",
    )
    return "\n".join([*lines, "", *notes]) + "\n"


if __name__ == "__main__":
    main()
