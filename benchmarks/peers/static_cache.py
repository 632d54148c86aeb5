"""The PyTorch that a user would write in place of upstream's loop: the coarse transformer with a static KV cache, eager or compiled.

In: upstream's state dict, the tokens of a case. Out: logits, equal to upstream's. Written for speed: the cache is exactly as long as the
case needs, keys and values of the conditioning are computed once, the bias is read from a table, heads share their keys without copies, and
the whole step is one function without branches, so that `torch.compile` sees one graph. It knows nothing of bundles.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StaticCacheCoarse(nn.Module):
    """B rows of equal lengths. Letters: S positions of a call, T capacity, H heads, D head size, s residual streams."""

    semantic_start_token: Tensor
    coarse_start_token: Tensor
    semantic_embedding_weight: Tensor
    codes_embedding: Tensor  # [codes * codebook, dim], the quantizers' embeddings added
    coarse_logit_weights: Tensor  # [codes, V, dim]
    bias: Tensor  # [H, T], by distance
    across: Tensor  # [H, 1, 1], between the segments
    key_positions: Tensor

    def __init__(self, state: Mapping[str, Tensor], rows: int, told: int, capacity: int, conditioning: Tensor) -> None:
        """state: of a CoarseTransformer with cross-attention and relative bias, of audiolm-pytorch 2.4. told: semantic tokens of the
        prompt; capacity: positions; conditioning: float32 [B, C, dim], as upstream's `text_embeds`."""
        super().__init__()
        weights = {name: tensor.detach() for name, tensor in state.items()}
        codes = weights["coarse_quantize_embedding.weight"].shape[0]
        self.vocabulary = weights["coarse_logit_weights"].shape[1]
        self.codes, self.codebook, self.told = codes, self.vocabulary - 1, told
        D = weights["transformer.layers.0.0.branch.to_kv.weight"].shape[0] // 2
        self.heads, self.head_size = weights["transformer.layers.0.0.branch.to_q.weight"].shape[0] // D, D
        self.streams = weights["transformer.layers.0.0.static_beta"].shape[0]
        for name in ("semantic_start_token", "coarse_start_token", "semantic_embedding.weight", "coarse_logit_weights"):
            self.register_buffer(name.replace(".", "_"), weights[name])
        table = weights["coarse_embedding.weight"][: codes * self.codebook].view(codes, self.codebook, -1)
        self.register_buffer("codes_embedding", (table + weights["coarse_quantize_embedding.weight"][:, None]).flatten(0, 1))
        self.register_buffer("bias", _bias_by_distance(weights, capacity))
        self.register_buffer("across", weights["cross_attn_bias"].view(-1, 1, 1))
        self.register_buffer("key_positions", torch.arange(capacity))
        self.depth = sum(name.endswith(".0.static_beta") for name in weights)
        self.layers = nn.ModuleList(_Layer(weights, layer, self.heads, rows, capacity) for layer in range(self.depth))
        self.norm = _norm(weights, "transformer.norm")
        first: Tensor | None = None
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            first = layer.tell(conditioning, first)

    @torch.inference_mode()
    def prefill(self, semantic: Tensor, prime: Tensor) -> None:
        """semantic int64 [B, told], prime int64 [B, n]: the prompt, into the cache."""
        B = len(semantic)
        dtype = self.codes_embedding.dtype
        offsets = torch.arange(prime.shape[1]) % self.codes * self.codebook
        starts = (start.expand(B, 1, -1) for start in (self.semantic_start_token, self.coarse_start_token))
        begin, between = starts
        x = torch.cat([begin, self.semantic_embedding_weight[semantic], between, self.codes_embedding[prime + offsets]], dim=1)
        self._positions(x.to(dtype), torch.arange(x.shape[1]))

    def forward(self, tokens: Tensor, position: Tensor, offset: Tensor, head: Tensor) -> Tensor:
        """tokens int64 [B] of one quantizer, whose rows begin at offset int64 [1], placed at position int64 [1] -> logits [B, V].

        head: [V, dim], of the quantizer that comes next.
        """
        x = self._positions(self.codes_embedding[tokens + offset][:, None], position)
        return F.linear(x[:, -1], head)

    def _positions(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [B, S, dim] at positions int64 [S] -> [B, S, dim]."""
        distance = positions[:, None] - self.key_positions
        bias = self.bias[:, distance.clamp(min=0)]
        begins = self.told + 1
        crossing = (positions[:, None] >= begins) ^ (self.key_positions >= begins)
        bias = torch.where(crossing, self.across, bias).masked_fill(distance < 0, float("-inf"))  # [H, S, T]
        bias = bias.transpose(0, 1).flatten(0, 1)[None, None].to(x.dtype)  # [1, 1, S * H, T]
        x = x[:, :, None].expand(-1, -1, self.streams, -1)
        first: Tensor | None = None
        for layer in self.layers:
            x, first = layer(x, bias, positions, first)
        return self.norm(x.sum(dim=2))


class _Layer(nn.Module):
    null: Tensor
    keys: Tensor
    values: Tensor
    context_keys: Tensor
    context_values: Tensor

    def __init__(self, weights: Mapping[str, Tensor], layer: int, heads: int, rows: int, capacity: int) -> None:
        super().__init__()
        at = f"transformer.layers.{layer}"
        self.heads = heads
        self.connections = nn.ModuleList(_Connection(weights, f"{at}.{branch}") for branch in range(3))
        attention, cross, feed = (f"{at}.{branch}.branch" for branch in range(3))
        self.norms = nn.ModuleList(_norm(weights, name) for name in (f"{attention}.norm", f"{cross}.norm", f"{feed}.0", f"{feed}.3"))
        self.context_norm = _norm(weights, f"{cross}.context_norm")
        self.q, self.kv, self.out = (_linear(weights, f"{attention}.{part}") for part in ("to_q", "to_kv", "to_out.0"))
        self.cross_q, self.cross_kv, self.cross_out = (_linear(weights, f"{cross}.{part}") for part in ("to_q", "to_kv", "to_out.0"))
        self.feed_in, self.feed_out = _linear(weights, f"{feed}.1"), _linear(weights, f"{feed}.5")
        self.register_buffer("null", weights[f"{cross}.null_kv"])  # [2, 1, D]
        D = self.kv.weight.shape[0] // 2
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(rows, 1, capacity, D))
        self.context_keys, self.context_values = nn.Buffer(torch.empty(0)), nn.Buffer(torch.empty(0))

    def tell(self, conditioning: Tensor, first: Tensor | None) -> Tensor:
        """Keys and values of the conditioning [B, C, dim], once; first: values of layer 0, averaged into the later layers."""
        keys, values = self.cross_kv(self.context_norm(conditioning)).chunk(2, dim=-1)
        own = values
        if first is not None:
            values = 0.5 * (values + first)
        null = self.null[:, None].expand(-1, len(keys), -1, -1)
        self.context_keys, self.context_values = (torch.cat(pair, dim=1)[:, None] for pair in zip(null, (keys, values), strict=True))
        return own if first is None else first

    def forward(self, x: Tensor, bias: Tensor, positions: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
        """x [B, S, s, dim] -> the same, and the values [B, S, D] of layer 0."""
        y, back = self.connections[0](x)
        key, value = self.kv(y).chunk(2, dim=-1)  # of the branch's input before its norm, as upstream
        own = value
        if first is not None:
            value = 0.5 * (value + first)
        self.keys.index_copy_(2, positions, key[:, None])
        self.values.index_copy_(2, positions, value[:, None])
        x = back(self.out(self._attend(self.q(self.norms[0](y)), self.keys, self.values, bias)))
        y, back = self.connections[1](x)
        x = back(self.cross_out(self._attend(self.cross_q(self.norms[1](y)), self.context_keys, self.context_values, None)))
        y, back = self.connections[2](x)
        value, gate = self.feed_in(self.norms[2](y)).chunk(2, dim=-1)
        x = back(self.feed_out(self.norms[3](F.gelu(gate) * value)))
        return x, own if first is None else first

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """query [B, S, H * D]: there is one key head, so the query heads are as many queries more, and no key is copied."""
        B, S, width = query.shape
        folded = query.view(B, 1, S * self.heads, width // self.heads)
        return F.scaled_dot_product_attention(folded, keys, values, attn_mask=bias).reshape(B, S, width)


class _Connection(nn.Module):
    """Hyper-connections (Zhu et al. 2024, appendix J) around one branch."""

    gain: Tensor
    dynamic: Tensor
    scale: Tensor
    static: Tensor

    def __init__(self, weights: Mapping[str, Tensor], at: str) -> None:
        super().__init__()
        self.register_buffer("gain", weights[f"{at}.norm.gamma"] + 1)
        dynamic = torch.cat([weights[f"{at}.dynamic_alpha_fn"], weights[f"{at}.dynamic_beta_fn"][:, None]], dim=1)
        self.register_buffer("dynamic", dynamic)  # [dim, s + 2]
        columns = dynamic.shape[1]
        scale = weights[f"{at}.dynamic_alpha_scale"].repeat(columns)
        scale[-1] = weights[f"{at}.dynamic_beta_scale"]
        self.register_buffer("scale", scale)
        self.register_buffer("static", torch.cat([weights[f"{at}.static_alpha"], weights[f"{at}.static_beta"][:, None]], dim=1))

    def forward(self, x: Tensor):
        """x [B, S, s, dim] -> the branch's input [B, S, dim], and the function that takes its output back into the streams."""
        normed = F.normalize(x, dim=-1) * x.shape[-1] ** 0.5 * self.gain
        mixing = torch.tanh(normed @ self.dynamic) * self.scale + self.static
        alpha, beta = mixing[..., :-1], mixing[..., -1:]
        mixed = alpha.transpose(-1, -2) @ x
        return mixed[..., 0, :], lambda output: mixed[..., 1:, :] + beta * output[..., None, :]


def _linear(weights: Mapping[str, Tensor], name: str) -> nn.Linear:
    weight = weights[f"{name}.weight"]
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return linear


def _norm(weights: Mapping[str, Tensor], name: str) -> nn.LayerNorm:
    gain = weights[f"{name}.gamma"]
    norm = nn.LayerNorm(len(gain))
    norm.weight, norm.bias = (nn.Parameter(weights[f"{name}.{part}"].clone(), requires_grad=False) for part in ("gamma", "beta"))
    return norm


def _bias_by_distance(weights: Mapping[str, Tensor], capacity: int) -> Tensor:
    """float32 [H, T]: upstream's MLP at every distance that a causal pair can have."""
    x, at = torch.arange(capacity).float()[:, None], "transformer.rel_pos_bias.net"
    for layer in range(3):
        x = F.silu(F.linear(x, weights[f"{at}.{layer}.0.weight"], weights[f"{at}.{layer}.0.bias"]))
    return F.linear(x, weights[f"{at}.3.weight"], weights[f"{at}.3.bias"]).T.contiguous()
