"""The latents of all processes of a distributed run as one batch, so that a contrast has all of its negatives.

In: each process's own rows. Out: the rows of every process, in the order of ranks. It knows nothing of losses.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_batch(x: Tensor) -> Tensor:
    """x [L, B, D], B of each process's own -> [L, sum of all B, D], the same on every process. Every process must call it.

    Each process then computes the loss of the joined batch, and the gradient of its rows is the sum of what all of them say: the mean
    that DistributedDataParallel takes over processes is the gradient of one process with the joined batch, to rounding.
    Raises ValueError on every process if they disagree about L, D or the type.
    """
    own = torch.tensor([*x.shape, x.dtype.itemsize, x.dtype.is_floating_point], device=x.device)
    shapes = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(shapes, own)
    layers, batches, *rest = (list(column) for column in zip(*(shape.tolist() for shape in shapes), strict=True))
    if any(len(set(values)) > 1 for values in (layers, *rest)):
        kinds = [shape.tolist()[:3] for shape in shapes]
        raise ValueError(f"the processes contrast latents that do not fit together, [L, B, D] by rank: {kinds}")
    return _Gather.apply(x, batches)  # pyright: ignore[reportReturnType]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, batches: list[int]) -> Tensor:
        ctx.batches = batches
        padded = F.pad(x, (0, 0, 0, max(batches) - x.shape[1])).contiguous()  # all_gather takes equal shapes alone
        parts = [torch.empty_like(padded) for _ in batches]
        dist.all_gather(parts, padded)
        return torch.cat([part[:, :batch] for part, batch in zip(parts, batches, strict=True)], dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.split(ctx.batches, dim=1)[dist.get_rank()], None
