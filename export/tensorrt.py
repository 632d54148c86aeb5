"""TensorRT's form of a new bundle: caches of a static length, the precision that was asked for, and copies that say what it loses.

In: what was collected, the bundle's manifest. Out: the folder `tensorrt/` with its record, and beside the bundle fake-quantized
copies, which `export.validate` runs on a CPU. No TensorRT is needed.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..runtime.bundle import STAGES, FileRecord, Manifest
from ..runtime.engines.form import FOLDER, POSITIONS, RECORD, Form
from .collect import Collected
from .mixed_precision import save_mixed
from .stage import export_stage


def write_form(collected: Collected, manifest: Manifest, folder: Path, precision: str) -> dict[str, dict[str, dict[str, int]]]:
    """Write the graphs into `folder`/tensorrt, and their fake-quantized copies into a folder named `precision` beside it.

    Returns stage -> precision -> {"capacity": the length of its caches}, as `export.quality` takes it.
    """
    own, exact, copies = folder / FOLDER, folder.with_name("static"), folder.with_name(precision)
    for made in (own, exact, copies):
        made.mkdir()
    settings, capacities = collected.settings, {stage: _capacity(manifest, stage) for stage in STAGES}
    sizes = settings["semantic"]["max_length"], settings["codec"]["rq_groups"]
    for stage, capacity in capacities.items():
        name = export_stage(stage, collected.checkpoints[stage], settings[stage], exact, *sizes, capacity=capacity).graph
        _write(exact / name, own / name, precision)
        _write(exact / name, copies / name, precision, rounded=True)
    if precision != "fp32":  # what gives codes or tokens stays as it is: the nearest of many is no matter of 16 bits
        for name in (manifest.mulan.text, manifest.mulan.audio, manifest.codec.stream):
            _write(folder / name, own / name, precision)
            _write(folder / name, copies / name, precision, rounded=True)
    return {stage: {precision: {"capacity": capacity}} for stage, capacity in capacities.items()}


def record_form(folder: Path, precision: str, made: Mapping[str, Any], files: dict[str, FileRecord]) -> None:
    """Write the record of `folder`/tensorrt, whose files these are. made: what `write_form` returned."""
    capacities = {stage: forms[precision]["capacity"] for stage, forms in made.items()}
    (folder / FOLDER / RECORD).write_text(Form(precision, capacities, POSITIONS, files).to_json(), encoding="utf-8")


def _write(source: Path, target: Path, precision: str, rounded: bool = False) -> None:
    if precision != "fp32":
        save_mixed(source, target, precision, rounded)
        return
    for suffix in ("", ".data"):
        shutil.copyfile(f"{source}{suffix}", f"{target}{suffix}")


def _capacity(manifest: Manifest, stage: str) -> int:
    """Positions of the longest sequence of the trained windows, with a conditioning prefix, and of the last call's that lie beyond it."""
    decoder, groups = getattr(manifest, stage), manifest.codec.groups
    coarse, fine = (decoder.coarse_quantizers or 0) * groups, (decoder.fine_quantizers or 0) * groups
    longest = {
        "semantic": 1 + decoder.max_length,
        "coarse": 2 + manifest.semantic.max_length + decoder.max_length * coarse,
        "fine": 2 + decoder.max_length * (coarse + fine),
    }[stage]
    return longest + (manifest.conditioner.quantizers if decoder.conditioning == "prefix" else 0) + POSITIONS - 1
