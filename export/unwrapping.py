"""Live modules without the wrappers that training puts around them, at any level of a model.

In: a module. Out: for the time of a block, the module inside, its parts unwrapped too; afterwards the module is as it was. It covers
torch.compile, DataParallel and DistributedDataParallel, FSDP, activation checkpointing, Lightning's Fabric, and averages of weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.optim.swa_utils import AveragedModel

from .errors import ExportError

# The name that each kind of wrapper has for the module inside of it.
_INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "ema_model", "module")
# Packages whose layers compute something else than the layers in whose places they stand, and what to do about it.
_FOREIGN = {
    "peft": "merge its adapters first (merge_and_unload)",
    "bitsandbytes": "export the model with its own weights, and quantize with precision=",
    "torch.ao": "export the model with its own weights, and quantize with precision=",
}


@contextmanager
def unwrapped(module: nn.Module, name: str) -> Iterator[nn.Module]:
    """Give the module inside of `module`, each wrapper in it replaced by what it wraps until the block ends. name: for messages.

    Sharded parameters are gathered meanwhile, which all processes must take part in. A warning says where an average of weights is used.
    """
    with ExitStack() as stack:
        _gather(module, stack)
        inner = _inside(module, name)
        _replace_below(inner, name, stack, set())
        yield inner


def check_plain(module: nn.Module, name: str) -> None:
    """Raise ExportError if layers or tensors of an unwrapped module are not those that its checkpoint would have."""
    for below, layer in module.named_modules():
        at, kind = f"{name}.{below}" if below else name, type(layer)
        if isinstance(layer, torch.jit.ScriptModule):
            raise ExportError(f"{at} is TorchScript: give the module that it was made of.")
        if is_parametrized(layer):
            raise ExportError(f"{at} is parametrized: call torch.nn.utils.parametrize.remove_parametrizations first.")
        for hook in layer._forward_pre_hooks.values():
            if type(hook).__module__.startswith("torch.nn.utils."):  # weight_norm, spectral_norm and prune add such hooks
                raise ExportError(f"{at} has a {type(hook).__name__} of {type(hook).__module__}: remove it from the layer first.")
        for package, advice in _FOREIGN.items():
            if f"{kind.__module__}.".startswith(f"{package}."):
                raise ExportError(f"{at} is a {kind.__name__} of {kind.__module__}: {advice}.")
    for below, tensor in module.state_dict(keep_vars=True).items():
        kind = type(tensor)
        if not isinstance(tensor, torch.Tensor):
            raise ExportError(f"{name}.{below} is no tensor, but {kind.__name__}: such a state is unknown.")
        if tensor.is_meta or nn.parameter.is_lazy(tensor):
            raise ExportError(f"{name}.{below} has no values: its module was built without memory for them. Load its weights first.")
        if tensor.is_quantized or not (kind in (torch.Tensor, nn.Parameter, nn.Buffer) or hasattr(tensor, "full_tensor")):
            raise ExportError(f"{name}.{below} is a {kind.__name__} of {tensor.dtype}: {_FOREIGN['torch.ao']}.")


def plain_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a module's tensors on the CPU, whole where they are distributed (DTensor)."""
    state = module.state_dict()
    return {name: (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().cpu() for name, tensor in state.items()}


def _inside(module: nn.Module, name: str) -> nn.Module:
    """Return what is inside of all wrappers around a module."""
    while True:
        key = next((key for key in _INSIDE if isinstance(module._modules.get(key), nn.Module)), None)
        inner = module._modules[key] if key else None
        if inner is None:
            return module
        if key == "ema_model" or isinstance(module, AveragedModel):
            warnings.warn(f"{name} is wrapped in {type(module).__name__}: the average of the weights is exported.", stacklevel=2)
        module = inner


def _replace_below(module: nn.Module, name: str, stack: ExitStack, seen: set[int]) -> None:
    if id(module) in seen:
        return
    seen.add(id(module))
    for key, child in list(module._modules.items()):
        if child is None:
            continue
        inner = _inside(child, f"{name}.{key}")
        if inner is not child:
            module._modules[key] = inner
            stack.callback(module._modules.__setitem__, key, child)
        _replace_below(inner, f"{name}.{key}", stack, seen)


def _gather(module: nn.Module, stack: ExitStack) -> None:
    """Gather the parameters of FSDP's modules until the stack ends."""
    if torch.distributed.is_available():
        from torch.distributed.fsdp import FullyShardedDataParallel

        if any(isinstance(layer, FullyShardedDataParallel) for layer in module.modules()):
            stack.enter_context(FullyShardedDataParallel.summon_full_params(module, writeback=False))
