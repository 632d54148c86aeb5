"""open-musiclm's transformer (github.com/zhvng/open-musiclm, 8e2c6a8): the reference that an exported stage is compared with.

In: token sequences, int64 [B, n] each, the last of which is predicted. Out: logits float32 [B, n + 1, V + 1] of it. Parameter names and
shapes are those of its `TokenConditionedTransformer`. It computes whole sequences; drop-out and the loss are not here.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FAR = -65504.0


class TokenConditionedTransformer(nn.Module):
    """Several token sequences, each with a start token in front and an end behind, one causal transformer, and heads for each sequence."""

    def __init__(
        self,
        sequences: Sequence[tuple[int, int]],
        dim: int,
        depth: int,
        heads: int = 8,
        dim_head: int = 64,
        *,
        relative_position_bias_type: str = "continuous",
        use_conv_ff: bool = True,
        use_absolute_position_embeddings: bool = False,
        max_absolute_position_embeddings: int = 262,
        use_memory_efficient_attention: bool = False,
    ) -> None:
        """sequences: (quantizers, codes) of each. Raises ValueError for a bias of another type."""
        super().__init__()
        self.sequences = list(sequences)
        self.start_tokens = nn.ParameterList(torch.randn(dim) for _ in sequences)
        self.embeddings = nn.ModuleList(nn.Embedding((V + 1) * Q, dim) for Q, V in sequences)
        self.logit_weights = nn.ParameterList(torch.randn(Q, V + 1, dim) for Q, V in sequences)
        self.absolute_position_embeddings = None
        if use_absolute_position_embeddings:
            self.absolute_position_embeddings = nn.ModuleList(nn.Embedding(max_absolute_position_embeddings, dim) for _ in sequences)
        scale = dim_head**-0.5 if use_memory_efficient_attention else 8.0  # xformers takes its own
        self.transformer = _Transformer(dim, depth, heads, dim_head, relative_position_bias_type, use_conv_ff, scale)

    def forward(self, *token_ids: Tensor, hide_ends: bool = True) -> Tensor:
        """token_ids: int64 [B, n] of each sequence, flat over its quantizers, without ends.

        hide_ends: whether the ends are what they were in training, code 0 that nothing attends to; else the row of their own number.
        """
        parts, hidden = [], []
        for index, (ids, (Q, V)) in enumerate(zip(token_ids, self.sequences, strict=True)):
            rows = ids + torch.arange(ids.shape[1]) % Q * V
            if index < len(self.sequences) - 1:
                rows = F.pad(rows, (0, 1), value=0 if hide_ends else V)
            x = F.embedding(rows, self.get_parameter(f"embeddings.{index}.weight"))
            if self.absolute_position_embeddings is not None:
                x = x + self.get_parameter(f"absolute_position_embeddings.{index}.weight")[: x.shape[1]]
            parts += [self.start_tokens[index].expand(len(ids), 1, -1), x]
            hidden += [torch.zeros(1 + x.shape[1], dtype=torch.bool)]
            hidden[-1][-1] = hide_ends and index < len(self.sequences) - 1
        x = self.transformer(torch.cat(parts, dim=1), torch.cat(hidden))
        x = x[:, -token_ids[-1].shape[1] - 1 :]
        heads = self.logit_weights[-1][torch.arange(x.shape[1]) % self.sequences[-1][0]]  # [n + 1, V + 1, dim]
        return torch.einsum("nvd,bnd->bnv", heads, x)


class _Norm(nn.Module):
    """Layer normalisation whose bias is a buffer of zeros."""

    beta: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.register_buffer("beta", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta)


class _Attention(nn.Module):
    """Multi-query attention with queries and keys of length 1 (Henry et al. 2020, arxiv.org/abs/2010.04245), each with a gain."""

    def __init__(self, dim: int, heads: int, dim_head: int, scale: float) -> None:
        super().__init__()
        self.heads, self.scale = heads, scale
        self.norm = _Norm(dim)
        self.to_q, self.to_kv = nn.Linear(dim, heads * dim_head, bias=False), nn.Linear(dim, 2 * dim_head, bias=False)
        self.q_scale, self.k_scale = nn.Parameter(torch.ones(dim_head)), nn.Parameter(torch.ones(dim_head))
        self.to_out = nn.Sequential(nn.Linear(heads * dim_head, dim, bias=False))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [B, n, dim], bias [H, n, n] with what is hidden -> [B, n, dim]. Keys and values are made of x as it is, queries of its norm."""
        key, value = self.to_kv(x).chunk(2, dim=-1)
        query = self.to_q(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        query, key = F.normalize(query, dim=-1) * self.q_scale, F.normalize(key, dim=-1) * self.k_scale
        weights = torch.softmax(query @ key[:, None].transpose(-1, -2) * self.scale + bias, dim=-1)
        return self.to_out((weights @ value[:, None]).transpose(1, 2).flatten(2))


class _Convolution(nn.Module):
    """Over a position and the two before it, each channel by itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ds_conv = nn.Conv1d(width, width, 3, bias=False, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        return self.ds_conv(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)


class _Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return F.gelu(gate) * value


def _feed_forward(dim: int, convolution: bool) -> nn.Sequential:
    inner = int(dim * 8 / 3) if convolution else 4 * dim
    parts = [_Norm(dim), nn.Linear(dim, 2 * inner, bias=False), _Gate(), _Norm(inner)]
    parts += [nn.Identity(), nn.Linear(inner, dim, bias=False)]  # where the drop-out stands in training
    if convolution:
        parts.insert(2, _Convolution(2 * inner))
    return nn.Sequential(*parts)


class _DistanceBias(nn.Module):
    """An MLP of the distance (Liu et al. 2021, arxiv.org/abs/2111.09883)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        widths = [1, dim, dim, dim]
        hidden = [nn.Sequential(nn.Linear(a, b), nn.SiLU()) for a, b in pairwise(widths)]
        self.net = nn.ModuleList([*hidden, nn.Linear(dim, heads)])

    def forward(self, n: int) -> Tensor:
        x = torch.arange(n, dtype=next(self.parameters()).dtype)[:, None]
        for layer in self.net:
            x = layer(x)
        distance = (torch.arange(n)[:, None] - torch.arange(n)).clamp(min=0)  # a key after its query is hidden
        return x[distance].permute(2, 0, 1)


class _BucketBias(nn.Module):
    """A number per head: the sign of its distances puts every key before a query into bucket 0."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.relative_attention_bias = nn.Embedding(32, heads)

    def forward(self, n: int) -> Tensor:
        return self.relative_attention_bias.weight[0][:, None, None].expand(-1, n, n)


class _Transformer(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, dim_head: int, bias: str, convolution: bool, scale: float) -> None:
        super().__init__()
        if bias not in ("continuous", "t5", "none"):
            raise ValueError(f"relative_position_bias_type must be continuous, t5 or none, got {bias!r}")
        self.rel_pos_bias = _DistanceBias(dim // 2, heads) if bias == "continuous" else _BucketBias(heads) if bias == "t5" else None
        # the second of three would be a cross-attention, which is never there
        layers = [[_Attention(dim, heads, dim_head, scale), None, _feed_forward(dim, convolution)] for _ in range(depth)]
        self.layers = nn.ModuleList(nn.ModuleList(layer) for layer in layers)
        self._branches = [(attention, feed_forward) for attention, _, feed_forward in layers]
        self.norm = _Norm(dim)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """x [B, n, dim], hidden bool [n]: keys that nothing attends to -> [B, n, dim]."""
        n = x.shape[1]
        unseen = torch.ones(n, n, dtype=torch.bool).triu(1) | hidden
        bias = torch.zeros(1, n, n) if self.rel_pos_bias is None else self.rel_pos_bias(n)
        bias = bias.masked_fill(unseen, _FAR)
        for attention, feed_forward in self._branches:
            x = x + attention(x, bias)
            x = x + feed_forward(x)
        return self.norm(x)
