"""What the loss of a narrower stage is measured on: a few texts, for which the fp32 model samples, or sounds of the user's own.

In: a loaded fp32 bundle, perhaps a folder of sounds. Out: `Calibration`, a latent for each row and, of sounds, the tokens to be fed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..runtime.music import Tokens
from ..runtime.musiclm import MusicLM
from ..runtime.primes import make_primes
from ..runtime.sound_files import FORMATS
from ..runtime.sounds import read_sound
from .errors import ExportError

TEXTS = (
    "calm piano in a ballroom",
    "a brass band, lively",
    "solo violin, slow and sad, in a minor key",
    "drums and bass guitar, fast",
    "a church organ",
    "an acoustic guitar, cheerful",
    "dark electronic music with synthesizers",
    "a flute over soft pads, relaxing",
)
MOST_SOUNDS = 16  # of a folder: measuring takes as long as they are many
_FRAMES = 100  # of each row, at most: some thousand tokens a stage, seconds on two cores


@dataclass(frozen=True)
class Calibration:
    """Rows that a model is measured on, all of as many frames of the codec."""

    latents: np.ndarray  # float32 [rows, dim_latent]
    frames: int
    tokens: list[Tokens] | None  # of sounds, one for each row; None where the fp32 model samples its own


def of_texts(model: MusicLM) -> Calibration:
    return Calibration(model.embed_text(texts_for(model)), _most_frames(model), None)


def texts_for(model: MusicLM) -> list[str]:
    """Return `TEXTS`, cut where the model's text tower takes fewer tokens than one of them has."""
    most, texts = model.bundle.manifest.mulan.max_tokens, []
    for text in TEXTS:
        while len(model.encoders.tokenizer.encode(text)) > most and len(text) > 1:
            text = text[:-1]
        texts.append(text)
    return texts


def of_sounds(model: MusicLM, paths: list[Path]) -> Calibration:
    """The beginnings of sounds, as long as the shortest of them or the model's window. Raises ExportError for one that cannot be used."""
    latents, tokens = [], []
    for path in paths:
        try:
            sound = read_sound(path)
        except ValueError as error:  # which names the file
            raise ExportError(f"calibration: {error}") from error
        try:
            prime = make_primes(sound, 1, model.bundle.manifest)[0]
            assert prime is not None
            tokens.append(model.encoders.prime_tokens(prime))
            latents.append(model.embed_audio(sound)[0])
        except ValueError as error:
            raise ExportError(f"calibration: {path}: {error}") from error
    frames = min(_most_frames(model), *(len(row.coarse) for row in tokens if row.coarse is not None))
    return Calibration(np.stack(latents), frames, tokens)


def sounds_in(folder: Path) -> list[Path]:
    """The sound files of a folder, at most `MOST_SOUNDS`, from all over it. Raises ExportError where there are none."""
    if not folder.is_dir():
        raise ExportError(f"calibration: {folder} is not a directory.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in FORMATS and path.is_file())
    if not paths:
        raise ExportError(f"calibration: {folder} has no sounds ({', '.join(FORMATS)}).")
    count = min(len(paths), MOST_SOUNDS)
    return [paths[index * len(paths) // count] for index in range(count)]


def _most_frames(model: MusicLM) -> int:
    manifest = model.bundle.manifest
    return min(manifest.coarse.max_length, manifest.fine.max_length, _FRAMES)
