"""Local attention of audiolm-pytorch's SoundStream: causal, over a sliding window, the same on both sides of the quantizer.

In and out: [B, S, dim], any S from 1 up, one position per frame. It knows nothing of waves and codes. Parameters carry upstream's names.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .causal import CausalLayer, State

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


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def normalize(x: Tensor) -> Tensor:
    """As `torch.nn.functional.normalize` over the last axis, without a copy of the lengths for each element in the graph."""
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)


class LocalAttention(CausalLayer):
    """Causal attention over a sliding window: normalised queries and keys, rotary positions with xpos, mostly a gate per head."""

    query_cos: Tensor
    query_sin: Tensor
    key_cos: Tensor
    key_sin: Tensor

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
            for name, table in (("query_cos", queries[0]), ("query_sin", queries[1]), ("key_cos", keys[0]), ("key_sin", keys[1])):
                self.register_buffer(name, table, persistent=False)

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(("key", "value"), (self.window, self.heads, len(self.q_scale)))

    def forward(self, x: Tensor, bias: Tensor, state: State | None) -> Tensor:
        """x [B, S, dim], bias [W, 1 or H, n, w + n] of W blocks of n queries (-inf where a key is out of reach) -> [B, S, dim].

        A block's queries read their own keys and the window before them.
        """
        length, w, (windows, _, n, _) = x.shape[1], self.window, bias.shape
        x = self.norm(x)
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q = normalize(q) * (self.q_scale * QK_SCALE)
        k = normalize(k) * self.k_scale

        missing = windows * n - length
        q = F.pad(q, (0, 0, 0, 0, 0, missing)).unflatten(1, (windows, n)).transpose(2, 3)  # [B, W, H, n, D]

        def with_window_before(t: Tensor) -> Tensor:
            before = t.new_zeros(t.shape[0], w, self.heads, t.shape[3]) if state is None else state.take()
            t = F.pad(t, (0, 0, 0, 0, 0, missing))
            both = torch.cat((before, t), dim=1)
            if state is not None:
                state.keep(both.index_select(1, length + torch.arange(w, device=t.device)))  # a slice's size is unknown in a graph
            # Several blocks are as long as a window, so that the block before is the window before.
            before = both.narrow(1, 0, windows * w).unflatten(1, (windows, w))
            return torch.cat((before, t.unflatten(1, (windows, n))), dim=2).transpose(2, 3)  # [B, W, H, w + n, D]

        k, v = with_window_before(k), with_window_before(v)
        if self.rotary:
            q = rotate(q, self.query_cos[:n], self.query_sin[:n])
            k = rotate(k, self.key_cos[: w + n], self.key_sin[: w + n])
        attention = (q @ k.transpose(-1, -2) + bias).softmax(-1)
        out = (attention @ v).transpose(2, 3).flatten(1, 2).narrow(1, 0, length)  # [B, S, H, D]; slicing leaves a Min in the graph
        if self.to_v_gate is not None:
            out = out * self.to_v_gate(x).sigmoid().unsqueeze(-1)
        return self.to_out(out.flatten(2))


class GEGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x, gate = x.chunk(2, dim=-1)
        return x * F.gelu(gate)


class LocalTransformer(CausalLayer):
    distance: Tensor
    reach: Tensor

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

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        """[B, S, dim] -> [B, S, dim], any S from 1 up."""
        w = self.window
        n = torch.sym_min(x.shape[1], w)  # queries of a block: a call shorter than a window is one block, without rows that are not needed
        windows = (x.shape[1] + n - 1) // n
        frames = torch.zeros(1, dtype=torch.long) if state is None else state.frames
        position = torch.arange(windows).unsqueeze(1) * w + torch.arange(w + n) - w + frames  # [W, w + n] of keys in the clip
        bias = torch.where(position[:, None, None, :] >= 0, self.reach[:n, : w + n], -torch.inf)
        if self.pos_bias is not None:
            bias = bias + self.pos_bias(self.distance)[:, :n, : w + n]
        for attention, feed_forward in self.layers:  # pyright: ignore[reportGeneralTypeIssues]
            x = attention(x, bias, state) + x
            x = feed_forward(x) + x
        return x
