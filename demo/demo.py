"""`make demo`: checkpoints in upstream's formats, the export, a wave from a sentence, and a word on each step.

The weights are random, so the wave is noise: it shows that the whole path works, not what a trained model sounds like.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

from checkpoints import Preset, build_models, save_checkpoints

import musiclm_deploy as md

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "demo"
PROMPT = "calm piano in a ballroom"
SECONDS = 2.0


def main() -> None:
    started = time.perf_counter()
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)

    print("1. Checkpoints of a small, untrained MusicLM, in the formats of audiolm-pytorch and musiclm-pytorch")
    paths = save_checkpoints(build_models(Preset()), BUILD / "checkpoints")
    for name, path in paths.items():
        print(f"   {name:10} {path.relative_to(ROOT)}  {path.stat().st_size / 1e6:.1f} MB")

    options = [text for name, path in paths.items() for text in (f"--{name}", str(path.relative_to(ROOT)))]
    print(f"\n2. python export_all.py {' '.join(options)} --out build/demo/bundle", flush=True)
    subprocess.run([sys.executable, "export_all.py", *options, "--out", "build/demo/bundle"], check=True, cwd=ROOT)

    print(f"\n3. A wave from a sentence: {PROMPT!r}, {SECONDS:g} s, seed 0")
    with md.load(BUILD / "bundle", device="cpu") as model:
        music = model.generate(PROMPT, seconds=SECONDS, seed=0)
    music.save(BUILD / "demo.wav")
    for stage, seconds in music.timings.items():
        if stage not in ("total", "real_time_factor"):
            print(f"   {stage:10} {seconds:7.3f} s")
    total, factor = music.timings["total"], music.timings["real_time_factor"]
    print(f"   {'total':10} {total:7.3f} s: real-time factor {factor:.2f} (below 1 is faster than it plays)")

    print(f"\nDone in {time.perf_counter() - started:.0f} s. The wave is build/demo/demo.wav: noise, since the weights are random.")
    print('Your own: .venv/bin/musiclm generate build/demo/bundle "brass band" -o out.wav --seconds 5')


if __name__ == "__main__":
    main()
