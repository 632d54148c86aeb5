"""The clips as tokens, once: semantic tokens, codes and conditioning codes, so that no step of a transformer runs codec or MuLaN.

In: clips, and the runs `fit` and `codec`; for the last of them `<folder>/bundle`. Out: files of `<folder>/tokens`, `<folder>/codes` and
`<folder>/played`, and `Tokens`, which reads them and draws batches. It knows no transformer but those of the bundle.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import musiclm_deploy as md
from demo.data import Clips
from demo.sizes import Sizes
from demo.train_codec import trained_codec
from demo.train_mulan import fitted_quantizer, fitted_tokenizer
from musiclm_deploy.runtime.music import Tokens as Given

_PIECES = 40  # in a file
_CAPTIONS = 8  # of each piece


def make_tokens(sizes: Sizes, clips: Clips, folder: Path) -> None:
    """Write what is not there yet of `<folder>/tokens`. A file of P pieces with W windows holds `semantic` [P, W, tokens] and the
    conditioning codes of each window, `heard` [P, W, C], and of captions of each piece, `told` [P, captions, C]; all of them int16."""
    conditioner, tokenizer = fitted_quantizer(sizes, folder), fitted_tokenizer(folder)

    def tokens(piece: int, windows: Tensor) -> dict[str, Tensor]:
        texts = [clips.caption(piece, variant) for variant in range(_CAPTIONS)]
        heard = conditioner.rq(conditioner.mulan.get_audio_latents(windows))[1]
        told = conditioner.rq(conditioner.mulan.get_text_latents(raw_texts=texts))[1]
        return {"semantic": tokenizer(windows), "heard": heard, "told": told}

    _write(sizes, clips, folder / "tokens", tokens)


def make_codes(sizes: Sizes, clips: Clips, folder: Path) -> None:
    """The same of `<folder>/codes`: `codes` [P, W, frames, Q]."""
    codec = trained_codec(sizes, folder / "codec")
    _write(sizes, clips, folder / "codes", lambda _, windows: {"codes": codec(windows, return_encoded=True)[1]})


def make_played(sizes: Sizes, clips: Clips, folder: Path) -> None:
    """The same of `<folder>/played`: `codes` [P, frames, Q] of one window of each piece, whose coarse codes are the sound's own and whose
    fine codes the fine transformer of `<folder>/bundle` made of them."""
    tokens = Tokens(folder, clips.split, with_codes=True)
    assert tokens.codes is not None
    own = tokens.codes[..., : sizes.coarse_quantizers]
    with md.load(folder / "bundle", device="cpu") as model:

        def codes(piece: int, _: Tensor) -> dict[str, Tensor]:
            window = window_of(piece)
            given = Given(tokens.semantic[piece, window], own[piece, window])
            prompt = clips.caption(piece, piece % _CAPTIONS)
            made = model.generate(prompt, seconds=sizes.window_seconds, seed=piece, tokens=given).tokens
            return {"codes": torch.from_numpy(np.concatenate((made.coarse, made.fine), axis=1))}

        _write(sizes, clips, folder / "played", codes)


def played(folder: Path, split: str) -> np.ndarray:
    """What `make_played` wrote."""
    return next(_read(folder / "played", split, "codes"))


def window_of(piece: int) -> int:
    """The window of a piece that was played."""
    return piece % 4


@torch.no_grad()
def _write(sizes: Sizes, clips: Clips, folder: Path, of_windows: Callable[[int, Tensor], dict[str, Tensor]]) -> None:
    """of_windows: (piece, its windows [W, samples]) -> a row of each array. A file appears whole or not at all."""
    folder.mkdir(exist_ok=True)
    samples = round(sizes.window_seconds * sizes.sample_hz)
    count = clips.waves.shape[1] // samples
    for shard, first in enumerate(range(0, len(clips), _PIECES)):
        path = folder / f"{clips.split}-{shard:04}.npz"
        if path.is_file():
            continue
        rows = []
        for piece in range(first, min(first + _PIECES, len(clips))):
            windows = torch.stack([clips.part(piece, number * samples, samples) for number in range(count)])
            rows.append(of_windows(piece, windows))
        arrays = {name: torch.stack([row[name] for row in rows]).numpy().astype(np.int16) for name in rows[0]}
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        part.replace(path)
        print(path.name, flush=True)


class Tokens:
    """All windows of a split."""

    def __init__(self, folder: Path, split: str, with_codes: bool) -> None:
        self.semantic, self.heard, self.told = _read(folder / "tokens", split, "semantic", "heard", "told")
        self.codes = next(_read(folder / "codes", split, "codes")) if with_codes else None

    def batch(self, rng: np.random.Generator, size: int, text_share: float) -> dict[str, Tensor]:
        """int64: semantic [size, tokens], codes [size, frames, Q] if there are, condition [size, C]: of one of the piece's captions in
        `text_share` of the rows, in the others of the window itself."""
        pieces, windows = rng.integers(len(self.semantic), size=size), rng.integers(self.semantic.shape[1], size=size)
        told = self.told[pieces, rng.integers(self.told.shape[1], size=size)]
        by_text = rng.random(size) < text_share
        condition = np.where(by_text[:, None], told, self.heard[pieces, windows])
        rows = {"semantic": self.semantic[pieces, windows], "condition": condition}
        if self.codes is not None:
            rows["codes"] = self.codes[pieces, windows]
        return {name: torch.from_numpy(row.astype(np.int64)) for name, row in rows.items()}


def _read(folder: Path, split: str, *names: str) -> Iterator[np.ndarray]:
    paths = sorted(folder.glob(f"{split}-*.npz"))
    if not paths:
        raise FileNotFoundError(f"{folder} has no {split}-*.npz: python -m demo.train {folder.name}")
    files = [np.load(path) for path in paths]
    return (np.concatenate([file[name] for file in files]) for name in names)
