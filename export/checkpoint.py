"""Reading a checkpoint: a file of any of the forms that people keep models in, in; a flat state dict of named tensors, out.

`model.tensor_file` reads files and folders, without executing anything in them; `state_dicts` finds the models inside by their tensors'
names. What the tensors mean is decided elsewhere; here they are chosen, and checked for shape and for finite values.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..model.archive import HostileFile, check_tensors
from ..model.stand_ins import arguments_of, class_of, is_object
from ..model.tensor_file import UnreadableFile, bytes_of, files_of, read_package
from ..runtime.user_files import read_text
from .errors import ExportError, naming
from .state_dicts import DESCRIPTIONS, StateDict, choose, first_tensor, state_dicts
from .tensor_names import refuse_unknown, serves_training
from .trained_tokens import Moments, moments_of

TOKEN_TABLE = "text.token_emb.weight"  # MuLaN's, with a row for each token
_SMALL = 10**7  # numbers that a module may have more than its file: of which are missing, torch says more than a count


@dataclass
class Checkpoint:
    """The tensors of one file, with a record of which were read so that none is overlooked."""

    name: str  # for messages: the file's name, or "semantic of the live model"
    state: dict[str, Tensor]
    version: str | None = None  # of the package that saved it
    pickled_config: bytes | None = None  # SoundStream's own, still unread
    config_json: dict[str, Any] = field(default_factory=dict)  # of transformers
    sha256: str | None = None
    weights: tuple[str, str] | None = None  # the entry of the file that was taken, and why
    moments: Moments | None = None  # for MuLaN's table of tokens, if a trainer saved its optimizer too
    _read: set[str] = field(default_factory=set)

    def array(self, name: str, *shape: int) -> np.ndarray:
        """Return the tensor `name` as float32. It must have this shape: none for a number by itself."""
        tensor = self._tensor(name)
        if tuple(tensor.shape) != shape:
            raise ExportError(f"{self.name}: the tensor {name!r} has shape {list(tensor.shape)}, expected {list(shape)}.")
        if not torch.isfinite(tensor).all():
            raise ExportError(f"{self.name}: the tensor {name!r} holds NaN or infinite values; this checkpoint cannot be used.")
        self._read.add(name)
        return tensor.float().numpy()

    def shape(self, name: str, dims: int) -> tuple[int, ...]:
        """Return the shape of the tensor `name`, which must have `dims` dimensions and values."""
        return shape_of(self.name, name, self._tensor(name), dims)

    def _tensor(self, name: str) -> Tensor:
        if name in self.state:
            return self.state[name]
        module = name.rpartition(".")[0] + "."
        others = [other for other in self.state if module != "." and other.startswith(module) and not other.endswith(".bias")]
        if not others:
            raise ExportError(f"{self.name}: the tensor {name!r} is missing. Was the file saved whole, by the same model?")
        raise ExportError(
            f"{self.name}: the tensor {name!r} is missing, and in its place are {', '.join(map(repr, others[:3]))}: this layer was "
            "adapted, parametrized or quantized. Merge that into the weights, then save the model's own state dict."
        )

    def refuse_unread(self, ignored: Iterable[str] = ()) -> None:
        """Raise ExportError for tensors that nobody read, since they belong to a variant whose effect must not get lost silently.

        ignored: how the names of tensors without effect begin. Those of training beside the layers have none either."""
        ignored = tuple(ignored)
        unread = [name for name in self.state if name not in self._read and not name.startswith(ignored)]
        refuse_unknown(self.name, [name for name in unread if name.startswith("transformer.") or not serves_training(name)])


def is_encodec(state: Mapping[str, Tensor]) -> bool:
    """Return whether a codec is an EnCodec, rather than a SoundStream."""
    return any(name.startswith("quantizer.") for name in state)


def shape_of(where: str, name: str, tensor: Tensor, dims: int) -> tuple[int, ...]:
    """Return the shape of `tensor`. Raises ExportError unless it has `dims` dimensions and values."""
    if tensor.ndim != dims or not tensor.numel():
        raise ExportError(f"{where}: the tensor {name!r} has shape {list(tensor.shape)}, expected {dims} dimensions, none of them empty.")
    return tuple(tensor.shape)


def read_checkpoint(path: Path, kind: str) -> Checkpoint:
    """Read `path`, which must hold `kind`, a key of `DESCRIPTIONS`."""
    option = f"--{kind} "
    checkpoint = from_package(path.name, read_file(path, option), kind)
    check_claims(checkpoint, path, option)
    file, *others = files_of(path)
    checkpoint.sha256 = sha256_of(file, *others)
    if file.suffix == ".safetensors" or file.name.startswith("pytorch_model"):
        checkpoint.config_json = _config_beside(file, option)
    return checkpoint


def read_file(path: Path, option: str = "") -> Mapping[Any, Any]:
    """Return the dictionary that `path` holds. option: stands before the path in messages."""
    try:
        package = read_package(path)
    except UnreadableFile as error:
        raise ExportError(f"{option}{error}") from error
    if isinstance(package, list | tuple) and any(isinstance(value, Mapping) for value in package):
        package = dict(enumerate(package))
    if not isinstance(package, Mapping) or (not package and type(package) is not dict):
        raise ExportError(f"{path.name}: expected a dictionary of tensors, got {class_of(package)}. Save a plain state dict.")
    return package


def check_claims(checkpoint: Checkpoint, path: Path, option: str = "") -> None:
    """Raise ExportError if the tensors of `checkpoint` are larger than the file that they are from."""
    try:
        check_tensors(checkpoint.state, bytes_of(path))
    except HostileFile as error:
        raise ExportError(f"{option}{path}: refused, because {error}. Save a plain state dict.") from error


def kinds_in(name: str, package: Mapping[Any, Any]) -> list[str]:
    """Return the kinds of the known models in a package. Raises ExportError if there is none. name: of the file, for messages."""
    if not (kinds := list(_found(name, package))):
        raise ExportError(f"{name}: the file holds {_unknown(name, package)}.")
    return kinds


def from_package(name: str, package: Mapping[Any, Any], kind: str) -> Checkpoint:
    """Return the model of this kind, a key of `DESCRIPTIONS`, inside what was saved. name: of the file, for messages."""
    found = _found(name, package)
    if kind == "mulan" and kind not in found and "quantizer" in found:
        inside, _ = choose(found["quantizer"], name)
        found |= _found(name, {"quantizer": {key: tensor for key, tensor in inside.tensors.items() if key.startswith("mulan.")}})
    if kind not in found:
        held = " and ".join(DESCRIPTIONS[each] for each in found) or _unknown(name, package)
        raise ExportError(f"--{kind} {name}: expected {DESCRIPTIONS[kind]}, but the file holds {held}.")
    model, why = choose(found[kind], name)
    if not any(tensor.numel() for tensor in model.tensors.values()):
        raise ExportError(
            f"{name}: its tensors are empty, as DeepSpeed's ZeRO-3 leaves them in each process's file. Make one file of all with the "
            "zero_to_fp32.py that it saved beside them."
        )
    versions = (_text(package.get("version")) for package in model.packages)
    version = next((version for version in versions if version is not None), None)
    config = next((package["config"] for package in model.packages if isinstance(package.get("config"), bytes)), None)
    made = Checkpoint(name, model.tensors, version, config, weights=(model.entry or "the file itself", why))
    if (table := model.tensors.get(TOKEN_TABLE)) is not None:
        optimizer = next((package["optim"] for package in model.packages if "optim" in package), None)
        made.moments = moments_of(optimizer, tuple(table.shape))
    return made


def _text(value: Any) -> str | None:
    """Return a text, also one of a class such as `TorchVersion`; None for anything else."""
    value = next(iter(arguments_of(value)), None) if is_object(value) else value
    return value if isinstance(value, str) else None


def _found(name: str, package: Mapping[Any, Any]) -> dict[str, list[StateDict]]:
    """Return `{kind: its sets of weights}`."""
    found: dict[str, list[StateDict]] = {}
    with naming(name):
        for model in state_dicts(package):
            found.setdefault(model.kind, []).append(model)
    return found


def _unknown(name: str, package: Mapping[Any, Any]) -> str:
    """Return the words for a package without a known model. Raises ExportError if it has no tensors at all."""
    first = first_tensor(package)
    if first is None:
        entries = ", ".join(f"{key} ({class_of(value)})" if is_object(value) else str(key) for key, value in [*package.items()][:6])
        raise ExportError(f"{name}: no tensors found; its entries are {entries or 'none'}. Save a plain state dict.")
    return f"none of the models known here (its first tensor is {first!r})"


def _config_beside(path: Path, option: str) -> dict[str, Any]:
    """Return the content of transformers' config.json, {} if there is none."""
    path = path.with_name("config.json")
    if not path.is_file():
        return {}
    try:
        config = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{option}{path}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ExportError(f"{option}{path}: expected an object of settings, got {type(config).__name__}.")
    return config


def sha256_of(*paths: Path) -> str:
    """Return the SHA-256 of a file, or of several one after another, in hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def check_finite(stage: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise ExportError for a tensor of `stage` that holds NaN or infinite values."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ExportError(f"{stage}: {name} holds NaN or infinite values; this checkpoint cannot be used.")


def check_size(where: str, state: Mapping[str, Tensor], build: Callable[[], nn.Module]) -> None:
    """Raise ExportError if the module would be far larger than `state`: widths of a few damaged tensors can multiply to gigabytes."""
    with torch.device("meta"):
        wanted = sum(tensor.numel() for tensor in build().state_dict().values())
    found = sum(tensor.numel() for tensor in state.values())
    if wanted > 2 * found + _SMALL:
        raise ExportError(f"{where}: the sizes of its tensors make a model of {wanted} numbers, but the file holds {found}.")
