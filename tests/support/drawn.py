"""Weights drawn from the names of tensors, so that a file of any release can be made again wherever its class is not installed.

Golden numbers of an older release were taken from its own class with these weights: after
`model.load_state_dict(drawn(model.state_dict()), strict=False)`. RandomState's streams never change.
"""

from collections.abc import Mapping
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

_FIXED = (".inv_freq", ".window", ".beta")  # buffers that are no weights
_AROUND_ONE = (".gamma", "_gamma", "norm.weight", "_scale")


def normal(name: str, *shape: int, deviation: float = 0.3) -> Tensor:
    """Return normal numbers of this shape, the same for a name at all times; fp32."""
    numbers = np.random.RandomState(crc32(name.encode())).standard_normal(shape)
    return torch.tensor(deviation * numbers, dtype=torch.float32)


def drawn(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with the names and shapes of `state`, drawn anew; gains lie around one, codebooks have seen data."""
    made = {}
    for name, tensor in state.items():
        if name.endswith("initted"):
            made[name] = torch.ones_like(tensor)
        elif name.endswith(_FIXED) or not tensor.is_floating_point():
            made[name] = tensor
        else:
            deviation = 1.0 if name.endswith("_codebook.embed") else 0.3
            made[name] = normal(name, *tensor.shape, deviation=deviation) + name.endswith(_AROUND_ONE)
    return made
