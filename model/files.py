"""The files of a training run, written so that no half file is ever left.

In: whatever `torch.save` takes, or a CSV of metrics. Out: a file that appears whole or not at all. It does not know what is in them.
"""

import os
from pathlib import Path
from typing import Any

import torch

from ..runtime.user_files import expanded


def save_aside(content: Any, path: str | os.PathLike) -> None:
    """`torch.save` beside `path`, then rename: an error, an interrupt or a full disk leaves what was there before."""
    path = expanded(path)
    part = path.with_name(f"{path.name}.part")
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


def cut_metrics(path: Path, steps: int) -> None:
    """Drop the rows after `steps`: a run that goes on from there writes them again."""
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = file.readlines()
        part = path.with_suffix(".part")
        part.write_text(header + "".join(row for row in rows if int(row.split(",")[0]) <= steps), encoding="utf-8")
        part.replace(path)
