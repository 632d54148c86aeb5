"""A page of examples: a prompt per style, its sound, its spectrogram.

In: a bundle and a folder. Out: `README.md` there, and for each prompt an Ogg file and a PNG. The same bundle gives the same sounds.

    python -m demo.show BUNDLE demo/examples            # writes them
    python -m demo.show BUNDLE demo/examples --check    # status 1 if the folder holds others than the bundle gives today
"""

import argparse
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

import musiclm_deploy as md

PROMPTS = {
    "piano": "calm solo piano, slow, in a major key",
    "music-box": "a little music box, cheerful and simple",
    "strings": "a string orchestra, mournful, slow",
    "flute": "a flute over soft pads, gentle",
    "guitar": "a fingerpicked acoustic guitar, happy, fast",
    "groove": "a bass and drums groove, lively, fast, full of notes",
    "brass": "a brass band, dramatic, in a minor key",
    "organ": "a church organ, serious, at walking pace",
}
SECONDS = 8.0  # two windows
_WINDOW, _DECIBELS = 1024, 70.0
_SAME = 0.98  # least correlation of a wave with its Vorbis file: the worst of them has 0.9957, and two performances have about 0


def name_of(hashes: Iterable[str]) -> str:
    """Return twelve digits that name a checkpoint by the SHA-256 of its files, whichever bundle was made of them."""
    return hashlib.sha256("".join(sorted(set(hashes))).encode()).hexdigest()[:12]


def page(checkpoint: str, seed: int) -> str:
    """Return the text of the README; checkpoint: its `name_of`."""
    lines = ["# What it sounds like", ""]
    for name, prompt in PROMPTS.items():
        lines += [f"**{prompt}** ([listen]({name}.ogg))", "", f"![spectrogram: {prompt}]({name}.png)", ""]
    made = f"Made with `python -m demo.show`, seed {seed}, {SECONDS:g} s each, in fp32"
    lines += [f"{made}, from the checkpoint {checkpoint} (by the SHA-256 of its files)."]
    return "\n".join(lines) + "\n"


def spectrogram(wave: np.ndarray, hz: int, title: str, path: Path) -> None:
    """wave float32 [t] -> a picture: seconds by kHz, in dB below its loudest point."""
    from matplotlib.figure import Figure

    frames = np.lib.stride_tricks.sliding_window_view(wave, _WINDOW)[:: _WINDOW // 4] * np.hanning(_WINDOW)
    levels = 20 * np.log10(np.abs(np.fft.rfft(frames)).T + 1e-9)
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axis: Any = figure.subplots()
    extent = (0, len(wave) / hz, 0, hz / 2000)
    image = axis.imshow(levels - levels.max(), origin="lower", aspect="auto", extent=extent, vmin=-_DECIBELS, vmax=0)
    axis.set(title=title, xlabel="time (s)", ylabel="frequency (kHz)")
    figure.colorbar(image, label="level (dB)")
    figure.savefig(path, dpi=70)


def show(bundle: Path, folder: Path, seed: int = 0) -> None:
    """Write the page, the sounds and the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    with md.load(bundle, device="cpu") as model:
        for name, prompt in PROMPTS.items():
            song = model.generate(prompt, seconds=SECONDS, seed=seed)
            soundfile.write(folder / f"{name}.ogg", song.audio, song.sample_rate, format="OGG", subtype="VORBIS")
            spectrogram(song.audio, song.sample_rate, prompt, folder / f"{name}.png")
        checkpoint = name_of(source["sha256"] for source in model.bundle.manifest.sources.values())
    (folder / "README.md").write_text(page(checkpoint, seed), encoding="utf-8")


def differences(bundle: Path, folder: Path, seed: int = 0) -> list[str]:
    """Return a line for each file in the folder that `show` would write otherwise now. Pictures are not compared."""
    found = []
    with md.load(bundle, device="cpu") as model:
        checkpoint = name_of(source["sha256"] for source in model.bundle.manifest.sources.values())
        if (folder / "README.md").read_text(encoding="utf-8") != page(checkpoint, seed):
            found.append(f"{folder / 'README.md'}: another text, or another checkpoint than {checkpoint}")
        for name, prompt in PROMPTS.items():
            song = model.generate(prompt, seconds=SECONDS, seed=seed)
            kept, hz = soundfile.read(folder / f"{name}.ogg", dtype="float32")
            alike = np.corrcoef(kept, song.audio)[0, 1] if (len(kept), hz) == (len(song.audio), song.sample_rate) else 0.0
            if not alike >= _SAME:
                found.append(f"{folder / name}.ogg: another sound than the bundle gives (correlation {alike:.3f}, least {_SAME})")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="A page of examples: prompts, sounds, spectrograms.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if the folder holds something else")
    arguments = parser.parse_args()
    if not arguments.check:
        show(arguments.bundle, arguments.folder)
    elif found := differences(arguments.bundle, arguments.folder):
        sys.exit("\n".join([*found, f"Write it again: python -m demo.show {arguments.bundle} {arguments.folder}"]))


if __name__ == "__main__":
    main()
