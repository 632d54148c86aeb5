"""The codec's decoder, trained once more on codes as the fine transformer writes them.

In: clips, and the runs `codec`, `codes`, `tokens` and `played`. Out: `state.pt` in a folder `decoder`; encoder and codebooks stay, and so
does what codes mean. Six fine codes a frame are drawn, not heard: they differ from those of any sound, and a decoder that never met such
codes lets held notes flutter. Here half of the codes are a sound's own and half were played, and bands must flutter as those of the sound.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demo.data import Clips
from demo.sizes import Sizes
from demo.tokens import Tokens, played, window_of
from demo.train_codec import SpectralDistance, trained_codec, weights
from demo.training import Run

_FLUTTER = 4.0  # weight of the flutter of the bands


class Decoder(nn.Module):
    """The part of a SoundStream that is trained here, under its own names; `codes` [B, frames, Q] -> waves [B, t]."""

    def __init__(self, codec: Any) -> None:
        super().__init__()
        self.decoder_attn, self.decoder, self._latents = codec.decoder_attn, codec.decoder, codec.rq.get_output_from_indices

    def forward(self, codes: Tensor) -> Tensor:
        with torch.no_grad():
            latents = self._latents(codes[None])  # of one group of residual quantizers
        return self.decoder(self.decoder_attn(latents).transpose(1, 2))[:, 0]


class Windows:
    """The played windows of a split: their codes as played and as they are, and their waves."""

    def __init__(self, sizes: Sizes, clips: Clips, folder: Path) -> None:
        self.clips, self.hop, self.frames = clips, sizes.hop, sizes.window_frames
        codes: Any = Tokens(folder, clips.split, with_codes=True).codes
        self.played = played(folder, clips.split)
        self.real = np.stack([codes[piece, window_of(piece)] for piece in range(len(self.played))])

    def batch(self, rng: np.random.Generator, size: int, frames: int) -> tuple[Tensor, Tensor]:
        """Codes int64 [size, frames, Q], of which the first half is real, and waves [size, frames * hop]."""
        pieces, starts = rng.integers(len(self.played), size=size), rng.integers(self.frames - frames + 1, size=size)
        codes, waves = [], []
        for row, (piece, start) in enumerate(zip(pieces, starts, strict=True)):
            source = self.real if row < size // 2 else self.played
            codes.append(source[piece, start : start + frames].astype(np.int64))
            waves.append(self.clips.part(piece, (window_of(piece) * self.frames + start) * self.hop, frames * self.hop))
        return torch.from_numpy(np.stack(codes)), torch.stack(waves)


def train_decoder(sizes: Sizes, clips: Clips, valid: Clips, folder: Path) -> None:
    """Until the schedule's end, from the run's last checkpoint on."""
    torch.manual_seed(0)
    schedule = sizes.decoder_schedule
    train, heard = Windows(sizes, clips, folder), Windows(sizes, valid, folder)
    model = Decoder(trained_codec(sizes, folder / "codec"))
    run = Run(model, schedule, folder / "decoder")
    distance = SpectralDistance(sizes.sample_hz).to(run.device)
    frames = round(schedule.seconds * sizes.sample_hz) // sizes.hop

    def losses(codes: Tensor, waves: Tensor) -> dict[str, Tensor]:
        made, waves = model(codes.to(run.device)), waves.to(run.device)
        logarithmic, linear, flutter = distance(made, waves)
        real = len(codes) // 2
        error = F.mse_loss(made[:real], waves[:real]) / waves[:real].square().mean()  # a wave that was drawn follows no other
        loss = logarithmic + linear + _FLUTTER * flutter + error / 2
        return {"loss": loss, "mel": logarithmic, "magnitude": linear, "flutter": flutter, "error": error}

    def step(rng: np.random.Generator, _: int) -> dict[str, Tensor]:
        return losses(*train.batch(rng, schedule.batch, frames))

    def validate() -> dict[str, float]:
        with weights(model, run.average), torch.no_grad():
            found = losses(*heard.batch(np.random.default_rng(0), len(valid), frames))
        return {f"valid_{name}": float(found[name]) for name in ("mel", "flutter", "error")}

    run.train(step, validate)
