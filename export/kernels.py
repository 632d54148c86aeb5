"""The kernels of a bundle's steps for GPUs, compiled ahead of time and put beside its graphs: what device='cuda' launches.

In: a bundle's folder, types of weights, compute capabilities. Out: its folder `kernels/`, with a record of its own (`kernels/compile.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from ..kernels.decoder_step.sizes import Sizes
from ..kernels.launch import LaunchList
from ..runtime.bundle import STAGES, Bundle
from ..runtime.device.kernels import FOLDER
from ..runtime.device.model import TYPES, every_list
from ..runtime.device.patches import filters_of, list_patches
from ..runtime.engines.model import every_list as of_engines
from ..runtime.install import install_command
from ..runtime.step import open_weights
from .errors import ExportError


def pack_kernels(
    bundle: Path, types: Sequence[str], capabilities: Sequence[int] | None = None, quiet: bool = False, engines: str | None = None
) -> Path:
    """Compile what the bundle's transformers and MuLaN launch; returns the folder. ExportError where it is there or cannot be made.

    types: of weights, some of fp16, bf16, fp32 and int8. engines: type of the caches of engines, whose tokens are drawn by kernels;
    None for a bundle without TensorRT's form. capabilities: of GPUs, 90 for 9.0; all that the compiler knows by default.
    """
    capabilities = capabilities_of(capabilities)
    from ..kernels.compile import compile_steps

    steps = steps_of(Bundle.open(bundle), types, engines)
    with tqdm(desc="kernels", unit="kernel", disable=quiet, file=sys.stderr) as bar:

        def on_kernel(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            compile_steps(steps, bundle / FOLDER, capabilities, on_kernel)
        except (RuntimeError, ValueError, FileExistsError) as error:
            raise ExportError(f"kernels: {error}.") from error
    return bundle / FOLDER


def steps_of(bundle: Bundle, types: Sequence[str], engines: str | None = None) -> list[LaunchList]:
    """Lists that name every kernel which the bundle can need; types and engines as `pack_kernels`."""
    steps = [step for kind in dict.fromkeys(types) for step in _steps(bundle, kind, every_list)]
    steps += [] if engines is None else _steps(bundle, engines, of_engines)
    return steps + _of_patches(bundle)


def check_types(types: Sequence[str]) -> None:
    """Raise ExportError for a type of weights that no kernels are compiled for."""
    if unknown := [repr(kind) for kind in types if kind not in TYPES]:
        raise ExportError(f"kernels for weights of {', '.join(unknown)}: expected some of {', '.join(TYPES)}.")


def capabilities_of(asked: Sequence[int] | None) -> Sequence[int]:
    """Those that are asked for, or all. ExportError for one that the compiler does not know, and where there is no compiler."""
    try:
        from ..kernels.compile import CAPABILITIES
    except ImportError as error:
        raise ExportError(f"kernels are compiled by Triton, which is not here ({error}): {install_command('kernels')}.") from error
    if unknown := [repr(one) for one in asked or () if one not in CAPABILITIES]:
        known = ", ".join(map(str, CAPABILITIES))
        raise ExportError(f"compute capability {', '.join(unknown)}: kernels are compiled for {known}.")
    return asked or CAPABILITIES


def _of_patches(bundle: Bundle) -> list[LaunchList]:
    """Of MuLaN's spectrogram, whose kernel is the same for waves of any length."""
    mulan = bundle.manifest.mulan
    if mulan.spectrogram is None:
        return []
    return [list_patches(mulan.spectrogram, 1, mulan.min_samples, filters_of(mulan.spectrogram, bundle.root))]


def _steps(bundle: Bundle, kind: str, lists: Callable[[Sizes, bool, str], Iterator[LaunchList]]) -> Iterator[LaunchList]:
    for stage in STAGES:
        decoder = getattr(bundle.manifest, stage)
        _, sizes, _ = open_weights(bundle.root, decoder)
        yield from lists(sizes, decoder.conditioning == "prefix", kind)
