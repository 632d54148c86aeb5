"""The GPU's kernels compiled ahead of time, for cards that need not be there: machine code for each compute capability, and PTX.

In: the launches of steps (`kernel_lists.py`), compute capabilities. Out: a folder with a cubin for each kernel and capability, a PTX for
each kernel, and `kernels.json`: format, Triton's version, the SHA-256 of every file, and for each kernel its function, signature,
constants, and for each capability its file, threads, registers, bytes of shared memory and of stack (what did not fit into registers), and
whether it waits by itself for the kernel before it, so that it may be launched early (`waits`). It knows neither bundles nor drivers; what
it leaves behind is launched with neither Triton nor torch. The machine code takes the parameters of the signature that are no constants,
those of a tuple one by one, and after them two pointers to scratch memory that no kernel here uses: zeros.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .functions import functions_of
from .launch import FORMAT, RECORD, Launch, LaunchList, key_of, signature_of

CAPABILITIES = (80, 86, 89, 90, 100, 120)
EARLY = 90  # from here on kernels may be launched before the one before them has ended
PTX_CAPABILITY = 80  # its PTX is compiled by the driver for any later card
_EXACT = ("sample",)  # kernels whose products are not fused with sums: equal logits, equal tokens


def compile_steps(
    steps: Iterable[LaunchList],
    folder: Path,
    capabilities: Iterable[int] = CAPABILITIES,
    on_kernel: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Compile every kernel of the steps into `folder`, which must not exist; returns what kernels.json records.

    on_kernel(done, total) is called after each one.

    ValueError for a capability that is not one of CAPABILITIES: given one that it does not know, the compiler ends the process.
    RuntimeError names the kernel and the capability that Triton could not compile. Nothing is left behind then.
    """
    found = {key_of(launch, step): (launch, step) for step in steps for launch in step.kernels}
    if knobs.runtime.interpret:
        raise RuntimeError("Triton interprets kernels in this process and cannot compile them: unset TRITON_INTERPRET")
    capabilities = sorted(set(capabilities))
    if not capabilities or set(capabilities) - set(CAPABILITIES):
        raise ValueError(f"capabilities must be some of {', '.join(map(str, CAPABILITIES))}, got {capabilities}")
    if folder.exists():
        raise FileExistsError(f"{folder} is there already: remove it, or name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        kernels: dict[str, Any] = {}
        with _cache(folder.parent), ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Triton's, about defaults to come
            made = {key: pool.submit(_compile, key, launch, step, capabilities, aside) for key, (launch, step) in sorted(found.items())}
            try:
                for key, kernel in made.items():
                    kernels[key] = kernel.result()
                    on_kernel(len(kernels), len(found))
            finally:
                pool.shutdown(cancel_futures=True)
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(aside.iterdir())}
        record = {"format": FORMAT, "triton": triton.__version__, "kernels": kernels, "files": files}
        (aside / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return record


@contextmanager
def _cache(parent: Path) -> Iterator[None]:
    """Let Triton cache its results in a folder below `parent` that is removed afterwards: an export writes nothing below the home folder.

    If the user has set TRITON_CACHE_DIR or TRITON_HOME, Triton uses that folder, and its content stays.
    """
    if {"TRITON_CACHE_DIR", "TRITON_HOME"} & os.environ.keys():
        yield
        return
    with tempfile.TemporaryDirectory(prefix=".triton-", dir=parent) as folder, knobs.cache.scope():
        knobs.cache.dir = folder
        yield


def _compile(key: str, launch: Launch, step: LaunchList, capabilities: list[int], folder: Path) -> dict[str, Any]:
    kernel, _ = functions_of(launch)
    kinds, machines = signature_of(launch, step), {}
    signature = {name: kinds[name] for name in kernel.arg_names}
    for capability in capabilities:
        try:
            compiled = _triton(launch, signature, capability)
        except Exception as error:
            what = f"{key}: Triton {triton.__version__} does not compile it for capability {capability}"
            raise RuntimeError(f"{what}: {error} {_root(error)}") from error
        name = f"{key}.sm_{capability}.cubin"
        (folder / name).write_bytes(compiled.asm["cubin"])
        usage = _usage(folder / name)
        machines[str(capability)] = {
            "file": name,
            "threads": compiled.metadata.num_warps * 32,
            "shared_bytes": compiled.metadata.shared,
            "waits": "griddepcontrol.wait" in compiled.asm["ptx"],
        } | usage
        if capability == PTX_CAPABILITY:
            (folder / f"{key}.ptx").write_text(compiled.asm["ptx"], encoding="utf-8")
            machines["ptx"] = machines[str(capability)] | {"file": f"{key}.ptx"}
    constants = {name: str(value) for name, value in launch.constants.items()}
    return {"function": launch.kernel, "signature": signature, "constants": constants, "machines": machines}


def _root(error: BaseException) -> str:
    """Return the first error of a chain: of a function that a kernel calls, Triton's own message has the call alone."""
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    return "" if first is error else f"({type(first).__name__}: {first})"


class _Source(ASTSource):
    """A kernel of which Triton reads the Python code while it reads no other: it keeps what it learns of functions that kernels share.

    That takes little of the time, and one thread of Python at a time anyway. What follows, ptxas above all, runs beside.
    """

    _reading = RLock()

    def hash(self) -> str:
        with self._reading:
            return super().hash()

    def make_ir(self, *args: Any) -> Any:
        with self._reading:
            return super().make_ir(*args)


def _triton(launch: Launch, signature: Mapping[str, Any], capability: int) -> Any:
    """Every pointer is aligned to 16 bytes: the driver's allocations are, and no launch is given a place inside one."""
    aligned = {}
    for index, kind in enumerate(signature.values()):
        parts = [((index, part), one) for part, one in enumerate(kind)] if isinstance(kind, tuple) else [((index,), kind)]
        aligned |= {path: [["tt.divisibility", 16]] for path, one in parts if one.startswith("*")}
    kernel, constants = functions_of(launch)
    if "EARLY" in kernel.arg_names:
        constants["EARLY"] = capability >= EARLY
    source = _Source(kernel, dict(signature), constants, aligned)
    options = {"enable_fp_fusion": launch.kernel not in _EXACT, "num_warps": launch.warps}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def _usage(cubin: Path) -> dict[str, int]:
    """Registers and stack of a thread, by the tool that comes with Triton."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    text = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    registers, stack = (re.search(rf"{word}:(\d+)", text) for word in ("REG", "STACK"))
    if registers is None or stack is None:
        raise RuntimeError(f"{tool} does not say how many registers {cubin.name} takes: {text[:200]}")
    return {"registers": int(registers[1]), "stack_bytes": int(stack[1])}
