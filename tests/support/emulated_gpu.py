"""An emulated GPU behind `md.load(device="cuda")`: its kernels, and requests whose music is compared with the CPU's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import musiclm_deploy as md
from musiclm_deploy.runtime import backend
from musiclm_deploy.runtime.bundle import STAGES, Bundle
from musiclm_deploy.runtime.device import cuda
from musiclm_deploy.runtime.device import model as kernels
from musiclm_deploy.runtime.device.batch import DeviceBatch
from musiclm_deploy.runtime.device.patches import list_patches
from musiclm_deploy.runtime.step import open_weights

from .emulated_cuda import EmulatedCuda
from .stages import Stage

REQUEST: dict[str, Any] = dict(text=["calm piano", "brass band"], seconds=0.04, seed=[3, 4])
HOT = {"semantic": md.SamplingConfig(temperature=30.0, filter_thres=0.0)}  # one token in twenty is the end


def lists_of(bundle: Path, kind: str, every_list: Any) -> list[Any]:
    found = []
    for stage in STAGES:
        decoder = getattr(Bundle.open(bundle).manifest, stage)
        _, sizes, _ = open_weights(bundle, decoder)
        found += every_list(sizes, decoder.conditioning == "prefix", kind)
    return found


def emulated_stage(stage: Stage, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[EmulatedCuda, cuda.CudaDriver, DeviceBatch]:
    """Return an emulated GPU with the kernels of a stage, which are packed into a folder, its driver, and a batch of the stage on it."""
    _, sizes, weights = open_weights(stage.folder, stage.decoder)
    emulated = EmulatedCuda(kernels.every_list(sizes, stage.decoder.conditioning == "prefix", "fp32"))
    emulated.pack(folder)
    emulated.install(monkeypatch)
    driver = cuda.CudaDriver(folder)
    return emulated, driver, DeviceBatch(kernels.DeviceModel(driver, stage.name, sizes, weights, "fp32"))


def is_the_cpus(found: list[Any], expected: list[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        for name in STAGES:
            np.testing.assert_array_equal(getattr(one.tokens, name), getattr(other.tokens, name), err_msg=name)
        np.testing.assert_array_equal(one.audio, other.audio)


def with_kernels(bundle: Path, monkeypatch: pytest.MonkeyPatch, kind: type[EmulatedCuda] = EmulatedCuda) -> EmulatedCuda:
    """Install an emulated GPU with the kernels of a bundle, and pack these kernels into the bundle."""
    lists, spectrogram = lists_of(bundle, "fp32", kernels.every_list), Bundle.open(bundle).manifest.mulan.spectrogram
    lists += [] if spectrogram is None else [list_patches(spectrogram, 1, 4000, None)]
    emulated = kind(lists)
    emulated.pack(bundle)
    emulated.install(monkeypatch)
    monkeypatch.setattr(cuda.CudaDriver, "place", "cpu")
    monkeypatch.setitem(backend.PROVIDERS, "cuda", backend.PROVIDERS["cpu"])  # runs the graphs around the token stages
    return emulated


def that_ends(music: Any) -> tuple[dict[str, Any], list[Any]]:
    """Return a request whose rows end by themselves, at different lengths, and the CPU's music for it."""
    for seed in range(100):
        request = REQUEST | dict(seed=[seed, seed + 1], stop="eos", sampling=HOT)
        made = music.generate(**request)
        if len({len(one.tokens.semantic) for one in made}) == 2:
            return request, made
    raise AssertionError("no seed makes such rows")
