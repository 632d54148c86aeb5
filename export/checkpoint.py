"""Reading a checkpoint: a file in one of upstream's formats in, a flat state dict of named tensors out. Nothing in a file is executed.

Accepted: trainer packages (`{"model": ..., "version": ...}`), bare state dicts, `SoundStream.save` packages, EMA copies and `module.`
prefixes; safetensors, and a folder of transformers (`model.safetensors`, `config.json`). What the tensors mean is decided elsewhere; here
they are only found, named, checked for shape and for finite values.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..model.archive import HostileFile, check_archive, check_tensors
from .errors import ExportError
from .tensor_names import serves_training
from .trained_tokens import Moments, moments_of

TOKEN_TABLE = "text.token_emb.weight"  # MuLaN's, with a row for each token
_SMALL = 10**7  # numbers that a module may have more than its file: of which are missing, torch says more than a count
# One tensor name that only this kind of checkpoint has.
_MARKS = (
    ("semantic", "start_token"),
    ("coarse", "coarse_start_token|semantic_start_token"),
    ("fine", "fine_start_token"),
    ("codec", "encoder.0.conv.weight|decoder.0.conv.weight"),  # SoundStream
    ("codec", "quantizer.vq.layers.0._codebook.embed"),  # EnCodec, of its own package
    ("codec", "quantizer.layers.0.codebook.embed"),  # and of transformers
    ("quantizer", "rq.layers.0._codebook.embed"),
    ("mulan", "audio_to_latents.weight"),
    ("semantic-features", "centres|spec.mel_layout"),
)
_DESCRIPTIONS = {
    "semantic": "a semantic transformer",
    "coarse": "a coarse transformer",
    "fine": "a fine transformer",
    "codec": "a codec (SoundStream or EnCodec)",
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
    config_json: dict[str, Any] = field(default_factory=dict)  # of transformers
    sha256: str | None = None
    moments: Moments | None = None  # for MuLaN's table of tokens, if a trainer saved its optimizer too
    _read: set[str] = field(default_factory=set)

    def array(self, name: str, *shape: int) -> np.ndarray:
        """The tensor `name` as float32, which must have this shape: none for a number by itself."""
        if name not in self.state:
            raise ExportError(f"{self.name}: the tensor {name!r} is missing. Was the file saved whole, by the same model?")
        tensor = self.state[name]
        if tuple(tensor.shape) != shape:
            raise ExportError(f"{self.name}: the tensor {name!r} has shape {list(tensor.shape)}, expected {list(shape)}.")
        if not torch.isfinite(tensor).all():
            raise ExportError(f"{self.name}: the tensor {name!r} holds NaN or infinite values; this checkpoint cannot be used.")
        self._read.add(name)
        return tensor.float().numpy()

    def shape(self, name: str, dims: int) -> tuple[int, ...]:
        if name not in self.state:
            raise ExportError(f"{self.name}: the tensor {name!r} is missing. Was the file saved whole, by the same model?")
        return shape_of(self.name, name, self.state[name], dims)

    def refuse_unread(self, ignored: Iterable[str] = ()) -> None:
        """Tensors that nobody read mean a variant this export does not know; their effect must not get lost silently. Those of training
        beside the layers have none."""
        ignored = tuple(ignored)
        unread = [name for name in self.state if name not in self._read and not name.startswith(ignored)]
        unread = [name for name in unread if name.startswith("transformer.") or not serves_training(name)]
        if unread:
            shown = ", ".join(unread[:5]) + (f" and {len(unread) - 5} more" if len(unread) > 5 else "")
            raise ExportError(f"{self.name}: {shown}: these tensors belong to a variant that the export does not cover.")


def identify(state: Mapping[str, Tensor]) -> str | None:
    """Which kind of checkpoint a state dict is, or None."""
    for kind, marks in _MARKS:
        if all(mark in state for mark in marks.split("|")):
            return kind
    return None


def is_encodec(state: Mapping[str, Tensor]) -> bool:
    """Whether a codec is an EnCodec, rather than a SoundStream."""
    return any(name.startswith("quantizer.") for name in state)


def shape_of(where: str, name: str, tensor: Tensor, dims: int) -> tuple[int, ...]:
    """The shape of `tensor`, which has `dims` dimensions and values."""
    if tensor.ndim != dims or not tensor.numel():
        raise ExportError(f"{where}: the tensor {name!r} has shape {list(tensor.shape)}, expected {dims} dimensions, none of them empty.")
    return tuple(tensor.shape)


def read_checkpoint(path: Path, kind: str) -> Checkpoint:
    """Read `path`, which must hold `kind`, one of `_MARKS`."""
    checkpoint = expect(read_file(path, f"--{kind} "), kind)
    checkpoint.sha256 = sha256_of(path / "model.safetensors" if path.is_dir() else path)
    return checkpoint


def read_file(path: Path, option: str = "") -> Checkpoint:
    """Read `path`, whatever it holds. option: what stands before the path in messages."""
    name = path.name
    if os.path.isdir(path):  # unlike Path's own these say no of a name that no file can have
        path = path / "model.safetensors"
    if not os.path.isfile(path):
        raise ExportError(f"{option}{path}: there is no such file.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            package = load_file(path)
        else:
            check_archive(path)
            package = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises nearly anything; torch's own text advises to switch the protection off
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, HostileFile):
            why = f"refused, because {error}. Save a plain state dict."
        elif forbidden:
            why = f"refused, because it names {forbidden[1]}, which could run code. Save a plain state dict."
        elif isinstance(error, MemoryError | PermissionError):
            why = f"cannot be read ({type(error).__name__} {error})."
        else:
            why = f"not a {'safetensors' if path.suffix == '.safetensors' else 'PyTorch'} file, or a damaged one. Was it copied whole?"
        raise ExportError(f"{option}{path}: {why}") from error
    checkpoint = from_package(name, package)
    if path.suffix == ".safetensors":
        checkpoint.config_json = _config_beside(path, option)
    try:
        check_tensors(checkpoint.state, path.stat().st_size)
    except HostileFile as error:
        raise ExportError(f"{option}{path}: refused, because {error}. Save a plain state dict.") from error
    return checkpoint


def expect(checkpoint: Checkpoint, kind: str) -> Checkpoint:
    found = identify(checkpoint.state)
    if found != kind:
        raise ExportError(f"--{kind} {checkpoint.name}: expected {_DESCRIPTIONS[kind]}, but the file holds {describe(checkpoint)}.")
    return checkpoint


def describe(checkpoint: Checkpoint) -> str:
    """What a checkpoint is, in a few words."""
    kind = identify(checkpoint.state)
    return (
        _DESCRIPTIONS[kind] if kind else f"none of the models known here (its first tensor is {next(iter(checkpoint.state), 'missing')!r})"
    )


def from_package(name: str, package: Any) -> Checkpoint:
    """The state dict inside what `torch.load` returned."""
    if not isinstance(package, Mapping):
        raise ExportError(f"{name}: expected a dictionary of tensors, got {type(package).__name__}.")
    version, config = package.get("version"), package.get("config")
    state = next((package[key] for key in ("ema_model", "model", "state_dict") if isinstance(package.get(key), Mapping)), package)
    tensors = {str(key): value.detach() for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ExportError(f"{name}: no tensors found; its entries are {', '.join(map(str, list(package)[:6])) or 'none'}.")
    # An EMA of a wrapped model, or a wrapped EMA; audiolm-pytorch's EncodecWrapper, which has the codebooks once more beside its model.
    for prefix in ("module.", "ema_model.", "module.", "model."):
        inside = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        tensors = inside or tensors
    made = Checkpoint(name, tensors, version if isinstance(version, str) else None, config if isinstance(config, bytes) else None)
    if (table := tensors.get(TOKEN_TABLE)) is not None:
        made.moments = moments_of(package.get("optim"), tuple(table.shape))
    return made


def _config_beside(path: Path, option: str) -> dict[str, Any]:
    """transformers' config.json, if there is one."""
    path = path.with_name("config.json")
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{option}{path}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ExportError(f"{option}{path}: expected an object of settings, got {type(config).__name__}.")
    return config


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_finite(stage: str, tensors: Mapping[str, Tensor]) -> None:
    """ExportError that names a tensor of `stage` which holds NaN or infinite values."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ExportError(f"{stage}: {name} holds NaN or infinite values; this checkpoint cannot be used.")


def check_size(where: str, state: Mapping[str, Tensor], build: Callable[[], nn.Module]) -> None:
    """ExportError if the module would have far more numbers than `state`: widths of a few damaged tensors can multiply to gigabytes."""
    with torch.device("meta"):
        wanted = sum(tensor.numel() for tensor in build().state_dict().values())
    found = sum(tensor.numel() for tensor in state.values())
    if wanted > 2 * found + _SMALL:
        raise ExportError(f"{where}: the sizes of its tensors make a model of {wanted} numbers, but the file holds {found}.")
