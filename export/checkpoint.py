"""Reading a checkpoint: a file in one of upstream's formats in, a flat state dict of named tensors out. Nothing in a file is executed.

Accepted: trainer packages (`{"model": ..., "version": ...}`), bare state dicts, `SoundStream.save` packages, EMA copies and `module.`
prefixes. What the tensors mean is decided elsewhere; here they are only found, named, checked for shape and for finite values.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import ExportError

# One tensor name that only this kind of checkpoint has.
_MARKS = {
    "semantic": "start_token",
    "coarse": "coarse_start_token|semantic_start_token",
    "fine": "fine_start_token",
    "codec": "decoder_film.to_cond.weight",
    "quantizer": "rq.layers.0._codebook.embed",
    "mulan": "audio_to_latents.weight",
    "semantic-features": "centres|spec.mel_layout",
}
_DESCRIPTIONS = {
    "semantic": "a semantic transformer",
    "coarse": "a coarse transformer",
    "fine": "a fine transformer",
    "codec": "a SoundStream codec",
    "quantizer": "a MuLaN embedding quantizer",
    "mulan": "a MuLaN model",
    "semantic-features": "the semantic tokenizer that MelKmeans.save writes",
}


@dataclass
class Checkpoint:
    """The tensors of one file, with a record of which were read so that none is overlooked."""

    name: str  # for messages: the file's name, or "semantic of the live model"
    state: dict[str, Tensor]
    version: str | None = None  # of the package that saved it
    pickled_config: bytes | None = None  # SoundStream's own, still unread
    sha256: str | None = None
    _read: set[str] = field(default_factory=set)

    def array(self, name: str, *shape: int) -> np.ndarray:
        """The tensor `name` as float32, its shape checked if given."""
        if name not in self.state:
            raise ExportError(f"{self.name}: the tensor {name!r} is missing. Was the file saved whole, by the same model?")
        tensor = self.state[name]
        if shape and tuple(tensor.shape) != shape:
            raise ExportError(f"{self.name}: the tensor {name!r} has shape {list(tensor.shape)}, expected {list(shape)}.")
        if not torch.isfinite(tensor).all():
            raise ExportError(f"{self.name}: the tensor {name!r} holds NaN or infinite values; this checkpoint cannot be used.")
        self._read.add(name)
        return tensor.float().numpy()

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self.state:
            raise ExportError(f"{self.name}: the tensor {name!r} is missing. Was the file saved whole, by the same model?")
        return tuple(self.state[name].shape)

    def refuse_unread(self, ignored: Iterable[str] = ()) -> None:
        """Tensors that nobody read mean a variant this export does not know; their effect must not get lost silently."""
        ignored = tuple(ignored)
        unread = [name for name in self.state if name not in self._read and not name.startswith(ignored)]
        if unread:
            shown = ", ".join(unread[:5]) + (f" and {len(unread) - 5} more" if len(unread) > 5 else "")
            raise ExportError(f"{self.name}: {shown}: these tensors belong to a variant that the export does not cover.")


def identify(state: Mapping[str, Tensor]) -> str | None:
    """Which kind of checkpoint a state dict is, or None."""
    for kind, marks in _MARKS.items():
        if all(mark in state for mark in marks.split("|")):
            return kind
    return None


def read_checkpoint(path: Path, kind: str) -> Checkpoint:
    """Read `path`, which must hold `kind`, one of `_MARKS`."""
    if not path.is_file():
        raise ExportError(f"--{kind} {path}: there is no such file.")
    try:
        package = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises nearly anything; torch's own text advises to switch the protection off
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        if forbidden:
            why = f"refused, because it names {forbidden[1]}, which could run code. Save a plain state dict."
        elif isinstance(error, MemoryError | PermissionError):
            why = f"cannot be read ({type(error).__name__} {error})."
        else:
            why = "not a PyTorch file, or a damaged one. Was it copied whole?"
        raise ExportError(f"--{kind} {path}: {why}") from error
    checkpoint = from_package(path.name, package)
    checkpoint.sha256 = sha256_of(path)
    return expect(checkpoint, kind)


def expect(checkpoint: Checkpoint, kind: str) -> Checkpoint:
    found = identify(checkpoint.state)
    if found != kind:
        what = (
            _DESCRIPTIONS[found]
            if found
            else f"none of the models known here (its first tensor is {next(iter(checkpoint.state), 'missing')!r})"
        )
        raise ExportError(f"--{kind} {checkpoint.name}: expected {_DESCRIPTIONS[kind]}, but the file holds {what}.")
    return checkpoint


def from_package(name: str, package: Any) -> Checkpoint:
    """The state dict inside what `torch.load` returned."""
    if not isinstance(package, Mapping):
        raise ExportError(f"{name}: expected a dictionary of tensors, got {type(package).__name__}.")
    version, config = package.get("version"), package.get("config")
    state = next((package[key] for key in ("ema_model", "model", "state_dict") if isinstance(package.get(key), Mapping)), package)
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ExportError(f"{name}: no tensors found; its entries are {', '.join(map(str, list(package)[:6])) or 'none'}.")
    for prefix in ("module.", "ema_model.", "module."):  # an EMA of a wrapped model, or a wrapped EMA
        inside = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        tensors = inside or tensors
    return Checkpoint(name, tensors, version if isinstance(version, str) else None, config if isinstance(config, bytes) else None)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_finite(stage: str, tensors: Mapping[str, Tensor]) -> None:
    """ExportError that names a tensor of `stage` which holds NaN or infinite values."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ExportError(f"{stage}: {name} holds NaN or infinite values; this checkpoint cannot be used.")
