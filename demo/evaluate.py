"""What the demo's model can do, in numbers, on captions and pieces it was never trained on.

In: a bundle, the checkpoint it was exported from, the rendered clips. Out: a table in Markdown and JSON that name commit and machine.

    python -m demo.evaluate BUNDLE --checkpoint demo/checkpoint --clips build/clips --out build/evaluation [--per-style 20]
"""

import argparse
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import musiclm_deploy as md
from demo.compose import STYLES
from demo.data import Clips
from demo.judge import Judge, confusion, share
from demo.sizes import SIZES, codec
from demo.train_codec import SpectralDistance, si_snr

_TRAINED_PIECES = 800  # that the judge learns from, one window each
_BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description="What the model can do, on captions and pieces it was never trained on.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=Path("demo/checkpoint"))
    parser.add_argument("--clips", type=Path, default=Path("build/clips"))
    parser.add_argument("--out", type=Path, default=Path("build/evaluation"))
    parser.add_argument("--per-style", type=int, default=20, help="prompts of each style; there are 20 test pieces of each")
    parser.add_argument("--guidance", type=float, default=None, help="of the coarse stage; by default the runtime's")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    test = Clips(arguments.clips, "test")
    judge, real = _judge(Clips(arguments.clips, "train")), _windows(test)
    styles = [piece.style for piece in test.pieces]
    result: dict[str, Any] = {"commit": _commit(), "machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    result["judge on real test clips"] = share(judge.name(real), styles)
    result |= _codec(arguments.checkpoint, real, judge, styles)
    with md.load(arguments.bundle, device="cpu") as model:
        result |= _retrieval(model, test, real, styles)
        result |= _generated(model, test, real, judge, arguments.per_style, arguments.guidance, arguments.out)
    (arguments.out / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    lines = [f"| {name} | {value} |" for name, value in result.items() if not isinstance(value, dict)]
    table = "\n".join(["| what | value |", "|---|---|", *lines]) + "\n"
    (arguments.out / "evaluation.md").write_text(table, encoding="utf-8")
    print(table)


def _windows(clips: Clips, count: int | None = None) -> np.ndarray:
    """[pieces, samples]: of each piece a window that begins where a bar may or may not."""
    samples = round(SIZES.window_seconds * SIZES.sample_hz)
    pieces = range(len(clips) if count is None else min(count, len(clips)))
    return np.stack([clips.part(piece, samples * (piece // len(STYLES) % 4), samples).numpy() for piece in pieces])


def _judge(clips: Clips) -> Judge:
    waves = _windows(clips, _TRAINED_PIECES)
    return Judge(waves, [piece.style for piece in clips.pieces[: len(waves)]], SIZES.sample_hz)


@torch.no_grad()
def _codec(checkpoint: Path, real: np.ndarray, judge: Judge, styles: list[str]) -> dict[str, Any]:
    model = codec(SIZES)
    model.load_state_dict(torch.load(checkpoint / "codec.pt", map_location="cpu", weights_only=True)["model"])
    model.eval()
    waves = torch.from_numpy(real)
    made = torch.cat([model(part, return_recons_only=True)[:, 0] for part in waves.split(_BATCH)])
    codes = torch.cat([model(part, return_encoded=True)[1] for part in waves.split(_BATCH)])
    logarithmic, linear = SpectralDistance(SIZES.sample_hz)(made, waves)
    used = [len(codes[..., quantizer].unique()) for quantizer in range(codes.shape[-1])]
    return {
        "codec: SI-SNR": f"{si_snr(made, waves).mean():.1f} dB (median {si_snr(made, waves).median():.1f})",
        "codec: multi-scale log-mel distance": f"{logarithmic:.3f} nats",
        "codec: error of magnitudes": f"{linear:.1%}",
        "codec: entries used, per quantizer": f"{used} of {SIZES.codebook_size}",
        "judge on test clips through the codec": share(judge.name(made.numpy()), styles),
        "Fréchet distance, through the codec": f"{judge.frechet(made.numpy(), real):.2f}",
    }


def _retrieval(model: Any, test: Clips, real: np.ndarray, styles: list[str]) -> dict[str, Any]:
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


def _generated(
    model: Any, test: Clips, real: np.ndarray, judge: Judge, per_style: int, guidance: float | None, out: Path
) -> dict[str, Any]:
    """A clip for a test caption of each of the first pieces, with the piece's number as its seed."""
    pieces = list(range(min(per_style * len(STYLES), len(test))))
    prompts, styles = [test.caption(piece, 1) for piece in pieces], [test.pieces[piece].style for piece in pieces]
    sampling = None if guidance is None else {"coarse": md.SamplingConfig(cond_scale=guidance)}
    songs, started = [], time.perf_counter()
    for first in range(0, len(pieces), _BATCH):
        part = slice(first, first + _BATCH)
        options: dict[str, Any] = {} if sampling is None else {"sampling": sampling}
        songs += model.generate(prompts[part], seconds=SIZES.window_seconds, seed=pieces[part], **options)
    took = time.perf_counter() - started
    waves = np.stack([song.audio for song in songs])
    np.save(out / "generated.npy", waves)
    found = judge.name(waves)
    shuffled = np.random.default_rng(0).permutation(len(pieces))
    texts = model.embed_text(prompts)
    sounds = np.concatenate([model.embed_audio((wave, SIZES.sample_hz)) for wave in waves])
    right, wrong = (texts * sounds).sum(1), (texts[shuffled] * sounds).sum(1)
    quiet = np.sqrt(np.square(waves).reshape(len(waves), -1, SIZES.sample_hz // 2).mean(-1)).min(axis=1) < 1e-3
    return {
        "generated clips named as prompted": share(found, styles),
        "the same with the prompts shuffled": share(found, [styles[index] for index in shuffled]),
        "MuLaN score, own prompt": f"{right.mean():.3f} ± {right.std():.3f}",
        "MuLaN score, another's prompt": f"{wrong.mean():.3f} ± {wrong.std():.3f}",
        "Fréchet distance, generated": f"{judge.frechet(waves, real):.2f}",
        "clips with half a second of silence": f"{quiet.mean():.1%}",
        "clips with a clipped sample": f"{(np.abs(waves).max(axis=1) >= 1).mean():.1%}",
        "seconds of computing per second of music": f"{took / (len(pieces) * SIZES.window_seconds):.2f}",
        "named": confusion(found, styles),
    }


def _commit() -> str:
    root = Path(__file__).resolve().parent.parent
    return subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
