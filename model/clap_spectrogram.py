"""The entrance of CLAP's audio tower: waves of any length to log-mel images of the one length that the tower takes.

In: waves [B, t] fp32. Out: windows [B * W, samples], and their decibels of mel bands [N, frames, bands]. Everything is a gather, a
convolution or a product with a constant, so that it becomes plain ONNX nodes. The formulas are those of LAION's preprocessing
(github.com/LAION-AI/CLAP, training/data.py) and of torchlibrosa. It does not know the tower.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_FLOOR = 1e-10  # of mel energies, torchlibrosa's `amin`
_SLANEY_BREAK_HZ, _SLANEY_BREAK_MEL, _SLANEY_STEP = 1000.0, 15.0, math.log(6.4) / 27  # linear below, logarithmic above


def windows_of(wave: Tensor, samples: int) -> Tensor:
    """Cut waves [B, t] into equally spaced windows that cover them: [B, W, samples], W = ceil(t / samples).

    A wave of n samples that is shorter than one window is repeated int(samples / n) times and followed by zeros, LAION's `repeatpad`.
    LAION crops a longer wave at random; here all of it counts, and the same sound always has the same latent.
    """
    t = wave.shape[1]
    windows = torch.arange((t + samples - 1) // samples, device=wave.device)
    length = torch.ones_like(wave[:1], dtype=torch.long).sum()  # t, as a tensor: torch.export would fix comparisons of the number itself
    spare = (length - samples).clamp(min=0)
    starts = spare * windows // torch.ones_like(windows).sum().sub(1).clamp(min=1)
    index = starts[:, None] + torch.arange(samples, device=wave.device)
    filled = length * (torch.full_like(length, samples) // length).clamp(min=1)
    gathered = wave[:, (index % length).flatten()].reshape(wave.shape[0], -1, samples)
    return torch.where(index < filled, gathered, torch.zeros((), device=wave.device))


def mel_filters(bands: int, n_fft: int, sample_hz: int, lowest_hz: float, highest_hz: float, slaney: bool) -> Tensor:
    """Return triangular filters fp32 [bands, n_fft // 2 + 1], made in float64.

    slaney: librosa's default, Slaney's scale with filters of equal area; otherwise the HTK scale with filters of height 1.
    """
    to_mel, to_hz = (_slaney_mel, _slaney_hz) if slaney else (_htk_mel, _htk_hz)
    points = to_hz(torch.linspace(to_mel(lowest_hz), to_mel(highest_hz), bands + 2, dtype=torch.float64))
    low, centre, high = points[:-2, None], points[1:-1, None], points[2:, None]
    hz = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * (sample_hz / n_fft)
    filters = torch.minimum((hz - low) / (centre - low), (high - hz) / (high - centre)).clamp(min=0)
    return (filters * 2 / (high - low) if slaney else filters).float()


def _slaney_mel(hz: float) -> float:
    if hz < _SLANEY_BREAK_HZ:
        return hz * 3 / 200
    return _SLANEY_BREAK_MEL + math.log(hz / _SLANEY_BREAK_HZ) / _SLANEY_STEP


def _slaney_hz(mel: Tensor) -> Tensor:
    above = _SLANEY_BREAK_HZ * ((mel - _SLANEY_BREAK_MEL) * _SLANEY_STEP).exp()
    return torch.where(mel < _SLANEY_BREAK_MEL, mel * 200 / 3, above)


def _htk_mel(hz: float) -> float:
    return 2595 * math.log10(1 + hz / 700)


def _htk_hz(mel: Tensor) -> Tensor:
    return 700 * (10 ** (mel / 2595) - 1)


class ClapSpectrogram(nn.Module):
    """10 log10 of mel energies, of frames with a Hann window, every `hop` samples, the first in the middle of the wave's first sample."""

    dft: Tensor
    mel: Tensor

    def __init__(self, sample_hz: int, n_fft: int, hop: int, bands: int, lowest_hz: float, highest_hz: float, slaney: bool) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        turns = torch.arange(n_fft // 2 + 1)[:, None] * torch.arange(n_fft) % n_fft  # exact angles
        angles = turns.double() * (2 * math.pi / n_fft)
        window = torch.hann_window(n_fft, dtype=torch.float64)
        self.register_buffer("dft", (torch.cat((angles.cos(), angles.sin())) * window).float()[:, None], persistent=False)
        self.register_buffer("mel", mel_filters(bands, n_fft, sample_hz, lowest_hz, highest_hz, slaney), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        """wave [N, t] fp32, t more than n_fft // 2 -> decibels [N, t // hop + 1, bands]."""
        x = F.pad(wave[:, None], (self.n_fft // 2, self.n_fft // 2), mode="reflect")
        real, imaginary = F.conv1d(x, self.dft, stride=self.hop).chunk(2, dim=1)
        energy = self.mel @ (real.square() + imaginary.square())
        return 10 * energy.clamp(min=_FLOOR).log10().transpose(1, 2)


def bicubic_rows(given: int, wanted: int) -> Tensor:
    """Return the matrix fp32 [wanted, given] of torch's bicubic interpolation of `given` rows to `wanted`, with aligned corners.

    It is what torch computes in float32, in which the towers were trained.
    """
    rows = torch.eye(given)[None, None]
    return F.interpolate(rows, (wanted, given), mode="bicubic", align_corners=True)[0, 0]
