"""The power spectrogram at the entrance of MuLaN's audio tower, as one convolution.

In: waves [B, t] fp32. Out: spectrograms [B, n_fft // 2 + 1, frames], equal to torchaudio's `Spectrogram`. It is written without an FFT so
that it becomes plain ONNX `Pad` and `Conv` nodes. It knows nothing of patches or of the sample rate.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_PAD_MODES = ("reflect", "constant", "replicate", "circular")


class Spectrogram(nn.Module):
    """`|STFT| ** power` with a Hann window, frame by frame of `n_fft` samples with the window in the middle."""

    window: Tensor
    dft: Tensor

    def __init__(self, n_fft: int, power: float, win_length: int, hop_length: int | None, pad: int, center: bool, pad_mode: str) -> None:
        super().__init__()
        if not 0 < win_length <= n_fft:
            raise ValueError(f"win_length must lie between 1 and n_fft = {n_fft}, got {win_length}")
        if power is None or power <= 0:
            raise ValueError(f"power must be a positive number, got {power!r}: the patches need a real spectrogram")
        if pad_mode not in _PAD_MODES:
            raise ValueError(f"pad_mode must be one of {', '.join(_PAD_MODES)}, got {pad_mode!r}")
        self.hop_length = win_length // 2 if hop_length is None else hop_length
        if self.hop_length < 1:
            raise ValueError(f"hop_length must be at least 1, got {self.hop_length}")
        self.n_fft, self.power, self.pad, self.center, self.pad_mode = n_fft, power, pad, center, pad_mode
        # Outside its window a frame counts for nothing, so the convolution has win_length taps, not n_fft, and the wave is padded
        # for them alone: by as much less on either side as the window leaves free in the frame.
        left = (n_fft - win_length) // 2
        right = n_fft - win_length - left
        edge = n_fft // 2 if center else 0
        self.edges = (edge - left, edge - right)

        self.register_buffer("window", torch.hann_window(win_length))
        # Reduced modulo n_fft before the division, in float64: exact angles even for long windows.
        turns = torch.arange(n_fft // 2 + 1)[:, None] * torch.arange(left, left + win_length) % n_fft
        angles = turns.double() * (2 * math.pi / n_fft)
        dft = torch.cat((angles.cos(), angles.sin())).float()  # [2 * bins, win_length]; the sign of sin does not reach the power
        self.register_buffer("dft", dft, persistent=False)

    def min_samples(self, frames: int) -> int:
        """The shortest wave that yields `frames` frames, in samples."""
        taps, padding = len(self.window), 2 * self.pad
        shortest = (frames - 1) * self.hop_length + taps - padding - sum(self.edges)
        if self.center and self.pad_mode in ("reflect", "circular"):  # every padded sample has one of its own; reflect spares the edge
            shortest = max(shortest, max(self.edges) + (self.pad_mode == "reflect") - padding)
        return max(shortest, 1)

    def forward(self, wave: Tensor) -> Tensor:
        """wave [B, t] fp32, t at least `min_samples(1)` -> [B, n_fft // 2 + 1, frames] fp32."""
        x = F.pad(wave[:, None], (self.pad, self.pad))
        before, after = self.edges
        x = F.pad(x, self.edges, mode=self.pad_mode) if self.center else x[..., -before : x.shape[-1] + after]
        real, imaginary = F.conv1d(x, (self.dft * self.window)[:, None], stride=self.hop_length).chunk(2, dim=1)
        energy = real.square() + imaginary.square()
        return energy if self.power == 2 else energy.pow(self.power / 2)
