"""SoundStream's decoder (https://arxiv.org/abs/2107.03312) as audiolm-pytorch trains it: codes in, waveform out.

In: codes [B, frames, G*Q] int64, columns ordered (group, quantizer). Out: wave [B, frames * hop] fp32.
It knows nothing of the encoder, the discriminators or files. Submodules carry upstream's names, so a state dict loads by prefix.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL_SIZE = 7  # of every convolution that is neither 1x1 nor an upsampling
QK_SCALE = 8  # of attention with normalised queries and keys


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
    dec_cycle_dilations: Sequence[int]  # of the three residual units of a block, in turn
    pad_mode: str  # "reflect", "constant" or "replicate", as in torch.nn.functional.pad
    squeeze_excite: bool
    use_local_attn: bool
    attn_depth: int = 1
    attn_heads: int = 8
    attn_dim_head: int = 64
    attn_window_size: int = 128  # a frame sees itself and this many frames before it
    attn_xpos_scale_base: float | None = None  # None: half the window
    attn_dynamic_pos_bias: bool = False  # a learned bias in place of rotary positions

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.strides)

    @property
    def dilations(self) -> tuple[int, ...]:
        return tuple(islice(cycle(self.dec_cycle_dilations), 3))

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
            farthest = max(farthest, max(self.dilations) * (KERNEL_SIZE - 1) // rate)
        return farthest + 1

    @property
    def context_frames(self) -> int:
        """How many frames before its first one a chunk from the middle of a clip must be given to decode as in the whole clip.

        The first sample of a frame reaches farthest back. From the samples inward: a convolution of kernel k and dilation d reads d (k - 1)
        positions before its own; an upsampling by s reads the position that its output lies in and the one before, so that r positions of
        its output are ceil(r / s) + 1 of its input. Each layer of attention reads a window of frames before its own. Attention depends on
        distances alone, so chunks need not begin where its windows do. What padding puts before a chunk is read by none of these samples.
        """
        reach = KERNEL_SIZE - 1
        for stride in self.strides:
            reach += sum(self.dilations) * (KERNEL_SIZE - 1)
            reach = -(-reach // stride) + 1
        return reach + KERNEL_SIZE - 1 + (self.attn_depth * self.attn_window_size if self.use_local_attn else 0)


class CausalConv1d(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, pad_mode: str, dilation: int = 1) -> None:
        super().__init__()
        self.padding = dilation * (kernel_size - 1)
        self.pad_mode = pad_mode
        self.conv = nn.Conv1d(channels_in, channels_out, kernel_size, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        if self.padding:
            x = F.pad(x, (self.padding, 0), mode=self.pad_mode)
        return self.conv(x)


class CausalUpsample(nn.Module):
    """Transposed convolution of kernel 2 * stride, cut at the end: [B, C, T] -> [B, C', T * stride]."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.ConvTranspose1d(channels_in, channels_out, 2 * stride, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[..., : -self.stride]


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


class ResidualUnit(nn.Module):
    def __init__(self, channels: int, dilation: int, pad_mode: str, squeeze_excite: bool) -> None:
        super().__init__()
        self.fn = nn.Sequential(
            CausalConv1d(channels, channels, KERNEL_SIZE, pad_mode, dilation),
            nn.ELU(),
            CausalConv1d(channels, channels, 1, pad_mode),
            nn.ELU(),
            *([SqueezeExcite(channels)] if squeeze_excite else []),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x


class DynamicPositionBias(nn.Module):
    """A learned bias per head of the distance between query and key."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(1, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, heads))

    def forward(self, distance: Tensor) -> Tensor:
        """[w, 2w] -> [H, w, 2w]."""
        return self.mlp(torch.arange(distance.shape[1]).float().unsqueeze(1))[distance.abs()].permute(2, 0, 1)


def rotary_tables(window: int, dim_head: int, scale_base: float) -> tuple[Tensor, Tensor]:
    """(cos, sin) of rotary positions with xpos (https://arxiv.org/abs/2212.10554) in two adjacent windows, powers centred on their border.

    Queries stand in the second window, keys in both: returns [2, w, D] and [2, 2w, D].
    """
    even = torch.arange(0, dim_head, 2)
    position = torch.arange(2 * window).float().unsqueeze(1)
    angle = (position * (1.0 / 10000 ** (even.float() / dim_head))).repeat(1, 2)
    scale = (((even + 0.4 * dim_head) / (1.4 * dim_head)) ** ((position - window) / scale_base)).repeat(1, 2)
    tables = torch.stack((angle.cos(), angle.sin()))
    return (tables * scale)[:, window:], tables / scale


def rotate(x: Tensor, table: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * table[0] + torch.cat((-second, first), dim=-1) * table[1]


class LocalAttention(nn.Module):
    """Causal attention over a sliding window: normalised queries and keys, rotary positions with xpos, a gate per head."""

    query_rotary: Tensor
    key_rotary: Tensor

    def __init__(self, config: SoundStreamConfig) -> None:
        super().__init__()
        dim, self.heads, self.window = config.codebook_dim, config.attn_heads, config.attn_window_size
        dim_head = config.attn_dim_head
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * self.heads * dim_head, bias=False)
        self.q_scale = nn.Parameter(torch.ones(dim_head))
        self.k_scale = nn.Parameter(torch.ones(dim_head))
        self.to_v_gate = nn.Sequential(nn.Linear(dim, self.heads))
        self.to_out = nn.Linear(self.heads * dim_head, dim, bias=False)
        self.rotary = not config.attn_dynamic_pos_bias
        if self.rotary:
            queries, keys = rotary_tables(self.window, dim_head, config.attn_xpos_scale_base or self.window // 2)
            self.register_buffer("query_rotary", queries, persistent=False)
            self.register_buffer("key_rotary", keys, persistent=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [B, S, dim], bias [W, 1 or H, w, 2w] (-inf where a key is out of reach) -> [B, S, dim]."""
        length, w = x.shape[1], self.window
        windows = bias.shape[0]
        x = self.norm(x)
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q = F.normalize(q, dim=-1) * (self.q_scale * QK_SCALE)
        k = F.normalize(k, dim=-1) * self.k_scale

        missing = windows * w - length
        q = F.pad(q, (0, 0, 0, 0, 0, missing)).unflatten(1, (windows, w)).transpose(2, 3)  # [B, W, H, w, D]

        def with_window_before(t: Tensor) -> Tensor:
            t = F.pad(t, (0, 0, 0, 0, w, missing)).unflatten(1, (windows + 1, w))
            return torch.cat((t[:, :-1], t[:, 1:]), dim=2).transpose(2, 3)  # [B, W, H, 2w, D]

        k, v = with_window_before(k), with_window_before(v)
        if self.rotary:
            q, k = rotate(q, self.query_rotary), rotate(k, self.key_rotary)
        attention = (q @ k.transpose(-1, -2) + bias).softmax(-1)
        out = (attention @ v).transpose(2, 3).flatten(1, 2).narrow(1, 0, length)  # [B, S, H, D]; slicing leaves a Min in the graph
        return self.to_out((out * self.to_v_gate(x).sigmoid().unsqueeze(-1)).flatten(2))


class GEGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x, gate = x.chunk(2, dim=-1)
        return x * F.gelu(gate)


class LocalTransformer(nn.Module):
    distance: Tensor
    reach: Tensor
    reach_of_first: Tensor

    def __init__(self, config: SoundStreamConfig) -> None:
        super().__init__()
        dim, self.window = config.codebook_dim, config.attn_window_size
        inner = int(dim * 4 * 2 / 3)
        self.layers = nn.ModuleList()
        for _ in range(config.attn_depth):
            norm, expand, contract = nn.LayerNorm(dim), nn.Linear(dim, 2 * inner, bias=False), nn.Linear(inner, dim, bias=False)
            feed_forward = nn.Sequential(norm, expand, GEGLU(), nn.Identity(), contract)  # upstream's dropout keeps its number
            self.layers.append(nn.ModuleList([LocalAttention(config), feed_forward]))
        self.pos_bias = DynamicPositionBias(dim // 2, config.attn_heads) if config.attn_dynamic_pos_bias else None

        key = torch.arange(2 * self.window)
        distance = torch.arange(self.window).unsqueeze(1) + self.window - key
        reach = torch.zeros(distance.shape).masked_fill((distance < 0) | (distance > self.window), -torch.inf)
        self.register_buffer("distance", distance, persistent=False)
        self.register_buffer("reach", reach, persistent=False)
        self.register_buffer("reach_of_first", reach.masked_fill(key < self.window, -torch.inf), persistent=False)  # nothing lies before it

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, dim] -> [B, S, dim], any S from 1 up."""
        windows = (x.shape[1] + self.window - 1) // self.window
        is_first = torch.arange(windows)[:, None, None, None] == 0
        bias = torch.where(is_first, self.reach_of_first, self.reach)
        if self.pos_bias is not None:
            bias = bias + self.pos_bias(self.distance)
        for attention, feed_forward in self.layers:  # pyright: ignore[reportGeneralTypeIssues]
            x = attention(x, bias) + x
            x = feed_forward(x) + x
        return x


class SoundStreamDecoder(nn.Module):
    """codes [B, frames, G*Q] int64 in 0..codebook_size - 1, or -1 for a code that is missing -> wave [B, frames * hop] fp32.

    frames >= config.min_frames. Missing codes add nothing, as in upstream, so fewer quantizers than trained decode too.
    """

    codebooks: Tensor
    first_rows: Tensor

    def __init__(self, config: SoundStreamConfig) -> None:
        super().__init__()
        self.config = config
        books = config.rq_groups * config.rq_num_quantizers
        rows = config.codebook_size + 1  # row 0 of every book is zero, for a missing code
        self.register_buffer("codebooks", torch.zeros(books * rows, config.codebook_dim // config.rq_groups), persistent=False)
        self.register_buffer("first_rows", torch.arange(books) * rows + 1, persistent=False)
        self.decoder_attn = LocalTransformer(config) if config.use_local_attn else None

        widths = [config.channels * mult for mult in (1, *config.channel_mults)]
        blocks = [
            nn.Sequential(
                CausalUpsample(wide, narrow, stride),
                *(ResidualUnit(narrow, dilation, config.pad_mode, config.squeeze_excite) for dilation in config.dilations),
            )
            for narrow, wide, stride in zip(widths[:-1], widths[1:], config.strides, strict=True)
        ]
        self.decoder = nn.Sequential(
            CausalConv1d(config.codebook_dim, widths[-1], KERNEL_SIZE, config.pad_mode),
            *reversed(blocks),
            CausalConv1d(config.channels, 1, KERNEL_SIZE, config.pad_mode),
        )

    @property
    def min_frames(self) -> int:
        return self.config.min_frames

    def load_upstream(self, state: Mapping[str, Tensor]) -> None:
        """Take what decoding needs from a whole SoundStream's state dict: `decoder.*`, `decoder_attn.*` and each
        `rq.rvqs.{group}.layers.{quantizer}._codebook.embed` [1, codebook_size, codebook_dim / G]. The rest serves training."""
        ours = (name for name in state if name.startswith(("decoder.", "decoder_attn.")))
        self.load_state_dict({name: state[name] for name in ours if not name.endswith(".inv_freq")})  # rotary frequencies, known anyway
        order = product(range(self.config.rq_groups), range(self.config.rq_num_quantizers))
        books = torch.cat([state[f"rq.rvqs.{group}.layers.{quantizer}._codebook.embed"] for group, quantizer in order])
        self.codebooks = F.pad(books.float(), (0, 0, 1, 0)).flatten(0, 1)

    def forward(self, codes: Tensor) -> Tensor:
        x = F.embedding(codes + self.first_rows, self.codebooks)
        x = x.unflatten(2, (self.config.rq_groups, -1)).sum(3).flatten(2)  # [B, frames, codebook_dim]
        if self.decoder_attn is not None:
            x = self.decoder_attn(x)
        return self.decoder(x.transpose(1, 2)).squeeze(1)
