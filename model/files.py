"""Files of tensors: written whole or not at all. In: a state dict and a path. It does not know what the tensors mean."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def save_state(state: Mapping[str, Tensor], path: str | os.PathLike) -> None:
    """Write a state dict that torch's weights-only loader reads; aside first, then renamed, so that no half file is ever left."""
    part = Path(path).with_name(f"{Path(path).name}.part")
    try:
        torch.save(dict(state), part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
