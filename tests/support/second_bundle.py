"""The tiny bundle with other weights and another codec: what must not make a difference to how clips are run."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from musiclm_deploy.export.codec import export_codec
from musiclm_deploy.export.collect import collect
from musiclm_deploy.export.encodec import infer_encodec
from musiclm_deploy.export.export import records_of
from musiclm_deploy.export.stage import export_stage
from musiclm_deploy.runtime.bundle import MANIFEST, Bundle

from .encodec import small

PRECISIONS = {"semantic": "int4", "coarse": "int8", "fine": "int4"}
STRIDES = (8, 5, 4, 2)  # as many samples per frame as the tiny bundle's SoundStream has


def write_second_bundle(bundle: Path, checkpoints: Mapping[str, Path], folder: Path) -> None:
    """Write the tiny bundle with matrices of 8 and 4 bits, and an EnCodec in place of the SoundStream."""
    shutil.copytree(bundle, folder)
    collected, manifest = collect(dict(checkpoints), {}), Bundle.open(folder).manifest
    sizes = collected.settings["semantic"]["max_length"], manifest.codec.groups
    decoders = {
        stage: export_stage(stage, collected.checkpoints[stage], collected.settings[stage], folder, *sizes, precision)
        for stage, precision in PRECISIONS.items()
    }
    entries = manifest.codec.codebook_size  # fewer than encodec makes, which wants a power of two
    state = small(STRIDES, manifest.codec.quantizers).state_dict()
    state = {name: tensor[:entries] if name.endswith("_codebook.embed") else tensor for name, tensor in state.items()}
    made = export_codec(infer_encodec(state, {}, manifest.codec.quantizers, {}), state, folder)
    codec = replace(made, sample_hz=manifest.codec.sample_hz)
    (folder / MANIFEST).unlink()
    written = replace(manifest, **decoders, codec=codec, files=records_of(folder))
    (folder / MANIFEST).write_text(written.to_json(), encoding="utf-8")
