"""SoundStream's decoder (https://arxiv.org/abs/2107.03312) as audiolm-pytorch trains it: codes in, waveform out.

In: codes [B, frames, G*Q] int64, columns ordered (group, quantizer). Out: wave [B, frames * hop] fp32.
The settings and the blocks here serve the encoder too, which is in `soundstream_encoder`. It knows nothing of the discriminators or files.
Submodules carry upstream's names, so a state dict loads by prefix.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Tensor, nn

from .causal import ELU, CausalConv1d, CausalLayer, CausalSequential, CausalUpsample, State
from .local_attention import LocalTransformer
from .residual_vq import CodeEmbedding

KERNEL_SIZE = 7  # of every convolution that is neither 1x1 nor a change of rate, the encoder's last excepted


@dataclass(frozen=True)
class SoundStreamConfig:
    """Upstream's argument names and, for the attention, its defaults."""

    channels: int
    strides: tuple[int, ...]  # of the encoder, first layer first; the decoder upsamples in the reverse order
    channel_mults: tuple[int, ...]
    codebook_dim: int
    codebook_size: int
    rq_num_quantizers: int  # Q, per group
    rq_groups: int  # G
    enc_cycle_dilations: Sequence[int]  # of the three residual units of a block, in turn
    dec_cycle_dilations: Sequence[int]
    pad_mode: str  # "reflect", "constant" or "replicate", as in torch.nn.functional.pad
    squeeze_excite: bool
    use_local_attn: bool
    attn_depth: int = 1
    attn_heads: int = 8
    attn_dim_head: int = 64
    attn_window_size: int = 128  # a frame sees itself and this many frames before it
    attn_xpos_scale_base: float | None = None  # None: half the window
    attn_dynamic_pos_bias: bool = False  # a learned bias in place of rotary positions
    gate_values_per_head: bool = True  # of the attention; before 1.6.3 there was no gate
    pads_whole_kernels: bool = False  # before 0.26.3 the encoder's changes of rate padded zeros, a kernel less one, whatever the stride

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.strides)

    @property
    def widths(self) -> list[int]:
        """Channels at the rate of the samples, and after each stride."""
        return [self.channels * mult for mult in (1, *self.channel_mults)]

    @property
    def min_frames(self) -> int:
        """The fewest frames that decode at all, and the fewest that the first chunk of a stream must hold.

        Reflecting p positions to the left of position 0 lets output i of a convolution read inputs up to max(i, p - i): the first p outputs
        look ahead, as far as position p, the others see their past alone. At r positions per frame, position p lies in frame p // r. Let L
        be the largest p // r of all layers. In every layer frames 0..L depend on frames 0..L only, and later frames on nothing after
        themselves; the same then holds from codes to samples. So L + 1 frames decode alone as in the whole clip; fewer do not.
        Reflection also needs the p + 1 positions to exist (torch and ONNX Runtime raise on less): the same L + 1 frames.
        At strides (2, 4, 5, 8) the first convolution reflects 6 frames and the last unit of the first block 54 // 8 = 6: 7 frames.
        The other modes put zeros or copies of the first position there and look at nothing ahead: 1.
        """
        if self.pad_mode != "reflect":
            return 1
        farthest, rate = KERNEL_SIZE - 1, 1
        for stride in reversed(self.strides):
            rate *= stride
            farthest = max(farthest, max(three(self.dec_cycle_dilations)) * (KERNEL_SIZE - 1) // rate)
        return farthest + 1

    def attention(self) -> LocalTransformer | None:
        """A new one, of the encoder or of the decoder: they do not share weights."""
        if not self.use_local_attn:
            return None
        return LocalTransformer(
            self.codebook_dim,
            self.attn_depth,
            self.attn_heads,
            self.attn_dim_head,
            self.attn_window_size,
            self.attn_xpos_scale_base,
            self.attn_dynamic_pos_bias,
            self.gate_values_per_head,
        )


def three(dilations: Sequence[int]) -> tuple[int, ...]:
    """Of the three residual units of a block."""
    return tuple(islice(cycle(dilations), 3))


class SqueezeExcite(nn.Module):
    """A gate per channel and position. Upstream means to average over the past, but its axis is that of the channels: so it was trained."""

    count: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(8, channels // 4)
        self.net = nn.Sequential(nn.Conv1d(channels, inner, 1), nn.SiLU(), nn.Conv1d(inner, channels, 1), nn.Sigmoid())
        self.register_buffer("count", torch.arange(1.0, channels + 1).unsqueeze(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.net(x.cumsum(1) / self.count)


class ResidualUnit(CausalLayer):
    def __init__(self, channels: int, dilation: int, pad_mode: str, squeeze_excite: bool) -> None:
        super().__init__()
        self.fn = CausalSequential(
            CausalConv1d(channels, channels, KERNEL_SIZE, pad_mode, dilation),
            ELU(),
            CausalConv1d(channels, channels, 1, pad_mode),
            ELU(),
            *([SqueezeExcite(channels)] if squeeze_excite else []),
        )

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        return self.fn(x, state) + x


class SoundStreamDecoder(nn.Module):
    """codes [B, frames, G*Q] int64 in 0..codebook_size - 1, or -1 for a code that is missing -> wave [B, frames * hop] fp32.

    frames >= config.min_frames, or any number with the state of an earlier call. Missing codes add nothing, as in upstream, so fewer
    quantizers than trained decode too.
    """

    def __init__(self, config: SoundStreamConfig) -> None:
        super().__init__()
        self.config = config
        groups = config.rq_groups
        self.codebooks = CodeEmbedding(groups, config.rq_num_quantizers, config.codebook_size, config.codebook_dim // groups)
        self.decoder_attn = config.attention()
        widths = config.widths
        blocks = [
            CausalSequential(
                CausalUpsample(wide, narrow, stride),
                *(ResidualUnit(narrow, dilation, config.pad_mode, config.squeeze_excite) for dilation in three(config.dec_cycle_dilations)),
            )
            for narrow, wide, stride in zip(widths[:-1], widths[1:], config.strides, strict=True)
        ]
        self.decoder = CausalSequential(
            CausalConv1d(config.codebook_dim, widths[-1], KERNEL_SIZE, config.pad_mode),
            *reversed(blocks),
            CausalConv1d(config.channels, 1, KERNEL_SIZE, config.pad_mode),
        )

    @property
    def min_frames(self) -> int:
        return self.config.min_frames

    @property
    def lookahead_frames(self) -> int:
        return self.config.min_frames

    def load_upstream(self, state: Mapping[str, Tensor]) -> None:
        """Take what decoding needs from a whole SoundStream's state dict: `decoder.*`, `decoder_attn.*` and the codebooks."""
        load_parts(self, state, ("decoder.", "decoder_attn."))
        self.codebooks.load(codebooks(state, self.config))

    def forward(self, codes: Tensor, state: State | None = None) -> Tensor:
        x = self.codebooks(codes)
        if self.decoder_attn is not None:
            x = self.decoder_attn(x, state)
        return self.decoder(x.transpose(1, 2), state).squeeze(1)


def load_parts(module: nn.Module, state: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> None:
    """Load the tensors with these prefixes, all but rotary frequencies, which are known anyway. RuntimeError names what does not fit."""
    module.load_state_dict({name: state[name] for name in state if name.startswith(prefixes) and not name.endswith(".inv_freq")})


def codebooks(state: Mapping[str, Tensor], config: SoundStreamConfig) -> Tensor:
    """[G, Q, K, D / G] from each `rq.rvqs.{group}.layers.{quantizer}._codebook.embed` [1, K, D / G]."""
    books = [
        [state[f"rq.rvqs.{group}.layers.{quantizer}._codebook.embed"][0] for quantizer in range(config.rq_num_quantizers)]
        for group in range(config.rq_groups)
    ]
    return torch.stack([torch.stack(group) for group in books]).float()
