"""Every kernel of a step compiled ahead of time, with no GPU here, in a process that does not interpret them.

One step has all kernels; what differs in other steps are sizes. In fp16 for every capability; in bf16 and int8, and in fp16 at the size of
upstream's README, for 90.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

from musiclm_deploy.kernels.decoder_step.sizes import Sizes
from musiclm_deploy.kernels.kernel_lists import begin_list, prompt_list, step_list
from musiclm_deploy.kernels.launch import key_of
from musiclm_deploy.kernels.list_builder import Slots
from musiclm_deploy.runtime.bundle import Bundle
from musiclm_deploy.runtime.device.kernels import Kernels
from musiclm_deploy.runtime.device.model import every_list
from musiclm_deploy.runtime.device.patches import list_patches
from musiclm_deploy.runtime.step import open_weights

COMPILE = """
import sys
from pathlib import Path
from musiclm_deploy.kernels.compile import compile_steps
from musiclm_deploy.kernels.decoder_step.sizes import Sizes
from musiclm_deploy.kernels.list_builder import Slots
from musiclm_deploy.kernels.kernel_lists import begin_list, prompt_list, step_list
from musiclm_deploy.kernels.patches import build_patches
steps = [build_patches(1, 999, 40, 24, 12, True, (5, 7), bands) for bands in (None, 10)]
for sizes, rows, weights in {lists}:
    sizes, slots = Sizes(**sizes), Slots(3, 64, 9)
    step = step_list(sizes, slots, weights, rows)
    {change}
    steps += [step, prompt_list(sizes, slots, weights, rows), begin_list(sizes, slots, weights, rows)]
