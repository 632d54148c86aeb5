"""What the demo's model can do, in numbers, on captions and pieces it was never trained on.

In: bundles of one checkpoint, the checkpoint, the rendered clips. Out: two tables in Markdown that name commit, machine and command, and
JSON. The first bundle is the reference: the others, and other guidance, and the conditioning of upstream's MusicLM, are compared with
it clip by clip, on the same noise.

    python -m demo.evaluate build/demo/bundle [build/int8 ...] --into demo/README.md
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
from demo.compose import STYLES
from demo.data import Clips
from demo.judge import Judge, confusion, paired, share
from demo.sizes import SIZES, codec
from demo.train_codec import SpectralDistance, si_snr
from musiclm_deploy.runtime.bench.record import circumstances, processors
from musiclm_deploy.runtime.bundle import Sampling

_TRAINED_PIECES = 800  # that the judge learns from, one window each
_BATCH = 8
_SILENCE = 1e-3  # root mean square over half a second; clips have 0.1
_MARKS = "<!-- begin: demo.evaluate -->\n", "<!-- end: demo.evaluate -->\n"
Rows = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description="What the model can do, on captions and pieces it was never trained on.")
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE", help="the reference first, then others of the same checkpoint")
    parser.add_argument("--checkpoint", type=Path, default=Path("demo/checkpoint"))
    parser.add_argument("--clips", type=Path, default=Path("build/clips"))
    parser.add_argument("--out", type=Path, default=Path("build/evaluation"))
    parser.add_argument("--per-style", type=int, default=20, help="prompts of each style; there are 20 test pieces of each")
    parser.add_argument("--guidance", type=float, nargs="*", default=[1, 2, 3, 4, 5], help="of the coarse stage, to compare")
    parser.add_argument("--into", type=Path, help="a Markdown file, between whose marks the tables are written")
    arguments = parser.parse_args()
    if arguments.into is not None and not all(mark in arguments.into.read_text(encoding="utf-8") for mark in _MARKS):
        parser.error(f"{arguments.into} has no lines {' and '.join(mark.strip() for mark in _MARKS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    test = Clips(arguments.clips, "test")
    judge, real = _judge(Clips(arguments.clips, "train")), _windows(test)
    styles = [piece.style for piece in test.pieces]
    parts: Rows = {"judge, on real test clips": share(judge.name(real), styles)}
    parts |= _codec(arguments.checkpoint, real, judge, styles)
    with md.load(arguments.bundles[0], device="cpu") as model:
        parts |= _retrieval(model, test, real, styles)
    generated = _compare(arguments, test, real, judge)
    around = circumstances(f"python -m demo.evaluate {shlex.join(sys.argv[1:])}", processors())
    result = {"circumstances": around, "parts": parts, "generated": generated}
    (arguments.out / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    text = _tables(parts, generated, around)
    (arguments.out / "evaluation.md").write_text(text, encoding="utf-8")
    if arguments.into is not None:
        page, (begin, end) = arguments.into.read_text(encoding="utf-8"), _MARKS
        before, after = page.split(begin)[0], page.split(end)[1]
        arguments.into.write_text(f"{before}{begin}{text}{end}{after}", encoding="utf-8")
    print(text)


def _windows(clips: Clips, count: int | None = None) -> np.ndarray:
    """[pieces, samples]: of each piece a window that begins where a bar may or may not."""
    samples = round(SIZES.window_seconds * SIZES.sample_hz)
    pieces = range(len(clips) if count is None else min(count, len(clips)))
    return np.stack([clips.part(piece, samples * (piece // len(STYLES) % 4), samples).numpy() for piece in pieces])


def _judge(clips: Clips) -> Judge:
    waves = _windows(clips, _TRAINED_PIECES)
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


def _compare(arguments: argparse.Namespace, test: Clips, real: np.ndarray, judge: Judge) -> dict[str, dict[str, Any]]:
    """Every way to generate -> what came of it."""
    default = Sampling().cond_scale
    ways: dict[str, tuple[Path, dict[str, Any]]] = {arguments.bundles[0].name: (arguments.bundles[0], {})}
    ways |= {bundle.name: (bundle, {}) for bundle in arguments.bundles[1:]}
    ways["upstream's conditioning"] = (arguments.bundles[0], {"compat": "upstream", "seconds": None})  # its window, a little shorter
    for scale in arguments.guidance:
        if scale != default:
            ways[f"guidance {scale:g}"] = (arguments.bundles[0], {"sampling": {"coarse": md.SamplingConfig(cond_scale=scale)}})
    pieces = list(range(min(arguments.per_style * len(STYLES), len(test))))
    styles, results, reference = [test.pieces[piece].style for piece in pieces], {}, None
    for name, (bundle, options) in ways.items():
        with md.load(bundle, device="cpu") as model:
            results[name], found = _generated(name, model, test, pieces, real, judge, options)
        reference = reference or found
        results[name]["against the first, points"] = paired(found, reference, styles) if found is not reference else ""
    return results


def _generated(
    name: str, model: Any, test: Clips, pieces: list[int], real: np.ndarray, judge: Judge, options: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """A clip for a test caption of each piece, with the piece's number as its seed."""
    prompts, styles = [test.caption(piece, 1) for piece in pieces], [test.pieces[piece].style for piece in pieces]
    songs, started = [], time.perf_counter()
    for first in tqdm(range(0, len(pieces), _BATCH), desc=name, unit="batch"):
        part = slice(first, first + _BATCH)
        songs += model.generate(prompts[part], seed=pieces[part], **({"seconds": SIZES.window_seconds} | options))
    took = time.perf_counter() - started
    half = SIZES.sample_hz // 2
    # Upstream's conditioning comes with its early ends: what is shorter than half a second counts as silence.
    waves = [np.pad(song.audio, (0, max(half - len(song.audio), 0))) for song in songs]
    found = judge.name(waves)
    shuffled = np.random.default_rng(0).permutation(len(pieces))
    texts = model.embed_text(prompts)
    sounds = np.concatenate([model.embed_audio((wave, SIZES.sample_hz)) for wave in waves])
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
        "s per s": f"{took * SIZES.sample_hz / sum(map(len, waves)):.2f}",
        "confusion": confusion(found, styles),
    }, found


def _tables(parts: Rows, generated: dict[str, dict[str, Any]], around: dict[str, Any]) -> str:
    """Markdown. What a cell of the second table is stands below it."""
    columns = [name for name in next(iter(generated.values())) if name != "confusion"]
    lines = ["| the parts | |", "|---|---|", *(f"| {name} | {value} |" for name, value in parts.items()), ""]
    lines += [f"| generated | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(row[column] for column in columns)} |" for name, row in generated.items()]
    notes = (
        "Shares with Wilson's interval of 95 %. Named as prompted: by the judge, chance 12.5 %; against the first: the difference to the",
        "first row in points, clip by clip on the same noise, with its interval of 95 %. MuLaN: cosine of prompt and clip. Fréchet:",
        "distance to the real test clips in the judge's features. Silent: half a second of silence; clipped: a sample at full scale.",
        f"s per s: seconds of computing per second of music, {_BATCH} prompts at once. Guidance is {Sampling().cond_scale:g} by default.",
        f"Commit {around['git']}, {around['machine']}: `{around['command']}`.",
    )
    return "\n".join([*lines, "", *notes]) + "\n"


if __name__ == "__main__":
    main()
