"""Training of the codec: audiolm-pytorch's SoundStream on waves alone, without its discriminators.

In: clips, a folder for the run. Out: `state.pt` there; `trained_codec` reads it. In place of upstream's loss, spectra are compared as
magnitudes and as logarithms of mel bands, on five scales, and the wave by its error's share of the energy. At 1.8 kbit/s a wave can be
followed in its low frequencies only; of the rest at least the colour must be right. Discriminators would take nine tenths of the time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from demo.codec_start import start_linear
from demo.data import Clips
from demo.sizes import Sizes, codec
from demo.training import Run
from musiclm_deploy.model.spectrogram import mel_filters

_SCALES = ((2048, 96), (1024, 80), (512, 48), (256, 24), (128, 12))  # samples of a window, mel bands
_FLOOR = 3e-4  # of magnitudes, 60 dB below the loudness of the clips
_COMMITMENT = 0.25  # weight of upstream's commitment loss
_PART = 16  # clips that are encoded at a time where nothing is learnt
_INITIAL = 8  # frames per entry that the codebooks are initialised with


class SpectralDistance(torch.nn.Module):
    """Waves [B, t] twice -> (mean distance of log-mel bands in nats, error of magnitudes as a share of them, difference of how much the
    bands flutter, the mean of their changes from frame to frame, in nats), averaged over the scales. The first two compare frame by frame,
    the third a texture: it can be met by a sound that is not the same one."""

    def __init__(self, sample_hz: int) -> None:
        super().__init__()
        for size, bands in _SCALES:
            self.register_buffer(f"filters{size}", mel_filters(bands, size, sample_hz), persistent=False)
            self.register_buffer(f"window{size}", torch.hann_window(size) / (size / 2), persistent=False)

    def forward(self, made: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        both, logarithmic, linear, flutter = torch.cat((made, real)), [], [], []
        for size, _ in _SCALES:
            window = getattr(self, f"window{size}")
            spectrum = torch.stft(both, size, size // 4, window=window, return_complex=True)
            magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-10).sqrt()  # the gradient of abs is infinite at zero
            bands = (getattr(self, f"filters{size}") @ magnitude).clamp(min=_FLOOR).log()
            made_bands, real_bands = bands.chunk(2)
            made_size, real_size = magnitude.chunk(2)
            logarithmic.append((made_bands - real_bands).abs().mean())
            made_change, real_change = bands.diff(dim=-1).abs().mean(dim=-1).chunk(2)
            flutter.append((made_change - real_change).abs().mean())
            linear.append((made_size - real_size).abs().mean() / real_size.mean())
        return torch.stack(logarithmic).mean(), torch.stack(linear).mean(), torch.stack(flutter).mean()


def si_snr(made: Tensor, real: Tensor) -> Tensor:
    """Scale-invariant signal-to-noise ratio of waves [B, t] in dB, [B]."""
    made, real = made - made.mean(-1, keepdim=True), real - real.mean(-1, keepdim=True)
    target = (made * real).sum(-1, keepdim=True) / real.square().sum(-1, keepdim=True).clamp(min=1e-8) * real
    return 10 * torch.log10(target.square().sum(-1).clamp(min=1e-8) / (made - target).square().sum(-1).clamp(min=1e-8))


def encode(model: Any, waves: Tensor) -> Tensor:
    """waves [B, t] -> latents before the quantizer [B, frames, D]."""
    return model.encoder_attn(model.encoder(waves[:, None]).transpose(1, 2))


def train_codec(sizes: Sizes, clips: Clips, valid: Clips, folder: Path) -> None:
    """Until the schedule's end, from the run's last checkpoint on."""
    torch.manual_seed(0)
    model = codec(sizes)
    start_linear(model)
    run = Run(model, sizes.codec_schedule, folder)
    distance = SpectralDistance(sizes.sample_hz).to(run.device)
    samples = round(sizes.codec_schedule.seconds * sizes.sample_hz) // sizes.hop * sizes.hop
    heard = valid.windows(4 * sizes.sample_hz // sizes.hop * sizes.hop)[:: max(1, len(valid) // 6)].to(run.device)

    def step(rng: np.random.Generator, number: int) -> dict[str, Tensor]:
        waves = clips.batch(rng, sizes.codec_schedule.batch, samples).to(run.device)
        if number == 0:
            count = -(-_INITIAL * sizes.codebook_size // (samples // sizes.hop))
            _initialise(model, clips.batch(rng, count, samples).to(run.device))
        latents, _, commitment = model.rq(encode(model, waves))
        made = model.decode(latents)[:, 0]
        logarithmic, linear, _ = distance(made, waves)
        error = F.mse_loss(made, waves) / waves.square().mean()
        loss = logarithmic + linear + error + _COMMITMENT * commitment.sum()
        return {"loss": loss, "mel": logarithmic, "magnitude": linear, "error": error, "commitment": commitment.sum()}

    def validate() -> dict[str, float]:
        with weights(model, run.average), torch.no_grad():
            made = model(heard, return_recons_only=True)[:, 0]
        return {"valid_mel": float(distance(made, heard)[0]), "valid_si_snr_db": float(si_snr(made, heard).mean())}

    run.train(step, validate)


@torch.no_grad()
def _initialise(model: Any, waves: Tensor) -> None:
    """k-means on all frames of `waves` for every quantizer; upstream clusters the first batch that happens to reach it."""
    model.rq(torch.cat([encode(model, part) for part in waves.split(_PART)]))


@contextmanager
def weights(model: torch.nn.Module, state: dict[str, Tensor]) -> Iterator[None]:
    """Within the block the model has these weights and is in evaluation mode."""
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    model.eval()
    try:
        yield
    finally:
        model.load_state_dict(kept)
        model.train()


def trained_codec(sizes: Sizes, folder: Path) -> Any:
    """The codec of a run, its averaged weights, in evaluation mode."""
    model = codec(sizes)
    model.load_state_dict(torch.load(folder / "state.pt", map_location="cpu", weights_only=True)["average"])
    return model.eval()
