"""Makes `import audiolm_pytorch` and `import musiclm_pytorch` work on a plain machine.

In: the installed packages, whatever they are. Out: both upstream packages in `sys.modules`, without fairseq, torchvision, torchaudio's
compiled extension, torchcodec or a model hub. What is missing or cannot load is stood in for, most of it during the import only; what works
is never touched.
It does not know what upstream is used for.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import soundfile
import torch
from torch import Tensor

from ..runtime.install import install_command
from .mulan_quantizer import MuLaNEmbedQuantizer
from .semantic_tokens import SemanticTokenizer

_UPSTREAM = "pip install --no-deps audiolm-pytorch==2.4.0 musiclm-pytorch==0.2.8 x-clip==0.14.4"


@cache
def load_upstream() -> None:
    """Import audiolm_pytorch and musiclm_pytorch. Call it before the first import of either; a second call does nothing.

    Raises ImportError with the pip lines to run if upstream, or something it cannot do without, is not installed.
    """
    _hide_our_kernels()
    warn, log_level = warnings.warn, logging.root.level
    try:
        import_torchaudio()
        with _importable("torchvision", "x-clip's augmentation of images", "transforms"):
            import_module("x_clip")
        with _importable("fairseq", "upstream's HubertWithKmeans and FairseqVQWav2Vec"):
            import_module("audiolm_pytorch")
        import_module("musiclm_pytorch")
        t5 = import_module("audiolm_pytorch.t5")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"Upstream cannot be imported: {error}. Install it with\n{install_command('export', 'train')}\n{_UPSTREAM}"
        ) from error
    finally:
        # audiolm_pytorch silences the whole process: it replaces warnings.warn and lifts the root logger to ERROR.
        warnings.warn = warn
        logging.root.setLevel(log_level)
    # Every transformer reads the width of T5 at construction, also when it is conditioned on MuLaN; unknown, it is asked from a hub.
    t5.T5_CONFIGS.setdefault(t5.DEFAULT_T5_NAME, {"config": t5.T5Config(d_model=768)})
    # Upstream's trainers check the types of what conditions them, an empty subclass of nn.Module, and of what tokenizes their waves: ours
    # become such as soon as those exist. Of HubertWithKmeans nothing is used.
    MuLaNEmbedQuantizer.__bases__ = (import_module("audiolm_pytorch.utils").AudioConditionerBase,)
    SemanticTokenizer.__bases__ = (import_module("audiolm_pytorch.hubert_kmeans").HubertWithKmeans,)


class _StandIn(ModuleType):
    """A module that cannot be imported: it holds the attributes given to it, and whoever reads another learns what is missing."""

    def __init__(self, name: str, wanted_for: str, fault: Exception, **attributes: Any) -> None:
        super().__init__(name)
        self.__dict__.update(attributes)
        self.__message = f"{name} is needed for {wanted_for} but does not import ({fault}): install one that works beside this torch."

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)  # Python itself looks for __path__ and the like
        raise ImportError(self.__message)


@contextmanager
def _importable(name: str, wanted_for: str, *submodules: str) -> Iterator[None]:
    """Within the block `import name` works. If the real module does not load it is a stand-in, which nobody can import after the block."""
    fault = _import_fault(name)
    if fault is None:
        yield
        return
    sys.modules[name] = _StandIn(name, wanted_for, fault, **{part: _StandIn(f"{name}.{part}", wanted_for, fault) for part in submodules})
    try:
        yield
    finally:
        del sys.modules[name]


def import_torchaudio() -> ModuleType:
    """torchaudio, without its compiled extension if only that does not load, as with a wheel linked to CUDA beside a CPU torch."""
    fault = _import_fault("torchaudio")
    if fault is not None and not isinstance(fault, ModuleNotFoundError):
        refuse = import_module("torchaudio._internal.module_utils").fail_with_message(f"needs torchaudio's compiled extension. {fault}")
        sys.modules["torchaudio._extension"] = _StandIn(
            "torchaudio._extension", "this part of torchaudio", fault, _IS_TORCHAUDIO_EXT_AVAILABLE=False, fail_if_no_align=refuse
        )
    torchaudio: Any = import_module("torchaudio")
    if _import_fault("torchcodec") is not None:  # with which torchaudio reads and writes files, and upstream's trainers through it
        torchaudio.load, torchaudio.save = _load_sound, _save_sound
    return torchaudio


def _load_sound(uri: str | os.PathLike, frame_offset: int = 0, num_frames: int = -1) -> tuple[Tensor, int]:
    """`torchaudio.load` by libsndfile: (float32 [channels, t], rate in Hz)."""
    data, hz = soundfile.read(os.fspath(uri), num_frames, frame_offset, dtype="float32", always_2d=True)
    return torch.from_numpy(data.T.copy()), hz


def _save_sound(uri: str | os.PathLike, src: Tensor, sample_rate: int) -> None:
    """`torchaudio.save` by libsndfile: src float32 [channels, t], in the format that the suffix names."""
    soundfile.write(os.fspath(uri), src.T.numpy(), sample_rate)


def import_transformers() -> ModuleType:
    """transformers, which must not take our kernels/ for the package of that name, and imports torchaudio where there is one."""
    _hide_our_kernels()
    try:
        if find_spec("torchaudio"):
            import_torchaudio()
        return import_module("transformers")
    except ModuleNotFoundError as error:
        raise ImportError(f"HuBERT needs transformers ({error}): {install_command('train')}.") from error


def _import_fault(name: str) -> Exception | None:
    """Import a module; what went wrong, or None."""
    try:
        import_module(name)
    except Exception as fault:  # not only ImportError: a build for another torch fails while it registers its operators
        return fault
    return None


def _hide_our_kernels() -> None:
    """Let `import kernels` fail where it would find our folder, which it does when the checkout's root is on `sys.path`.

    transformers asks for the Hugging Face package of that name. Hiding one module leaves `sys.path` to its owner.
    """
    spec = find_spec("kernels")
    if spec and spec.origin and Path(spec.origin).resolve() == Path(__file__).resolve().parents[1] / "kernels" / "__init__.py":
        sys.modules["kernels"] = None  # pyright: ignore[reportArgumentType]
