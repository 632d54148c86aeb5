"""Local attention of audiolm-pytorch's SoundStream: causal, over a sliding window, the same on both sides of the quantizer.

In and out: [B, S, dim], any S from 1 up, one position per frame. It knows nothing of waves and codes. Parameters carry upstream's names.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

QK_SCALE = 8  # of normalised queries and keys


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
    """Causal attention over a sliding window: normalised queries and keys, rotary positions with xpos, mostly a gate per head."""

    query_rotary: Tensor
    key_rotary: Tensor

    def __init__(
        self, dim: int, heads: int, dim_head: int, window: int, xpos_scale_base: float | None, rotary: bool, gate_values_per_head: bool
    ) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * self.heads * dim_head, bias=False)
        self.q_scale = nn.Parameter(torch.ones(dim_head))
        self.k_scale = nn.Parameter(torch.ones(dim_head))
        self.to_v_gate = nn.Sequential(nn.Linear(dim, self.heads)) if gate_values_per_head else None
        self.to_out = nn.Linear(self.heads * dim_head, dim, bias=False)
        self.rotary = rotary
        if rotary:
            queries, keys = rotary_tables(window, dim_head, xpos_scale_base or window // 2)
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
        if self.to_v_gate is not None:
            out = out * self.to_v_gate(x).sigmoid().unsqueeze(-1)
        return self.to_out(out.flatten(2))


class GEGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x, gate = x.chunk(2, dim=-1)
        return x * F.gelu(gate)


class LocalTransformer(nn.Module):
    distance: Tensor
    reach: Tensor
    reach_of_first: Tensor

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        dim_head: int,
        window: int,
        xpos_scale_base: float | None = None,
        dynamic_pos_bias: bool = False,
        gate_values_per_head: bool = True,
    ) -> None:
        """window: a position sees itself and this many before it. xpos_scale_base: None for half the window.
        dynamic_pos_bias: a learned bias in place of rotary positions. gate_values_per_head: a gate on each head's output."""
        super().__init__()
        self.window = window
        inner = int(dim * 4 * 2 / 3)
        self.layers = nn.ModuleList()
        for _ in range(depth):
            norm, expand, contract = nn.LayerNorm(dim), nn.Linear(dim, 2 * inner, bias=False), nn.Linear(inner, dim, bias=False)
            feed_forward = nn.Sequential(norm, expand, GEGLU(), nn.Identity(), contract)  # upstream's dropout keeps its number
            attention = LocalAttention(dim, heads, dim_head, window, xpos_scale_base, not dynamic_pos_bias, gate_values_per_head)
            self.layers.append(nn.ModuleList([attention, feed_forward]))
        self.pos_bias = DynamicPositionBias(dim // 2, heads) if dynamic_pos_bias else None

        key = torch.arange(2 * window)
        distance = torch.arange(window).unsqueeze(1) + window - key
        reach = torch.zeros(distance.shape).masked_fill((distance < 0) | (distance > window), -torch.inf)
        self.register_buffer("distance", distance, persistent=False)
        self.register_buffer("reach", reach, persistent=False)
        self.register_buffer("reach_of_first", reach.masked_fill(key < window, -torch.inf), persistent=False)  # nothing lies before it

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
