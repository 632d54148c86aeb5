"""SoundStream's encoder (https://arxiv.org/abs/2107.03312) as audiolm-pytorch trains it: waveform in, codes out.

In: wave [B, frames * hop] fp32 at the codec's rate. Out: codes [B, frames, G*Q] int64, columns ordered (group, quantizer).
It knows nothing of the decoder, of other rates or of files. Submodules carry upstream's names, so a state dict loads by prefix.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from .causal import CausalConv1d, CausalSequential
from .residual_vq import CodeSearch, Distance, euclidean
from .soundstream import KERNEL_SIZE, ResidualUnit, SoundStreamConfig, codebooks, load_parts, three

LAST_KERNEL_SIZE = 3


def _downsample(channels_in: int, channels_out: int, stride: int, pads_whole_kernels: bool) -> CausalConv1d:
    """Return the convolution that changes the rate, which upstream's pad_mode does not reach."""
    if pads_whole_kernels:
        return CausalConv1d(channels_in, channels_out, 2 * stride, "constant", stride=stride, padding=2 * stride - 1)
    return CausalConv1d(channels_in, channels_out, 2 * stride, "reflect", stride=stride)


class SoundStreamEncoder(nn.Module):
    """wave [B, frames * hop] fp32 -> codes [B, frames, G*Q] int64. frames >= min_frames, and no part of a frame over."""

    def __init__(self, config: SoundStreamConfig, distance: Distance = euclidean) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        blocks = [
            CausalSequential(
                *(ResidualUnit(narrow, dilation, config.pad_mode, config.squeeze_excite) for dilation in three(config.enc_cycle_dilations)),
                _downsample(narrow, wide, stride, config.pads_whole_kernels),
            )
            for narrow, wide, stride in zip(widths[:-1], widths[1:], config.strides, strict=True)
        ]
        self.encoder = CausalSequential(
            CausalConv1d(1, config.channels, KERNEL_SIZE, config.pad_mode),
            *blocks,
            CausalConv1d(widths[-1], config.codebook_dim, LAST_KERNEL_SIZE, config.pad_mode),
        )
        self.encoder_attn = config.attention()
        groups = config.rq_groups
        self.search = CodeSearch(groups, config.rq_num_quantizers, config.codebook_size, config.codebook_dim // groups, distance)

    @property
    def min_frames(self) -> int:
        """The fewest frames that encode: reflecting p positions needs p + 1 of them, which p // r + 1 frames of r positions hold."""
        config, rate = self.config, self.config.hop
        padded, downsampled = [(KERNEL_SIZE - 1, rate)], []
        for stride in config.strides:
            padded.append((max(three(config.enc_cycle_dilations)) * (KERNEL_SIZE - 1), rate))
            downsampled.append((stride, rate))
            rate //= stride
        padded.append((LAST_KERNEL_SIZE - 1, rate))
        reflected = ([] if config.pads_whole_kernels else downsampled) + (padded if config.pad_mode == "reflect" else [])
        return max((padding // positions + 1 for padding, positions in reflected), default=1)

    def load_upstream(self, state: Mapping[str, Tensor]) -> None:
        """Take what encoding needs from a whole SoundStream's state dict: `encoder.*`, `encoder_attn.*` and the codebooks."""
        load_parts(self, state, ("encoder.", "encoder_attn."))
        self.search.load(codebooks(state, self.config))

    def forward(self, wave: Tensor) -> Tensor:
        x = self.encoder(wave.unsqueeze(1)).transpose(1, 2)
        if self.encoder_attn is not None:
            x = self.encoder_attn(x)
        return self.search(x)
