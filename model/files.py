"""Writing a file of tensors so that no half file is ever left.

In: whatever `torch.save` takes. Out: a file that appears whole or not at all. It does not know what the tensors are.
"""

import os
from pathlib import Path
from typing import Any

import torch


def save_aside(content: Any, path: str | os.PathLike) -> None:
    """`torch.save` beside `path`, then rename: an error, an interrupt or a full disk leaves what was there before."""
    part = Path(path).with_name(f"{Path(path).name}.part")
    try:
        with part.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch's writer fails once more while it cleans up after a full disk
            raise error.__context__ from None
        raise
    finally:
        part.unlink(missing_ok=True)
