"""Residual vector quantization (Zeghidour et al. 2021, https://arxiv.org/abs/2107.03312, algorithm 1) with codebooks that are trained.

In: latents and codebooks. Out: codes, and the sums of codes that a decoder reads. It knows no model, and does not train.
Codes of G groups with Q quantizers each stand in columns ordered (group, quantizer).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# x [N, D], codebook [K, D] -> [N, K], smallest for the code that is chosen. Each computes in the order of its package, so that near ties
# fall as they do there.
Distance = Callable[[Tensor, Tensor], Tensor]


def euclidean(x: Tensor, codebook: Tensor) -> Tensor:
    """As vector-quantize-pytorch."""
    squared = x.square().sum(-1, keepdim=True) + codebook.square().sum(-1) + x @ codebook.T * -2
    return squared.clamp(min=1e-8).sqrt()


def cosine(x: Tensor, codebook: Tensor) -> Tensor:
    """As vector-quantize-pytorch with `use_cosine_sim`, whose codes have length 1; what is left over keeps its length."""
    return -(F.normalize(x, dim=-1, eps=1e-6) @ codebook.T)


def squared_euclidean(x: Tensor, codebook: Tensor) -> Tensor:
    """As encodec."""
    return x.square().sum(-1, keepdim=True) - 2 * x @ codebook.T + codebook.square().sum(-1)


def nearest_codes(x: Tensor, codebooks: Tensor, distance: Distance = euclidean) -> Tensor:
    """x [N, D], codebooks [Q, K, D] -> codes [N, Q] int64: of each level the code nearest to what the levels before leave over."""
    codes = []
    for codebook in codebooks:
        codes.append(distance(x, codebook).argmin(-1))
        x = x - F.embedding(codes[-1], codebook)
    return torch.stack(codes, dim=1)


class CodeSearch(nn.Module):
    """latents [B, S, G*D] -> codes [B, S, G*Q] int64."""

    codebooks: Tensor

    def __init__(self, groups: int, quantizers: int, codebook_size: int, dim: int, distance: Distance = euclidean) -> None:
        """dim: D, of one group's codes."""
        super().__init__()
        self.distance = distance
        self.register_buffer("codebooks", torch.zeros(groups, quantizers, codebook_size, dim), persistent=False)

    def load(self, codebooks: Tensor) -> None:
        """[G, Q, K, D]"""
        self.codebooks.copy_(codebooks)

    def forward(self, x: Tensor) -> Tensor:
        groups = x.unflatten(2, (len(self.codebooks), -1)).unbind(2)
        codes = [nearest_codes(group.flatten(0, 1), books, self.distance) for group, books in zip(groups, self.codebooks, strict=True)]
        return torch.cat(codes, dim=1).unflatten(0, x.shape[:2])


class CodeEmbedding(nn.Module):
    """codes [B, S, G*Q] int64 -> [B, S, G*D], the sum over each group's quantizers. -1 is a code that is missing: it adds nothing."""

    table: Tensor
    first_rows: Tensor

    def __init__(self, groups: int, quantizers: int, codebook_size: int, dim: int) -> None:
        """dim: D, of one group's codes."""
        super().__init__()
        self.groups = groups
        rows = codebook_size + 1  # row 0 of every book is zero, for a missing code
        self.register_buffer("table", torch.zeros(groups * quantizers * rows, dim), persistent=False)
        self.register_buffer("first_rows", torch.arange(groups * quantizers) * rows + 1, persistent=False)

    def load(self, codebooks: Tensor) -> None:
        """[G, Q, K, D]"""
        self.table.copy_(F.pad(codebooks, (0, 0, 1, 0)).flatten(0, 2))

    def forward(self, codes: Tensor) -> Tensor:
        x = F.embedding(codes + self.first_rows, self.table)
        return x.unflatten(2, (self.groups, -1)).sum(3).flatten(2)
