"""What MuLaN's audio tower does to a clip in training: another tempo, bands and spans of the spectrogram withheld (SpecAugment, Park et
al. 2019, arxiv.org/abs/1904.08779), and patches (Liu et al. 2022, arxiv.org/abs/2208.07220).

In: spectrograms [B, bins, frames]. Out: the same with zeros in places, or the numbers of the patches that stay. All chance comes from
torch's global generators, in the order and the amounts of musiclm-pytorch 0.2.8 with torchaudio: one `torch.manual_seed`, equal masks.
"""

import math

import torch
from torch import Tensor, nn


class TimeStretch(nn.Module):
    """Leaves the spectrogram as it is, as upstream's does, and holds its buffer for the checkpoint.

    Upstream hands the stretch factor to torchaudio's `TimeStretch` as the hop length and switches the rate to 1, which changes nothing.
    `stretch_time` is the one that stretches.
    """

    def __init__(self, hop_length: float, n_freq: int = 201) -> None:
        super().__init__()
        self.register_buffer("phase_advance", torch.linspace(0, math.pi * hop_length, n_freq)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        return x


def stretch_time(magnitudes: Tensor, rate: float) -> Tensor:
    """magnitudes [B, bins, frames] -> [B, bins, ceil(frames / rate)]: played `rate` times as fast, at the same pitch.

    Frame t is read at rate x t, between two frames in proportion. That is all a phase vocoder does to magnitudes; its work on the phases
    does not reach a power spectrogram, so that none are needed here.
    """
    position = torch.arange(0, magnitudes.shape[-1], rate, device=magnitudes.device)
    before = position.long()
    share = position - before
    padded = nn.functional.pad(magnitudes, (0, 1))  # silence follows the last frame
    return padded[..., before] * (1 - share) + padded[..., before + 1] * share


class Masking(nn.Module):
    """Zeros over one stretch of bins (axis 1) or frames (axis 2), the same in the whole batch, fewer than `max_width` wide.

    Where the axis is shorter than `max_width` the mask may cover all of it and leave silence. With upstream's defaults, up to 80 of 65
    bins, that happens in 19 % of all steps: a smaller `spec_aug_freq_mask` is worth setting.
    """

    def __init__(self, max_width: int, axis: int) -> None:
        super().__init__()
        self.max_width, self.axis = max_width, axis

    def forward(self, x: Tensor) -> Tensor:
        """x [B, bins, frames] -> the same shape."""
        if self.max_width < 1:
            return x
        size = x.shape[self.axis]
        # Two draws of fp32 on the CPU and the rounding towards zero, below zero too: torchaudio's masks, number for number.
        width = torch.rand(1) * self.max_width
        start = (torch.rand(1) * (size - width)).long().item()
        position = torch.arange(size, device=x.device)
        masked = (position >= start) & (position < start + width.long().item())
        return x.masked_fill(masked[:, None] if self.axis == 1 else masked, 0.0)


class SpecAugment(nn.Sequential):
    """At most one band of bins and one span of frames, for training only."""

    def __init__(self, stretch_factor: float, freq_mask: int, time_mask: int) -> None:
        super().__init__(TimeStretch(stretch_factor), Masking(freq_mask, axis=1), Masking(time_mask, axis=2))


def kept_patches(batch: int, patches: int, dropout: float, device: torch.device) -> Tensor:
    """Which patches each clip keeps: [B, kept] int64, at least one, in random order. The generator is that of `device`."""
    kept = max(1, int(patches * (1 - dropout)))
    return torch.randn(batch, patches, device=device).topk(kept, dim=-1).indices
