"""`make demo`: a checkpoint in upstream's formats, the export, a wave from a sentence, and a word on each step.

In: the trained checkpoint in demo/checkpoint, if it is there. Without it the weights are random and the wave is noise: it then
shows that the whole path works, not what a trained model sounds like. Out: build/demo. A bundle that is there is replaced when the new one
is complete: a run that is interrupted leaves the old one.
"""

import argparse
import hashlib
import subprocess
import sys
import time
from pathlib import Path

import musiclm_deploy as md
from musiclm_deploy.commands.console import open_console

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "demo"
TRAINED = ROOT / "demo" / "checkpoint"
PROMPTS = ("calm solo piano", "a brass band, lively")
SECONDS = 4.0


def trained() -> dict[str, Path] | None:
    """{option of the export: file} of the checkpoint in the repository, None where there is none. Raises ValueError for a damaged file."""
    sums = TRAINED / "SHA256SUMS"
    if not sums.is_file():
        return None
    for line in sums.read_text(encoding="utf-8").splitlines():
        digest, name = line.split("  ")
        if hashlib.sha256((TRAINED / name).read_bytes()).hexdigest() != digest:
            raise ValueError(f"{TRAINED / name} is not the file that SHA256SUMS names: git checkout demo/checkpoint")
    paths = {name: TRAINED / f"{name}.pt" for name in ("semantic", "coarse", "fine", "codec", "quantizer")}
    return paths | {"semantic-features": TRAINED / "tokenizer.pt", "config": TRAINED / "config.json"}


def main() -> None:
    parser = argparse.ArgumentParser("demo/demo.py", description="Export the demo's model and generate two clips, explaining each step.")
    parser.add_argument("--out", type=Path, default=BUILD, metavar="DIR", help="for the bundle and the clips (default: build/demo)")
    open_console()  # a folder may have a name that this terminal cannot show
    out = parser.parse_args().out.resolve()
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)

    paths = trained()
    music = paths is not None
    print(f"1. Checkpoints of a small {'MusicLM' if music else 'untrained MusicLM'}, in the formats of audiolm-pytorch and musiclm-pytorch")
    if paths is None:
        from checkpoints import Preset, build_models, save_checkpoints  # they need torch, which takes seconds to import

        paths = save_checkpoints(build_models(Preset()), out / "checkpoints")
    for name, path in paths.items():
        print(f"   {name:17} {shown(path)}  {path.stat().st_size / 1e6:.1f} MB")

    options = [text for name, path in paths.items() for text in (f"--{name}", shown(path))]
    options += ["--out", shown(out / "bundle"), *(["--overwrite"] if (out / "bundle").exists() else [])]
    print(f"\n2. python export_all.py {' '.join(options)}", flush=True)
    exported = subprocess.run([sys.executable, "export_all.py", *options], cwd=ROOT)
    if exported.returncode:
        sys.exit(exported.returncode)  # the export has said why

    with md.load(out / "bundle", device="cpu") as model:
        for number, prompt in enumerate(PROMPTS, start=1):
            print(f"\n{2 + number}. A wave from a sentence: {prompt!r}, {SECONDS:g} s, seed 0")
            song = model.generate(prompt, seconds=SECONDS, seed=0)
            song.save(out / f"demo{number}.wav")
            for stage, seconds in song.stage_seconds.items():
                print(f"   {stage:10} {seconds:7.3f} s")
            print(f"   {'total':10} {song.timings['total']:7.3f} s: {song.speed} (below 1 is faster than it plays)")

    kind = "music" if music else "noise, since the weights are random"
    print(f"\nDone in {time.perf_counter() - started:.0f} s. The waves are {shown(out / 'demo1.wav')} and demo2.wav: {kind}.")
    print(f'Your own: .venv/bin/musiclm generate {shown(out / "bundle")} "a church organ" -o out.wav --seconds 8')


def shown(path: Path) -> str:
    """Return the path as it is typed in the checkout's root."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


if __name__ == "__main__":
    main()
