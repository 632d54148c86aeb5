"""EnCodec at 24 kHz (Défossez et al. 2022, https://arxiv.org/abs/2210.13438): codes in, waveform out, and back.

In and out: codes [B, frames, Q] int64 and waves [B, frames * hop] fp32. It knows nothing of weight norm, which is folded when the weights
are read, of other rates, of files or of training. Submodules carry the names that transformers' `EncodecModel` has.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .causal import ELU, CausalConv1d, CausalLayer, CausalSequential, CausalUpsample, State
from .residual_vq import CodeEmbedding, CodeSearch, squared_euclidean

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


class ResidualUnit(CausalLayer):
    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.block = CausalSequential(ELU(), _convolution(channels, inner, RESIDUAL_KERNEL_SIZE), ELU(), _convolution(inner, channels, 1))
        self.shortcut = _convolution(channels, channels, 1)

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        return self.shortcut(x) + self.block(x, state)


class SkipLSTM(CausalLayer):
    """[B, C, T] -> [B, C, T]"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, LSTM_LAYERS)

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(("hidden", "cell"), (LSTM_LAYERS, self.lstm.hidden_size))

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        x = x.permute(2, 0, 1)
        if state is None:
            y, _ = self.lstm(x)
        else:
            y, after = self.lstm(x, (state.take().transpose(0, 1), state.take().transpose(0, 1)))
            for one in after:
                state.keep(one.transpose(0, 1))
        return (y + x).permute(1, 2, 0)


class Layers(CausalLayer):
    """Its one purpose is the name: `encoder.layers.0`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = CausalSequential(*layers)

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        return self.layers(x, state)


def _convolution(channels_in: int, channels_out: int, kernel_size: int, stride: int = 1) -> CausalConv1d:
    """Return a convolution with EnCodec's padding: a clip too short to be mirrored is lengthened with zeros."""
    return CausalConv1d(channels_in, channels_out, kernel_size, "reflect", stride=stride)


class EncodecDecoder(nn.Module):
    """codes [B, frames, Q] int64 in 0..codebook_size - 1, or -1 for a code that is missing -> wave [B, frames * hop] fp32.

    Any number of frames, which go on from the state if there is one. Each row is decoded for itself; audiolm-pytorch's `EncodecWrapper`
    lays the rows of a batch over each other.
    """

    min_frames = 1

    def __init__(self, config: EncodecConfig) -> None:
        super().__init__()
        self.config = config
        self.codebooks = CodeEmbedding(1, config.rq_num_quantizers, config.codebook_size, config.codebook_dim)
        widths, blocks = config.widths, []
        for narrow, wide, stride in reversed(list(zip(widths[:-1], widths[1:], config.strides, strict=True))):
            blocks += [ELU(), CausalUpsample(wide, narrow, stride), ResidualUnit(narrow)]
        self.decoder = Layers(
            _convolution(config.codebook_dim, widths[-1], KERNEL_SIZE),
            SkipLSTM(widths[-1]),
            *blocks,
            ELU(),
            _convolution(config.n_filters, 1, KERNEL_SIZE),
        )

    @property
    def lookahead_frames(self) -> int:
        """K: the first chunk of a stream holds at least this many frames, as derived in `SoundStreamConfig.min_frames`."""
        farthest, rate = KERNEL_SIZE - 1, 1
        for stride in reversed(self.config.strides):
            rate *= stride
            farthest = max(farthest, (RESIDUAL_KERNEL_SIZE - 1) // rate)
        return farthest + 1

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take `decoder.*` and the first Q codebooks of a state dict without weight norm. RuntimeError names what does not fit."""
        self.load_state_dict({name: tensor for name, tensor in state.items() if name.startswith("decoder.")})
        self.codebooks.load(codebooks(state, self.config))

    def forward(self, codes: Tensor, state: State | None = None) -> Tensor:
        return self.decoder(self.codebooks(codes).transpose(1, 2), state).squeeze(1)


class EncodecEncoder(nn.Module):
    """wave [B, frames * hop] fp32 -> codes [B, frames, Q] int64. Any number of frames, and no part of a frame over."""

    min_frames = 1

    def __init__(self, config: EncodecConfig) -> None:
        super().__init__()
        self.config = config
        widths, blocks = config.widths, []
        for narrow, wide, stride in zip(widths[:-1], widths[1:], config.strides, strict=True):
            blocks += [ResidualUnit(narrow), ELU(), _convolution(narrow, wide, 2 * stride, stride)]
        self.encoder = Layers(
            _convolution(1, config.n_filters, KERNEL_SIZE),
            *blocks,
            SkipLSTM(widths[-1]),
            ELU(),
            _convolution(widths[-1], config.codebook_dim, KERNEL_SIZE),
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
