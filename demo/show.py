"""A page of examples: a prompt per style, its sound, its spectrogram.

In: a bundle and a folder. Out: `README.md` there, and for each prompt an Ogg file and a PNG. The same bundle gives the same sounds.

    python -m demo.show BUNDLE demo/examples
"""

import argparse
import json
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
    """Write the page."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["# What it sounds like", ""]
    with md.load(bundle, device="cpu") as model:
        for name, prompt in PROMPTS.items():
            song = model.generate(prompt, seconds=SECONDS, seed=seed)
            soundfile.write(folder / f"{name}.ogg", song.audio, song.sample_rate, format="OGG", subtype="VORBIS")
            spectrogram(song.audio, song.sample_rate, prompt, folder / f"{name}.png")
            lines += [f"**{prompt}** ([listen]({name}.ogg))", "", f"![spectrogram: {prompt}]({name}.png)", ""]
    lines += [f"Made with `python -m demo.show`, seed {seed}, {SECONDS:g} s each, from the bundle {json.dumps(song.bundle_sha256[:12])}."]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="A page of examples: prompts, sounds, spectrograms.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    show(arguments.bundle, arguments.folder)


if __name__ == "__main__":
    main()
