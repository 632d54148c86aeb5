"""Whether music follows its prompt while it plays: a machine names the instruments before and after a blend is turned.

In: a bundle, the rendered clips. Out: a line of Markdown for each place in time. Streams are made as those of `musiclm serve` are, by
windows of a second; the weights of two styles change places in the middle.

    python -m demo.live build/demo/bundle
"""

import argparse
from pathlib import Path

import numpy as np

import musiclm_deploy as md
from demo.captions import PLAYERS
from demo.compose import STYLES
from demo.data import Clips
from demo.evaluate import judge_of
from demo.judge import share
from demo.sizes import SIZES
from musiclm_deploy.serve.live.session import AHEAD_S, live_plan

_BEFORE_S, _AFTER_S = 8.0, 10.0  # of a stream, from its beginning to the change, and from there on
_JUDGED_S = 2.0  # of the windows that are judged
_WEIGHTS = 0.8, 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description="Whether music follows its prompt while it plays.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clips", type=Path, default=Path("build/clips"))
    parser.add_argument("--streams", type=int, default=40)
    arguments = parser.parse_args()
    judge = judge_of(Clips(arguments.clips, "train"), _JUDGED_S)
    styles = list(STYLES)
    pairs = [(styles[i % len(styles)], styles[(i + 1 + i // len(styles)) % len(styles)]) for i in range(arguments.streams)]
    named: dict[float, list[str]] = {}
    waits, starts = [], np.arange(-_JUDGED_S - 2.0, _AFTER_S - _JUDGED_S + 1e-9, _JUDGED_S)
    with md.load(arguments.bundle, device="cpu") as model:
        for seed, (first, second) in enumerate(pairs):
            wave, changed, heard = _turned(model, first, second, seed)
            waits.append(heard - changed)
            for start in starts:
                at = round((heard + start) * SIZES.sample_hz)
                named.setdefault(start, []).append(judge.name([wave[at : at + round(_JUDGED_S * SIZES.sample_hz)]])[0])
    print(f"From a change to the first sample that sounds otherwise: {np.median(waits):.2f} s, at most {max(waits):.2f} s.\n")
    print("| window, seconds from there | the first style | the second |\n|---|---|---|")
    for start, found in named.items():
        first, second = (share(found, [pair[index] for pair in pairs]) for index in (0, 1))
        print(f"| {start:+.1f} to {start + _JUDGED_S:+.1f} | {first} | {second} |")


def _turned(model: md.MusicLM, first: str, second: str, seed: int) -> tuple[np.ndarray, float, float]:
    """Return the wave of a stream, the second at which its blend was changed, and the one from which that is heard."""
    one, other = (PLAYERS[style][0] for style in (first, second))
    chunks, changed, heard = [], 0.0, float("inf")
    blends = [md.Blend({one: weight, other: 1 - weight}) for weight in _WEIGHTS]
    with model.stream(blends[0], seconds=None, seed=seed, ahead_s=AHEAD_S, **live_plan(model.bundle.manifest, 1.0)) as stream:
        for chunk in stream:
            chunks.append(chunk.audio)
            end = chunk.start_s + len(chunk.audio) / chunk.sample_rate
            if not changed and end >= _BEFORE_S:
                changed, heard = end, stream.set_prompt(blends[1])
            if end >= heard + _AFTER_S:
                return np.concatenate(chunks), changed, heard
    raise AssertionError("a stream without end has ended")


if __name__ == "__main__":
    main()
