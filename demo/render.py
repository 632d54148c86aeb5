"""Pieces to sound: one MIDI file and one run of FluidSynth for a shard of pieces.

In: a folder, the numbers of pieces per split, the rate. Out: `<folder>/<split>-<shard>.flac`, the pieces one after the other, each exactly
SECONDS long and as loud as the others. What a piece is called follows from its seed, so there is no table beside them.
It needs Debian's packages fluidsynth and fluid-soundfont-gm; it does not know captions or models.

    python -m demo.render FOLDER [--pieces 2400 80 160]
"""

import argparse
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile

from demo.compose import DRUMS, SECONDS, Piece, compose

SAMPLE_HZ = 16000
SPLITS = {"train": 0, "valid": 1_000_000, "test": 2_000_000}  # split -> the seed of its first piece
SHARD = 40  # pieces in a file
SOUND_FONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
INSTALL = "apt-get install fluidsynth fluid-soundfont-gm"
_REST = 3.0  # seconds between two pieces of a shard, for their last notes to die away
_LOUDNESS, _PEAK = 0.1, 0.9  # root mean square of every piece, unless a sample would then lie above the peak
_TICKS = 480  # of a beat; at 120 beats per minute 960 a second
_PER_SECOND = 2 * _TICKS


def midi(pieces: list[Piece], path: Path) -> None:
    """Write `pieces` as one MIDI file, each beginning SECONDS + 3 s after the one before; tempi are in the notes' times."""
    import mido

    events: list[tuple[int, int, mido.Message]] = []  # (tick, programs and ends before beginnings, what)
    for number, piece in enumerate(pieces):
        offset = number * (SECONDS + _REST)
        for channel, program in piece.programs.items():
            message = mido.Message("program_change", channel=channel, program=program)
            events.append((round(max(0, offset - 0.1) * _PER_SECOND), 0, message))
        for note in piece.notes:
            begin, end = (round((offset + at) * _PER_SECOND) for at in (note.start, note.start + note.length))
            on = mido.Message("note_on", channel=note.channel, note=note.pitch, velocity=note.velocity)
            off = mido.Message("note_off", channel=note.channel, note=note.pitch, velocity=0)
            events += [(begin, 2, on), (max(end, begin + 1), 1, off)]
    events.append((round(len(pieces) * (SECONDS + _REST) * _PER_SECOND), 1, mido.Message("note_off", channel=DRUMS, note=0, velocity=0)))
    track, now = mido.MidiTrack(), 0
    for tick, _, message in sorted(events, key=lambda event: event[:2]):
        track.append(message.copy(time=tick - now))
        now = tick
    file = mido.MidiFile(type=0, ticks_per_beat=_TICKS)
    file.tracks.append(track)
    file.save(str(path))


def render(pieces: list[Piece], sample_hz: int = SAMPLE_HZ) -> np.ndarray:
    """-> float32 [len(pieces), SECONDS * sample_hz], mono. Raises RuntimeError where FluidSynth or the sound font is not installed."""
    if shutil.which("fluidsynth") is None or not SOUND_FONT.is_file():
        raise RuntimeError(f"rendering needs the program fluidsynth and the sound font {SOUND_FONT}: {INSTALL}")
    with tempfile.TemporaryDirectory() as folder:
        score, sound = Path(folder) / "score.mid", Path(folder) / "sound.wav"
        midi(pieces, score)
        options = ["-n", "-i", "-q", "-R", "0", "-C", "0", "-g", "0.5", "-r", str(sample_hz), "-T", "wav", "-O", "float", "-F", str(sound)]
        subprocess.run(["fluidsynth", *options, str(SOUND_FONT), str(score)], check=True, capture_output=True)
        wave = soundfile.read(sound, dtype="float32", always_2d=True)[0].mean(axis=1)
    length, stride = round(SECONDS * sample_hz), round((SECONDS + _REST) * sample_hz)
    waves = np.stack([wave[number * stride : number * stride + length] for number in range(len(pieces))])
    gain = np.minimum(_LOUDNESS / np.sqrt(np.square(waves).mean(axis=1)), _PEAK / np.abs(waves).max(axis=1))
    return waves * gain[:, None]


def seeds(split: str, pieces: int) -> list[int]:
    return [SPLITS[split] + number for number in range(pieces)]


def render_shards(folder: Path, pieces: dict[str, int], workers: int = 2) -> None:
    """Render what is not there yet; a shard appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = []
    for split, count in pieces.items():
        numbers = seeds(split, count)
        jobs += [(numbers[start : start + SHARD], folder / f"{split}-{start // SHARD:04}.flac") for start in range(0, count, SHARD)]

    def one(job: tuple[list[int], Path]) -> None:
        numbers, path = job
        if not path.exists():
            wave = render([compose(seed) for seed in numbers]).ravel()
            part = path.with_suffix(".part")
            soundfile.write(part, wave, SAMPLE_HZ, subtype="PCM_16", format="FLAC")
            part.replace(path)
            print(path.name, flush=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, jobs))


def main() -> None:
    parser = argparse.ArgumentParser(description="Pieces to sound.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pieces", type=int, nargs=3, default=(2400, 80, 160), metavar=("TRAIN", "VALID", "TEST"))
    arguments = parser.parse_args()
    render_shards(arguments.folder, dict(zip(SPLITS, arguments.pieces, strict=True)))


if __name__ == "__main__":
    main()
