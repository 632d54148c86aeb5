"""MuLaN's text tower, a transformer over CLIP's tokens with a leading class token, as in musiclm-pytorch 0.2.8.

In: token ids [B, n] or plain texts. Out: one embedding per text, [B, dim]. Constructor arguments, parameter names and state-dict keys are
upstream's.
"""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..runtime.tokenizer import ClipTokenizer
from .transformer import LayerNorm, Transformer


def clip_merges_path() -> Path:
    """The vocabulary file inside the installed x-clip package, found without importing it (which would need torchvision)."""
    spec = find_spec("x_clip")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, "data", "bpe_simple_vocab_16e6.txt")
        if path.is_file():
            return path
    raise ModuleNotFoundError(
        "MuLaN's vocabulary, bpe_simple_vocab_16e6.txt, comes with the package x-clip, which is not installed: pip install --no-deps x-clip"
    )


@cache
def _tokenizer() -> ClipTokenizer:
    return ClipTokenizer.from_merges(clip_merges_path())


class TextTransformer(nn.Module):
    def __init__(
        self,
        dim: int,
        depth: int,
        num_tokens: int = 49408,
        max_seq_len: int = 256,
        dim_head: int = 64,
        heads: int = 8,
        attn_dropout: float = 0.0,
        ff_dropout: float = 0.0,
        ff_mult: float = 4,
        pad_id: int = 0,
    ) -> None:
        super().__init__()
        self.dim, self.depth, self.max_seq_len, self.pad_id = dim, depth, max_seq_len, pad_id
        self.token_emb = nn.Embedding(num_tokens, dim)
        self.pos_emb = nn.Embedding(max_seq_len, dim)
        self.cls_token = nn.Parameter(torch.randn(dim))
        self.transformer = Transformer(dim, depth, dim_head, heads, attn_dropout, ff_mult, ff_dropout)
        self.norm = LayerNorm(dim)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids [B, n] int64 on this module's device, padded with 0; a text that has more than max_seq_len is cut."""
        return torch.from_numpy(_tokenizer().encode_batch(texts, self.max_seq_len)[0]).to(self.cls_token.device)

    def forward(
        self,
        x: Tensor | None = None,
        raw_texts: Sequence[str] | None = None,
        mask: Tensor | None = None,
        return_all_layers: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x: token ids [B, n] int64, or raw_texts: B texts; mask [B, n] bool, True where there is a token -> [B, dim]; with
        `return_all_layers` also [depth - 1, B, 1 + n, dim], the class token first."""
        if raw_texts is not None:
            if x is not None:
                raise ValueError("give either token ids or raw_texts, not both")
            x = self.tokenize(raw_texts)
        if x is None:
            raise ValueError("give token ids or raw_texts")
        if not torch.compiler.is_exporting() and x.shape[1] > self.max_seq_len:
            raise ValueError(f"a text of {x.shape[1]} tokens is longer than the {self.max_seq_len} this text transformer has positions for")
        mask = x != self.pad_id if mask is None else mask

        tokens = self.token_emb(x) + self.pos_emb.weight[: x.shape[1]]
        tokens = torch.cat((self.cls_token.expand(x.shape[0], 1, -1), tokens), dim=1)
        mask = F.pad(mask, (1, 0), value=True)  # the class token is always seen
        bias = torch.zeros_like(mask, dtype=tokens.dtype).masked_fill(~mask, -torch.finfo(tokens.dtype).max)
        if not return_all_layers:
            return self.norm(self.transformer(tokens, bias[:, None, None])[:, 0])
        tokens, layers = self.transformer(tokens, bias[:, None, None], return_all_layers=True)
        return self.norm(tokens[:, 0]), layers
