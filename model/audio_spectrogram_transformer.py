"""MuLaN's audio tower: the audio spectrogram transformer (Gong et al. 2021, arxiv.org/abs/2104.01778) of musiclm-pytorch 0.2.8.

In: waves [B, t] at the rate MuLaN was trained with, or spectrograms. Out: one embedding per clip, [B, dim]. Constructor arguments,
parameter names and state-dict keys are upstream's; the log-mel entrance, `spec_n_mels` and `spec_sample_hz`, and `spec_time_stretch` are
ours. In training mode SpecAugment and patch dropout withhold parts of the clip.
"""

import logging
import math

import torch
from torch import Tensor, nn

from .augmentation import SpecAugment, kept_patches
from .spectrogram import Spectrogram
from .transformer import LayerNorm, Transformer

_log = logging.getLogger(__name__)


class AudioSpectrogramTransformer(nn.Module):
    def __init__(
        self,
        dim: int,
        depth: int,
        patch_size: int | tuple[int, int] = 16,
        dim_head: int = 64,
        heads: int = 8,
        attn_dropout: float = 0.0,
        ff_mult: float = 4,
        ff_dropout: float = 0.0,
        accept_spec: bool = False,
        accept_spec_time_first: bool = True,
        spec_n_fft: int = 128,
        spec_power: float = 2,
        spec_win_length: int = 24,
        spec_hop_length: int | None = None,
        spec_pad: int = 0,
        spec_center: bool = True,
        spec_pad_mode: str = "reflect",
        spec_aug_stretch_factor: float = 0.8,
        spec_aug_freq_mask: int = 80,
        spec_aug_time_mask: int = 80,
        patch_dropout_prob: float = 0.25,
        spec_n_mels: int | None = None,
        spec_sample_hz: int | None = None,
        spec_time_stretch: tuple[float, float] | None = None,
    ) -> None:
        """spec_time_stretch: in training each batch is played at a rate drawn between these two, such as (0.8, 1.25); upstream's own
        `spec_aug_stretch_factor` changes nothing."""
        super().__init__()
        if dim % 4:
            raise ValueError(f"dim must be a multiple of 4 for the two-dimensional position embedding, got {dim}")
        self.dim, self.depth = dim, depth
        self.patch_size = patch_size if isinstance(patch_size, tuple) else (patch_size, patch_size)  # (bins, frames)
        patch_dim = math.prod(self.patch_size)
        if spec_time_stretch is not None and (accept_spec or not 0 < spec_time_stretch[0] <= spec_time_stretch[1]):
            what = "needs waves, not spectrograms" if accept_spec else f"must be (slowest, fastest) rates above 0, got {spec_time_stretch}"
            raise ValueError(f"spec_time_stretch {what}")
        self.spec_time_stretch = spec_time_stretch
        self.accept_spec, self.accept_spec_time_first = accept_spec, accept_spec_time_first
        self.patch_dropout_prob = patch_dropout_prob
        self._told_crop = False

        # The leading Identity stands for upstream's reshape, so that the layers keep their numbers.
        self.to_patch_tokens = nn.Sequential(nn.Identity(), nn.LayerNorm(patch_dim), nn.Linear(patch_dim, dim), nn.LayerNorm(dim))
        edges = spec_pad, spec_center, spec_pad_mode
        self.spec = Spectrogram(spec_n_fft, spec_power, spec_win_length, spec_hop_length, *edges, spec_n_mels, spec_sample_hz)
        self.aug = SpecAugment(spec_aug_stretch_factor, spec_aug_freq_mask, spec_aug_time_mask)
        self.transformer = Transformer(dim, depth, dim_head, heads, attn_dropout, ff_mult, ff_dropout)
        self.norm = LayerNorm(dim)
        hidden = dim // 4
        self.dynamic_pos_bias_mlp = nn.Sequential(
            nn.Linear(2, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, heads)
        )

    @property
    def min_samples(self) -> int:
        """The shortest wave that fills one patch, in samples."""
        return self.spec.min_samples(self.patch_size[1])

    @property
    def samples_per_patch(self) -> float:
        """How much longer a wave must be for one patch more, in samples: attention costs the square of the number of patches."""
        bins, frames = self.patch_size
        return frames * self.spec.hop_length / (self.spec.rows // bins)

    def forward(self, x: Tensor, force_no_patch_dropout: bool = False, return_all_layers: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """x: waves [B, t], or with `accept_spec` spectrograms [B, frames, bins] ([B, bins, frames] unless time comes first) -> [B, dim];
        with `return_all_layers` also [depth - 1, B, patches, dim]. `force_no_patch_dropout` keeps every patch in training too."""
        if x.ndim != 2 + self.accept_spec:
            expected = "spectrograms of three dimensions" if self.accept_spec else "waves [B, t]"
            raise ValueError(f"this audio transformer takes {expected}, got shape {tuple(x.shape)}")
        checked = not torch.compiler.is_exporting()  # a traced graph serves every length, so no branch in it may depend on this one
        if not self.accept_spec:
            if checked and x.shape[1] < self.min_samples:
                raise ValueError(f"a wave of {x.shape[1]} samples is shorter than the {self.min_samples} that fill one patch")
            x = self.spec(x, self._draw_rate(x.shape[1]))
        elif self.accept_spec_time_first:
            x = x.transpose(1, 2)
        if self.training:
            x = self.aug(x)

        bins, frames = self.patch_size
        rows, columns = x.shape[1] // bins, x.shape[2] // frames
        if checked:
            self._check_crop(x.shape[1], x.shape[2], rows * bins, columns * frames)
        x = x[:, : rows * bins, : columns * frames]
        x = x.unflatten(2, (columns, frames)).unflatten(1, (rows, bins)).transpose(2, 3)  # [B, rows, columns, bins, frames]
        keep_all = not self.training or self.patch_dropout_prob == 0 or force_no_patch_dropout
        return self.embed_patches(x.flatten(3), keep_all, return_all_layers)

    def embed_patches(self, patches: Tensor, keep_all: bool = True, return_all_layers: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """patches: [B, rows, columns, bins * frames], as cut out of spectrograms -> as `forward`. keep_all: withhold none of them."""
        _, rows, columns, _ = patches.shape
        x = self.to_patch_tokens(patches).flatten(1, 2)
        row, column = _grid(torch.arange(rows, device=x.device), torch.arange(columns, device=x.device))
        x = x + _sincos_2d(row, column, self.dim)
        bias = self._relative_bias(rows, columns, x.device)
        if not keep_all:
            kept = kept_patches(x.shape[0], x.shape[1], self.patch_dropout_prob, x.device)
            x = x.gather(1, kept[..., None].expand(-1, -1, self.dim))
            bias = bias[:, kept[:, :, None], kept[:, None]].transpose(0, 1)
        if not return_all_layers:
            return self.norm(self.transformer(x, bias).mean(dim=1))
        x, layers = self.transformer(x, bias, return_all_layers=True)
        return self.norm(x.mean(dim=1)), layers

    def _draw_rate(self, samples: int) -> float:
        """How fast this batch is played: in training between the two ends of `spec_time_stretch`, never so fast that no patch is left."""
        if not self.training or self.spec_time_stretch is None:
            return 1.0
        slowest, fastest = self.spec_time_stretch
        frames = 1 + (samples - self.spec.min_samples(1)) // self.spec.hop_length
        return min(slowest + (fastest - slowest) * torch.rand(1).item(), frames / self.patch_size[1])

    def _relative_bias(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """What is added to the scores of S = rows * columns patches, by how far below and right of the key's the query's is: [H, S, S].

        The MLP sees every distance once, not every pair of patches: for a 10 s clip at upstream's settings 17 thousand, not 28 million.
        Pairs are laid out by copying, since to look each of them up takes longer than an attention: `columns` copies of 2 * columns
        distances, written one after another and cut into rows of one less, are a matrix with a distance in each diagonal (as in Huang et
        al. 2018, arxiv.org/abs/1809.04281).
        """
        place = torch.arange(2 * columns, device=device)
        right = torch.where(place < columns, -place, 2 * columns - place)  # of the query from the key; the one in the middle is not used
        distances = _grid(torch.arange(rows - 1, -rows, -1, device=device), right)
        table = self.dynamic_pos_bias_mlp(torch.stack(distances, dim=-1).float()).T.unflatten(1, (2 * rows - 1, 2 * columns))
        written = table[:, :, None].expand(-1, -1, columns, -1).flatten(2)[..., : columns * (2 * columns - 1)]
        by_column = written.unflatten(2, (columns, 2 * columns - 1))[..., :columns]  # [H, 2 rows - 1, query's column, key's column]
        of_rows = [by_column[:, rows - 1 - row : 2 * rows - 1 - row].transpose(1, 2).flatten(2) for row in range(rows)]
        return torch.cat(of_rows, dim=1)

    def _check_crop(self, height: int, width: int, cropped_height: int, cropped_width: int) -> None:
        spectrogram, patch = f"spectrogram of {height} bins x {width} frames", f"{self.patch_size[0]} x {self.patch_size[1]}"
        if cropped_height == 0 or cropped_width == 0:
            raise ValueError(f"a {spectrogram} is smaller than one patch of {patch}")
        if (height, width) != (cropped_height, cropped_width) and not self._told_crop:
            self._told_crop = True
            lost = f"{1 - cropped_width / width:.1%} of the clip and {1 - cropped_height / height:.1%} of the bins are not seen"
            _log.warning(f"{spectrogram} cropped to {cropped_height} x {cropped_width}, whole patches of {patch}: {lost} (said once)")


def _grid(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The row and the column of every cell, row by row: two int64 of one dimension."""
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    return row.flatten(), column.flatten()


def _sincos_2d(row: Tensor, column: Tensor, dim: int) -> Tensor:
    """Fixed position embedding [S, dim]: sine and cosine of column, then of row (Beyer et al. 2022, arxiv.org/abs/2205.01580)."""
    omega = 10000 ** -(torch.arange(dim // 4, device=row.device) / (dim // 4 - 1))
    row, column = row[:, None] * omega, column[:, None] * omega
    return torch.cat((column.sin(), column.cos(), row.sin(), row.cos()), dim=1)
