"""The power or log-mel spectrogram at the entrance of MuLaN's audio tower, as one convolution.

In: waves [B, t] fp32. Out: spectrograms [B, n_fft // 2 + 1, frames], equal to torchaudio's `Spectrogram`, or log-mel ones
[B, n_mels, frames]. It is written without an FFT so that it becomes plain ONNX `Pad` and `Conv` nodes. It knows nothing of patches.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .augmentation import stretch_time

_PAD_MODES = ("reflect", "constant", "replicate", "circular")
_FLOOR = 1e-5  # of mel energies, far above the rounding of the convolution: backends agree on silence


def music_spectrogram(sample_hz: int, n_mels: int | None = None) -> dict[str, Any]:
    """Arguments of `AudioSpectrogramTransformer` for music at `sample_hz`, such as 16000 or 24000: windows of 25 ms every 10 ms, as in
    MuLaN's paper. Upstream's own defaults see 24 samples at a time, 1 ms.

    n_mels: bands of a log-mel spectrogram; the paper's transformer is that of Gong et al., which has 128. The checkpoint then holds the
    filters, rate, n_fft and hop, and musiclm-pytorch cannot load it. None: a power spectrogram, which upstream trains and loads too; its
    file does not tell n_fft, hop and rate, so that the export must be told. Masks are those of Gong et al.: 48 of 128 rows, 192 frames.
    """
    if sample_hz <= 0 or sample_hz % 1000:
        raise ValueError(f"25 ms and 32 ms must be whole samples: sample_hz must be a multiple of 1000, got {sample_hz}")
    # 31 Hz from bin to bin, and 16 under mel filters, of which the lowest of 128 would otherwise fall between two bins.
    n_fft = sample_hz * 32 // 1000 * (1 if n_mels is None else 2)
    arguments = dict(spec_n_fft=n_fft, spec_win_length=sample_hz // 40, spec_hop_length=sample_hz // 100, spec_aug_time_mask=192)
    if n_mels is None:
        return arguments | dict(spec_aug_freq_mask=n_fft // 2 * 3 // 8)
    return arguments | dict(spec_aug_freq_mask=n_mels * 3 // 8, spec_n_mels=n_mels, spec_sample_hz=sample_hz)


def mel_filters(n_mels: int, n_fft: int, sample_hz: int) -> Tensor:
    """[n_mels, n_fft // 2 + 1] fp32, made in float64: triangles of height one, evenly spaced from 0 to half the rate on the HTK scale,
    mel = 2595 log10(1 + Hz / 700)."""
    nyquist = sample_hz / 2
    mel = torch.linspace(0, 2595 * math.log10(1 + nyquist / 700), n_mels + 2, dtype=torch.float64)
    edges = 700 * (10 ** (mel / 2595) - 1)
    hz = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * (sample_hz / n_fft)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    filters = torch.minimum((hz - low) / (centre - low), (high - hz) / (high - centre)).clamp(min=0)
    if not filters.any(dim=1).all():
        raise ValueError(f"{n_mels} mel bands are too many for n_fft = {n_fft} at {sample_hz} Hz: some lie between two bins")
    return filters.float()


class Spectrogram(nn.Module):
    """`|STFT| ** power` with a Hann window, frame by frame of `n_fft` samples with the window in the middle.

    With `n_mels` the natural logarithm of what mel filters take of it; the state dict then holds the filters, `mel`, and `mel_layout`: the
    rate, n_fft and hop they were trained with.
    """

    window: Tensor
    dft: Tensor
    mel: Tensor | None
    mel_layout: Tensor

    def __init__(
        self,
        n_fft: int,
        power: float,
        win_length: int,
        hop_length: int | None,
        pad: int,
        center: bool,
        pad_mode: str,
        n_mels: int | None = None,
        sample_hz: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 < win_length <= n_fft:
            raise ValueError(f"win_length must lie between 1 and n_fft = {n_fft}, got {win_length}")
        if power is None or power <= 0:
            raise ValueError(f"power must be a positive number, got {power!r}: the patches need a real spectrogram")
        if pad_mode not in _PAD_MODES:
            raise ValueError(f"pad_mode must be one of {', '.join(_PAD_MODES)}, got {pad_mode!r}")
        if (n_mels is None) != (sample_hz is None):
            raise ValueError(f"mel filters need both their number and the sample rate, got n_mels = {n_mels} and sample_hz = {sample_hz}")
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
        self.rows = n_fft // 2 + 1 if n_mels is None else n_mels  # the height of the spectrogram
        if n_mels is None or sample_hz is None:
            self.mel = None
        else:
            self.register_buffer("mel", mel_filters(n_mels, n_fft, sample_hz))
            self.register_buffer("mel_layout", torch.tensor([sample_hz, n_fft, self.hop_length]))

    def min_samples(self, frames: int) -> int:
        """The shortest wave that yields `frames` frames, in samples."""
        taps, padding = len(self.window), 2 * self.pad
        shortest = (frames - 1) * self.hop_length + taps - padding - sum(self.edges)
        if self.center and self.pad_mode in ("reflect", "circular"):  # every padded sample has one of its own; reflect spares the edge
            shortest = max(shortest, max(self.edges) + (self.pad_mode == "reflect") - padding)
        return max(shortest, 1)

    def forward(self, wave: Tensor, rate: float = 1.0) -> Tensor:
        """wave [B, t] fp32, t at least `min_samples(1)` -> [B, rows, ceil(frames / rate)] fp32: played `rate` times as fast."""
        x = F.pad(wave[:, None], (self.pad, self.pad))
        before, after = self.edges
        x = F.pad(x, self.edges, mode=self.pad_mode) if self.center else x[..., -before : x.shape[-1] + after]
        real, imaginary = F.conv1d(x, (self.dft * self.window)[:, None], stride=self.hop_length).chunk(2, dim=1)
        energy = real.square() + imaginary.square()
        if rate != 1:
            energy = stretch_time(energy.sqrt(), rate).square()
        energy = energy if self.power == 2 else energy.pow(self.power / 2)
        return energy if self.mel is None else (self.mel @ energy).clamp(min=_FLOOR).log()
