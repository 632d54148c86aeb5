"""A cache of traces: ONNX graphs of modules without weights, so that an export of the same settings need not trace again.

In: a module, the example that it is traced with, a folder that the caller names (without one nothing is kept). Out: a key, and the graph
kept under it. A key covers everything a trace depends on except the weights: the modules' classes and settings, the shapes of weights
and of the example, dynamic dimensions, opset, our own source, and the versions of Python and of every package whose modules are traced.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from hashlib import sha256
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx import ModelProto
from torch import Tensor, nn

from ..runtime.aside import file_aside, remove_abandoned
from ..runtime.user_files import expanded

VARIABLE = "MUSICLM_TRACE_CACHE"  # environment variable that names the folder if the caller does not

_DIGEST_BYTES = 32  # SHA-256 of the graph, before it in a file

_LOG = logging.getLogger(__name__)
_folder: ContextVar[Path | None] = ContextVar("folder", default=None)
_PRIVATE = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook", "training"}


@contextmanager
def traces_in(folder: str | os.PathLike | None) -> Iterator[None]:
    """Keep the traces made within this context in `folder`, which is made if it is missing. None leaves the choice to the environment."""
    token = _folder.set(None if folder is None else expanded(folder).absolute())
    try:
        yield
    finally:
        _folder.reset(token)


def key_of(module: nn.Module, example: tuple[Tensor, ...], layout: Any) -> str:
    """Return the name of a trace: a hash of all that it depends on. Raises TypeError if the module holds a value without a stable text."""
    parts = [f"{name}: {_class_of(part)} {_settings_of(name, part)}" for name, part in module.named_modules()]
    tensors = [f"{name} {list(one.shape)} {one.dtype}" for name, one in (*module.named_parameters(), *module.named_buffers())]
    examples = [f"{list(one.shape)} {one.dtype}" for one in example]
    packages = {"torch", "onnx", "onnxscript", "onnx_ir", *(type(part).__module__.split(".")[0] for part in module.modules())}
    versions = [f"{name} {_version(name)}" for name in sorted(packages - {"musiclm_deploy"})]
    text = "\n".join([*parts, *tensors, *examples, repr(layout), *versions, platform.python_version(), _own_source()])
    return sha256(text.encode()).hexdigest()


def read(key: str) -> ir.Model | None:
    """Return the graph kept under a key, or None."""
    folder = _named_folder()
    if folder is None:
        return None
    path = folder / f"{key}.trace"
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        _LOG.warning("%s cannot be read (%s): what it holds is traced again.", path, error.strerror)
        return None
    digest, graph = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if sha256(graph).digest() != digest:  # protobuf reads some files that are cut short without a word, empty ones among them
        _LOG.warning("%s is damaged: what it held is traced again.", path)
        return None
    _LOG.info("traced before: %s", path)
    return ir.from_proto(ModelProto.FromString(graph))


def write(key: str, model: ir.Model) -> None:
    """Keep a graph under its key, if a folder was named. One that cannot be kept is a warning: the export has what it needs."""
    folder = _named_folder()
    if folder is None:
        return
    graph = ir.to_proto(model).SerializeToString()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder)
        with file_aside(folder / f"{key}.trace") as file:
            file.write(sha256(graph).digest() + graph)
    except OSError as error:
        _LOG.warning("a trace is not kept in %s: %s. The next export traces it again.", folder, error.strerror)


def _named_folder() -> Path | None:
    named = _folder.get() or os.environ.get(VARIABLE)
    return expanded(named) if named else None


def _class_of(part: Any) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"


def _settings_of(name: str, part: nn.Module) -> str:
    """Write down a module's own attributes, hooks and tensors excepted."""
    own = {key: value for key, value in vars(part).items() if key not in _PRIVATE and not key.endswith("_hooks") and "hooks_" not in key}
    return ", ".join(f"{key}={_written(value, f'{name}.{key}')}" for key, value in sorted(own.items()))


def _written(value: Any, where: str) -> str:
    if value is None or isinstance(value, bool | int | float | str | bytes | complex | slice | torch.dtype | torch.device):
        return repr(value)
    if isinstance(value, list | tuple | set | frozenset):
        items = [_written(item, where) for item in value]
        return f"{type(value).__name__}({', '.join(sorted(items) if isinstance(value, set | frozenset) else items)})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_written(key, where)}: {_written(item, where)}' for key, item in value.items())}}}"
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__") and "<" not in value.__qualname__):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, nn.Module):  # one that is registered under a name of its own as well
        return _class_of(value)
    if hasattr(value, "__dict__") and not isinstance(value, Tensor) and not callable(value):  # a configuration
        return f"{_class_of(value)}{_written(vars(value), where)}"
    raise TypeError(f"{where} is a {_class_of(value)}, which cannot be part of a key: make it a buffer or a setting.")


@cache
def _version(package: str) -> str:
    return version(packages_distributions()[package][0])


@cache
def _own_source() -> str:
    """Return the hash of the source that turns checkpoints into modules and graphs."""
    root = Path(__file__).resolve().parent.parent
    digest = sha256()
    for path in sorted((*(root / "model").rglob("*.py"), *(root / "export").glob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()
