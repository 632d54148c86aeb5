"""EnCodec at 24 kHz (Défossez et al. 2022, https://arxiv.org/abs/2210.13438): codes in, waveform out, and back.

In and out: codes [B, frames, Q] int64 and waves [B, frames * hop] fp32. It knows nothing of weight norm, which is folded when the weights
are read, of other rates, of files or of training. Submodules carry the names that transformers' `EncodecModel` has.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .residual_vq import CodeEmbedding, CodeSearch, squared_euclidean
from .soundstream import CausalUpsample

KERNEL_SIZE, RESIDUAL_KERNEL_SIZE, LSTM_LAYERS = 7, 3, 2


@dataclass(frozen=True)
class EncodecConfig:
    n_filters: int  # channels at the rate of the samples; every stride doubles them
    strides: tuple[int, ...]  # of the encoder, first layer first; the decoder upsamples in the reverse order
    codebook_dim: int
    codebook_size: int
    rq_num_quantizers: int  # Q
    rq_groups: int = 1

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.strides)

    @property
    def widths(self) -> list[int]:
        """Channels at the rate of the samples, and after each stride."""
        return [self.n_filters * 2**i for i in range(len(self.strides) + 1)]


class CausalConv1d(nn.Module):
    """[B, C, T] -> [B, C', T / stride], T a multiple of the stride."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.padding = kernel_size - stride
        self.conv = nn.Conv1d(channels_in, channels_out, kernel_size, stride)

    def forward(self, x: Tensor) -> Tensor:
        if self.padding:
            # Encodec lengthens what is too short to be reflected with zeros. Reflecting reads none of them where it is long enough, so
            # they are always put there: no branch, and clips of any length.
            first = F.pad(x, (0, self.padding)).narrow(2, 1, self.padding)
            x = torch.cat((first.flip(2), x), dim=2)
        return self.conv(x)


class ResidualUnit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.block = nn.Sequential(
            nn.ELU(), CausalConv1d(channels, inner, RESIDUAL_KERNEL_SIZE), nn.ELU(), CausalConv1d(inner, channels, 1)
        )
        self.shortcut = CausalConv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.block(x)


class SkipLSTM(nn.Module):
    """[B, C, T] -> [B, C, T]"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, LSTM_LAYERS)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(2, 0, 1)
        return (self.lstm(x)[0] + x).permute(1, 2, 0)


class Layers(nn.Module):
    """Its one purpose is the name: `encoder.layers.0`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class EncodecDecoder(nn.Module):
    """codes [B, frames, Q] int64 in 0..codebook_size - 1, or -1 for a code that is missing -> wave [B, frames * hop] fp32.

    Any number of frames. Each row is decoded for itself; audiolm-pytorch's `EncodecWrapper` lays the rows of a batch over each other.
    """

    min_frames = 1

    def __init__(self, config: EncodecConfig) -> None:
        super().__init__()
        self.config = config
        self.codebooks = CodeEmbedding(1, config.rq_num_quantizers, config.codebook_size, config.codebook_dim)
        widths, blocks = config.widths, []
        for narrow, wide, stride in reversed(list(zip(widths[:-1], widths[1:], config.strides, strict=True))):
            blocks += [nn.ELU(), CausalUpsample(wide, narrow, stride), ResidualUnit(narrow)]
        self.decoder = Layers(
            CausalConv1d(config.codebook_dim, widths[-1], KERNEL_SIZE),
            SkipLSTM(widths[-1]),
            *blocks,
            nn.ELU(),
            CausalConv1d(config.n_filters, 1, KERNEL_SIZE),
        )

    @property
    def lookahead_frames(self) -> int:
        """K: the first chunk of a stream holds at least this many frames, as derived in `SoundStreamConfig.min_frames`."""
        farthest, rate = KERNEL_SIZE - 1, 1
        for stride in reversed(self.config.strides):
            rate *= stride
            farthest = max(farthest, (RESIDUAL_KERNEL_SIZE - 1) // rate)
        return farthest + 1

    @property
    def context_frames(self) -> None:
        """The LSTM hears everything before a frame: a clip is decoded at once."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take `decoder.*` and the first Q codebooks of a state dict without weight norm. RuntimeError names what does not fit."""
        self.load_state_dict({name: tensor for name, tensor in state.items() if name.startswith("decoder.")})
        self.codebooks.load(codebooks(state, self.config))

    def forward(self, codes: Tensor) -> Tensor:
        return self.decoder(self.codebooks(codes).transpose(1, 2)).squeeze(1)


class EncodecEncoder(nn.Module):
    """wave [B, frames * hop] fp32 -> codes [B, frames, Q] int64. Any number of frames, and no part of a frame over."""

    min_frames = 1

    def __init__(self, config: EncodecConfig) -> None:
        super().__init__()
        self.config = config
        widths, blocks = config.widths, []
        for narrow, wide, stride in zip(widths[:-1], widths[1:], config.strides, strict=True):
            blocks += [ResidualUnit(narrow), nn.ELU(), CausalConv1d(narrow, wide, 2 * stride, stride)]
        self.encoder = Layers(
            CausalConv1d(1, config.n_filters, KERNEL_SIZE),
            *blocks,
            SkipLSTM(widths[-1]),
            nn.ELU(),
            CausalConv1d(widths[-1], config.codebook_dim, KERNEL_SIZE),
        )
        self.search = CodeSearch(1, config.rq_num_quantizers, config.codebook_size, config.codebook_dim, squared_euclidean)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take `encoder.*` and the first Q codebooks of a state dict without weight norm. RuntimeError names what does not fit."""
        self.load_state_dict({name: tensor for name, tensor in state.items() if name.startswith("encoder.")})
        self.search.load(codebooks(state, self.config))

    def forward(self, wave: Tensor) -> Tensor:
        return self.search(self.encoder(wave.unsqueeze(1)).transpose(1, 2))


def codebooks(state: Mapping[str, Tensor], config: EncodecConfig) -> Tensor:
    """[1, Q, K, D] from each `quantizer.layers.{quantizer}.codebook.embed` [K, D]."""
    books = [state[f"quantizer.layers.{quantizer}.codebook.embed"] for quantizer in range(config.rq_num_quantizers)]
    return torch.stack(books)[None].float()