compile_steps(steps, Path(sys.argv[1]), {capabilities})
"""
SIZES = dict(dim=32, depth=2, heads=2, dim_head=8, cache_head_size=8, inner=40, streams=4, vocabulary=14, outputs=1, table_rows=50)
SIZES |= dict(bias_entries=9, value_residual=True, cross_attention=True)
README = SIZES | dict(dim=1024, heads=8, dim_head=64, cache_head_size=64, inner=2730, vocabulary=1025)
SLOTS = Slots(3, 64, 9)
CAPABILITIES = (80, 86, 89, 90, 100, 120)
TINY = [(SIZES, 2, "fp16")]


def compiled(
    folder: Path, capabilities: tuple[int, ...], lists: list[tuple[dict[str, Any], int, str]] = TINY, change: str = "", **environment: str
) -> subprocess.CompletedProcess:
    """lists: sizes, sequences and type of weights of each."""
    code = COMPILE.format(lists=lists, capabilities=capabilities, change=change or "pass")
    return in_a_process(code, folder, **environment)


def in_a_process(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Where Triton compiles and does not interpret."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    where = {"PYTHONPATH": path, "HOME": str(folder.parent / "home")}
    return subprocess.run([sys.executable, "-c", code, folder], env=kept | where | environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compiled") / "kernels"
    ran = compiled(folder, CAPABILITIES)
    assert ran.returncode == 0, ran.stderr
    return folder


@pytest.fixture(scope="module")
def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "kernels.json").read_text())


def test_every_kernel_compiles_and_is_listed(folder: Path, record: dict[str, Any]) -> None:
    """Fault: a kernel that only the interpreter takes; a file that the record does not know, or the other way round."""
    lists = [make(Sizes(**SIZES), SLOTS, "fp16", 2) for make in (step_list, prompt_list, begin_list)]
    functions = {launch.kernel for launches in lists for launch in launches.kernels}
    assert {kernel["function"] for kernel in record["kernels"].values()} == functions | {"spectrogram", "log_mel"}
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name != "kernels.json"}
    assert record["files"] == hashes
    assert {machine["file"] for kernel in record["kernels"].values() for machine in kernel["machines"].values()} == set(hashes)
    for key, kernel in record["kernels"].items():
        assert set(kernel["machines"]) == {*map(str, CAPABILITIES), "ptx"}
        for capability in CAPABILITIES:
            machine = kernel["machines"][str(capability)]
            cubin = (folder / machine["file"]).read_bytes()
            assert cubin.startswith(b"\x7fELF") and kernel["function"].encode() in cubin, key
            assert machine["waits"] == (capability >= 90 and kernel["function"] not in ("spectrogram", "log_mel")), key
            assert machine["shared_bytes"] <= 48 << 10, "more must be asked for, and not every card has it"
        assert f".visible .entry {kernel['function']}(" in (folder / f"{key}.ptx").read_text()
    assert list(folder.parent.iterdir()) == [folder], "a half-written folder, or what Triton keeps below the home folder"


def test_nothing_spills_at_this_size(record: dict[str, Any]) -> None:
    """Fault: a tile that registers cannot hold even of the smallest model: its stack is written to memory and read at every step."""
    for key, kernel in record["kernels"].items():
        for capability, machine in kernel["machines"].items():
            assert 0 < machine["registers"] <= 255 and machine["threads"] in (128, 256), (key, capability)
            assert machine["stack_bytes"] == 0, (key, capability, machine)


def test_other_types_and_a_real_size(tmp_path: Path) -> None:
    """Fault: a kernel that compiles in fp16 or for tiny sizes alone; registers that a real model's tiles do not fit into.

    With Triton 3.7 two kernels keep up to sixteen words of a thread on the stack, products of eight rows at once; with 3.9 one, ten.
    """
    lists = [(SIZES, 2, "bf16"), (SIZES, 2, "int8"), (README, 1, "fp16"), (README, 8, "fp16")]
    ran = compiled(tmp_path / "kernels", (90,), lists)
    assert ran.returncode == 0, ran.stderr
    kernels = json.loads((tmp_path / "kernels" / "kernels.json").read_text())["kernels"]
    for weights in ("*fp16", "*bf16", "*i8"):
        assert sum(kernel["signature"].get("weights") == weights for kernel in kernels.values()) >= 5, weights
    spilling = {key: kernel for key, kernel in kernels.items() if kernel["machines"]["90"]["stack_bytes"]}
    assert all(kernel["constants"].get("ROWS") == "8" for kernel in spilling.values()) and len(spilling) <= 2, spilling
    assert all(kernel["machines"]["90"]["stack_bytes"] <= 64 for kernel in spilling.values()), spilling
    assert max(kernel["machines"]["90"]["shared_bytes"] for kernel in kernels.values()) <= 48 << 10


def test_all_threads_read_progress_before_one_writes_it(folder: Path, record: dict[str, Any]) -> None:
    """Fault: a warp that comes late reads the next token's number, and draws its noise. No interpreter shows that."""
    (sample,) = (key for key, kernel in record["kernels"].items() if kernel["function"] == "sample")
    ptx = (folder / f"{sample}.ptx").read_text()
    load, barrier, store = (ptx.index(part) for part in ("ld.global", "bar.sync", "st.global"))
    assert load < barrier < store


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    """Fault: a half-written folder, or an error that does not say which kernel, which card and what to do."""
    broken = "step.launches = step.launches[:1]; step.kernels[0].constants['BLOCK'] = 3"
    cases = [
        (dict(capabilities=(80, 90), change=broken), "does not compile it for capability 80"),
        (dict(capabilities=(12, 90)), r"must be some of 80, .*, got [12, 90]"),
        (dict(capabilities=(90,), TRITON_INTERPRET="1"), "unset TRITON_INTERPRET"),
    ]
    for arguments, message in cases:
        ran = compiled(tmp_path / "kernels", **arguments)
        assert ran.returncode == 1 and all(part in ran.stderr for part in message.split(".*")), ran.stderr
        assert [path.name for path in tmp_path.iterdir()] == []


def test_a_bundle_is_packed(kernel_bundle: Path) -> None:
    """Fault: a bundle whose runtime asks for a kernel that the export did not compile, or looks for it elsewhere; a mix of two."""
    kernels, manifest = Kernels(kernel_bundle), Bundle.open(kernel_bundle).manifest
    assert manifest.mulan.spectrogram is not None
    steps = [list_patches(manifest.mulan.spectrogram, 2, 4321, None)]
    for stage in ("semantic", "coarse", "fine"):
        decoder = getattr(manifest, stage)
        _, sizes, _ = open_weights(kernel_bundle, decoder)
        steps += every_list(sizes, False, "fp32")
    for launches in steps:
        for launch in launches.kernels:
            found = kernels.find(key_of(launch, launches), 90)
            assert found.function == launch.kernel and found.image.startswith(b"\x7fELF")
    code = "import sys; from musiclm_deploy.export.kernels import pack_kernels; pack_kernels(Path(sys.argv[1]), ['fp32'], [90])"
    again = in_a_process(f"from pathlib import Path; {code}", kernel_bundle)
    assert again.returncode == 1 and "is there already: remove it" in again.stderr
