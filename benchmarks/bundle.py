"""A bundle of random weights at a stated size, made once and kept: what the benchmarks run on.

In: the name of a size, a precision. Out: `build/bench/<size>/<precision>`, and beside it upstream's checkpoints of the same weights, which
the peers read. A step's time does not depend on the weights' values. What another version made is made again.

    python -m benchmarks.bundle readme
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from demo.checkpoints import TINY, Preset, build_models, save_checkpoints
from musiclm_deploy import __version__
from musiclm_deploy.export.export import export_checkpoints
from musiclm_deploy.export.kernels import steps_of
from musiclm_deploy.kernels.launch import key_of
from musiclm_deploy.kernels.quantized_product import PRECISIONS
from musiclm_deploy.model.spectrogram import mel_filters, music_spectrogram
from musiclm_deploy.runtime.bench.record import say
from musiclm_deploy.runtime.bundle import Bundle, BundleError, Spectrogram
from musiclm_deploy.runtime.device.kernels import FOLDER as KERNELS
from musiclm_deploy.runtime.device.kernels import Kernels
from musiclm_deploy.runtime.device.patches import filters_of, list_patches
from musiclm_deploy.runtime.engines.form import Form

from . import open_musiclm

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "bench"
_CAPABILITY = 90  # that kernels are looked up for: all are compiled for the same ones
SIZES = {
    # of upstream's READMEs: the three transformers and the SoundStream of audiolm-pytorch's, the towers of musiclm-pytorch's
    "readme": Preset(
        dim=1024,
        depth=6,
        heads=8,
        dim_head=64,
        semantic_tokens=500,
        codebook_size=1024,
        coarse_quantizers=3,
        fine_quantizers=5,
        conditioning_codebook=1024,
        codec_arguments={
            "channels": 32,
            "codebook_dim": 512,
            "attn_heads": 8,
            "attn_dim_head": 64,
            "attn_window_size": 128,
            "attn_depth": 2,
        },
        tower_arguments={"dim": 512, "depth": 6, "heads": 8, "dim_head": 64},
        randomness=0.1,
    ),
    "tiny": TINY,
}
SIZES["300m"] = replace(SIZES["readme"], depth=24, heads=16)  # of each transformer, about


def checkpoints(size: str, build: Path = BUILD) -> dict[str, Path]:
    """Upstream's files of a size, by the names of the export's arguments; made where they are not there."""
    folder = build / size / "checkpoints"
    done = folder / "files.json"  # last, so that a run that was cut short is made again
    if not done.is_file():
        paths = open_musiclm.save_checkpoints(folder) if size == open_musiclm.NAME else save_checkpoints(models(size), folder)
        done.write_text(json.dumps({name: path.name for name, path in paths.items()}), encoding="utf-8")
    return {name: folder / file for name, file in json.loads(done.read_text(encoding="utf-8")).items()}


def models(size: str) -> dict[str, Any]:
    """Upstream's own modules of a size, with the weights of the checkpoints: both are drawn from one seed."""
    return build_models(SIZES[size])


def bundle(size: str, precision: str = "fp32", build: Path = BUILD, target: str = "onnxruntime", kernels: Sequence[str] = ()) -> Path:
    """The bundle of a size at a precision; exported where it is not there, or cannot be used as it is, which is said on the terminal.
    ValueError for a precision that the export does not write.

    kernels: types of weights for which it brings kernels for a GPU.
    """
    if target == "onnxruntime" and precision not in PRECISIONS:
        raise ValueError(f"this export writes {', '.join(PRECISIONS)}, not {precision}.")
    out = build / size / "-".join((precision,) if target == "onnxruntime" and not kernels else (target, precision, *kernels))
    engines = None if target == "onnxruntime" else precision
    fault = fault_of(out, kernels, engines) if out.is_dir() else "it is not there"
    if fault is not None:
        say(f"bundle: {os.path.relpath(out)} is exported: {fault}")
        plain = target == "onnxruntime" and precision == "fp32"
        chosen: dict[str, Any] = {} if plain else {"target": target, "precision": precision, "force": True}  # random weights lose more
        export_checkpoints(**checkpoints(size, build), out=out, kernels=kernels, overwrite=True, **chosen)
    return out


def fault_of(root: Path, kernels: Sequence[str], engines: str | None) -> str | None:
    """Why a bundle that was made before is not what this version would make; None where it is. kernels, engines: types, see `steps_of`."""
    try:
        opened = Bundle.open(root)
        version = opened.manifest.made_by.get("musiclm-deploy")
        if version != __version__:
            return f"version {version} made what is there, this is {__version__}"
        if engines is not None:
            Form.open(opened)
        if kernels or engines is not None:
            packed, known = Kernels(root), {key_of(one, step) for step in steps_of(opened, kernels, engines) for one in step.kernels}
            for key in sorted(known):
                packed.find(key, _CAPABILITY)
    except BundleError as error:
        return str(error)
    return None


def mel_entrance(build: Path = BUILD) -> tuple[Path, Spectrogram, int]:
    """A folder with the filters of a log-mel spectrogram of music and the kernel of its patches, which upstream's MuLaN has not; the
    spectrogram, and its rate in Hz."""
    root, hz, bands = build / "log-mel", 24_000, 128
    settings = music_spectrogram(hz, bands)
    n_fft, win_length, hop = (settings[f"spec_{name}"] for name in ("n_fft", "win_length", "hop_length"))
    spectrogram = Spectrogram("", n_fft, win_length, hop, True, 16, 16, "filters.npy")
    root.mkdir(parents=True, exist_ok=True)
    np.save(root / "filters.npy", mel_filters(bands, n_fft, hz).numpy(), allow_pickle=False)
    step = list_patches(spectrogram, 1, hz, filters_of(spectrogram, root))
    try:
        Kernels(root).find(key_of(step.kernels[0], step), _CAPABILITY)
    except BundleError as error:
        from musiclm_deploy.kernels.compile import compile_steps  # Triton, which other benchmarks do without

        say(f"bundle: {os.path.relpath(root)} is compiled: {error}")
        shutil.rmtree(root / KERNELS, ignore_errors=True)
        compile_steps([step], root / KERNELS)
    return root, spectrogram, hz


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the bundles that the benchmarks run on.")
    parser.add_argument("size", choices=(*SIZES, open_musiclm.NAME))
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="repeat for more (default: all)")
    options = parser.parse_args()
    for precision in options.precision or PRECISIONS:
        print(os.path.relpath(bundle(options.size, precision)))


if __name__ == "__main__":
    main()
