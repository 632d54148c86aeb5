"""The transformer that both MuLaN towers share: pre-norm attention with normalised queries and keys, and a GEGLU feed-forward.

In and out: [B, S, dim]. Positions, masks and relative biases come in as one additive attention bias; where they come from it does not know.
Parameter names are those of musiclm-pytorch 0.2.8.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ATTENTION_SCALE = 8  # fixed upstream: query-key normalisation, Dehghani et al. 2023, arxiv.org/abs/2302.05442


class LayerNorm(nn.Module):
    """Layer norm with a gain and no bias."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.learned_gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.learned_gamma.shape, self.learned_gamma)


class GEGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return F.gelu(gate) * value


class FeedForward(nn.Sequential):
    def __init__(self, dim: int, mult: float, dropout: float) -> None:
        hidden = int(dim * mult * 2 / 3)
        super().__init__(
            LayerNorm(dim),
            nn.Linear(dim, hidden * 2, bias=False),
            GEGLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, dim, bias=False),
        )


class Attention(nn.Module):
    def __init__(self, dim: int, dim_head: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = LayerNorm(dim)
        self.attn_dropout = nn.Dropout(dropout)
        self.to_q = nn.Linear(dim, dim_head * heads, bias=False)
        self.to_kv = nn.Linear(dim, dim_head * heads * 2, bias=False)
        self.q_scale = nn.Parameter(torch.ones(dim_head))
        self.k_scale = nn.Parameter(torch.ones(dim_head))
        self.to_out = nn.Sequential(nn.Linear(dim_head * heads, dim, bias=False), nn.Dropout(dropout))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [B, S, dim]; bias, added to the scores, broadcastable to [B, H, S, S]."""
        x = self.norm(x)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.to_q(x), *self.to_kv(x).chunk(2, dim=-1)))
        q = F.normalize(q, dim=-1) * self.q_scale
        k = F.normalize(k, dim=-1) * self.k_scale
        scores = q @ k.transpose(-1, -2) * _ATTENTION_SCALE + bias
        out = self.attn_dropout(scores.softmax(dim=-1)) @ v
        return self.to_out(out.transpose(1, 2).flatten(-2))


class Transformer(nn.Module):
    def __init__(self, dim: int, depth: int, dim_head: int, heads: int, attn_dropout: float, ff_mult: float, ff_dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([Attention(dim, dim_head, heads, attn_dropout), FeedForward(dim, ff_mult, ff_dropout)]) for _ in range(depth)
        )

    def forward(self, x: Tensor, bias: Tensor, return_all_layers: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """x [B, S, dim] -> the same; with `return_all_layers` also what the layers before the last one gave, [depth - 1, B, S, dim]."""
        outputs = []
        for attention, feed_forward in self.layers:  # pyright: ignore[reportGeneralTypeIssues]
            x = attention(x, bias) + x
            x = feed_forward(x) + x
            outputs.append(x)
        if not return_all_layers:
            return x
        if len(outputs) < 2:
            raise ValueError("a transformer of one layer has none before its last: return_all_layers takes a depth of 2 and more")
        return x, torch.stack(outputs[:-1])
