"""The clips as tokens, once: semantic tokens, codes and conditioning codes, so that no step of a transformer runs codec or MuLaN.

In: clips, and the runs `codec` and `fit`. Out: `<folder>/tokens/<split>-<shard>.npz`, and `Tokens`, which reads them and draws batches.
It knows no transformer.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from demo.data import Clips
from demo.sizes import Sizes
from demo.train_codec import trained_codec
from demo.train_mulan import fitted_quantizer, fitted_tokenizer

_PIECES = 40  # in a file
_CAPTIONS = 8  # of each piece
_KINDS = ("semantic", "codes", "heard", "told")


def make_tokens(sizes: Sizes, clips: Clips, folder: Path) -> None:
    """Write what is not there yet. A file of P pieces with W windows holds `semantic` [P, W, tokens], `codes` [P, W, frames, Q], and the
    conditioning codes of each window, `heard` [P, W, C], and of captions of each piece, `told` [P, captions, C]; all of them int16."""
    (folder / "tokens").mkdir(exist_ok=True)
    codec, conditioner, tokenizer = trained_codec(sizes, folder / "codec"), fitted_quantizer(sizes, folder), fitted_tokenizer(folder)
    samples = round(sizes.window_seconds * sizes.sample_hz)
    count = clips.waves.shape[1] // samples
    for shard, first in enumerate(range(0, len(clips), _PIECES)):
        path = folder / "tokens" / f"{clips.split}-{shard:04}.npz"
        if path.is_file():
            continue
        pieces = range(first, min(first + _PIECES, len(clips)))
        parts: dict[str, list[Tensor]] = {kind: [] for kind in _KINDS}
        for piece in pieces:
            windows = torch.stack([clips.part(piece, number * samples, samples) for number in range(count)])
            texts = [clips.caption(piece, variant) for variant in range(_CAPTIONS)]
            with torch.no_grad():
                latents = conditioner.mulan.get_audio_latents(windows), conditioner.mulan.get_text_latents(raw_texts=texts)
                parts["heard"].append(conditioner.rq(latents[0])[1])
                parts["told"].append(conditioner.rq(latents[1])[1])
                parts["codes"].append(codec(windows, return_encoded=True)[1])
                parts["semantic"].append(tokenizer(windows))
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(file, **{kind: torch.stack(rows).numpy().astype(np.int16) for kind, rows in parts.items()})  # type: ignore[arg-type]
        part.replace(path)
        print(path.name, flush=True)


class Tokens:
    """All windows of a split."""

    def __init__(self, folder: Path, split: str) -> None:
        paths = sorted((folder / "tokens").glob(f"{split}-*.npz"))
        if not paths:
            raise FileNotFoundError(f"{folder / 'tokens'} has no {split}-*.npz: python -m demo.train tokens")
        files = [np.load(path) for path in paths]
        self.semantic, self.codes, self.heard, self.told = (np.concatenate([file[kind] for file in files]) for kind in _KINDS)

    def batch(self, rng: np.random.Generator, size: int, text_share: float) -> dict[str, Tensor]:
        """int64: semantic [size, tokens], codes [size, frames, Q], condition [size, C]: of one of the piece's captions in `text_share` of
        the rows, in the others of the window itself."""
        pieces, windows = rng.integers(len(self.codes), size=size), rng.integers(self.codes.shape[1], size=size)
        told = self.told[pieces, rng.integers(self.told.shape[1], size=size)]
        by_text = rng.random(size) < text_share
        condition = np.where(by_text[:, None], told, self.heard[pieces, windows])
        rows = {"semantic": self.semantic[pieces, windows], "codes": self.codes[pieces, windows], "condition": condition}
        return {name: torch.from_numpy(row.astype(np.int64)) for name, row in rows.items()}
