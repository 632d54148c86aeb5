"""`device="cuda"` with an emulated GPU behind cuda-python: every line of the driver runs, and the music is the CPU's. `device="tensorrt"`
is in test_engines_run.py."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.device import DRAWN, GUIDED, alone, sequences_of, together
from support.emulated_cuda import OTHERS
from support.emulated_gpu import REQUEST, emulated_stage, is_the_cpus, that_ends, with_kernels

import musiclm_deploy as md
from musiclm_deploy.runtime.backend import BackendError
from musiclm_deploy.runtime.backends import on_device
from musiclm_deploy.runtime.bundle import Bundle
from musiclm_deploy.runtime.device import cuda
from musiclm_deploy.runtime.device.arrays import on_host
from musiclm_deploy.runtime.device.driver import DeviceError
from musiclm_deploy.runtime.device.model import DeviceModel
from musiclm_deploy.runtime.musiclm import MusicLM

REFUSED = (  # a call, the error that it returns, and what a caller then gets
    ("cuMemAlloc", "CUDA_ERROR_OUT_OF_MEMORY", MemoryError, "Ask for fewer seconds, samples or prompts"),
    ("cuModuleLoadData", "CUDA_ERROR_NO_BINARY_FOR_GPU", DeviceError, "Update the GPU's driver, or export with --kernels for this"),
    ("cuLaunchKernelEx", "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", DeviceError, "Pack its kernels again: export with --kernels"),
    ("cuGraphInstantiate", "CUDA_ERROR_OUT_OF_MEMORY", MemoryError, "or free what else runs on the GPU"),
    ("cuMemHostAlloc", "CUDA_ERROR_OUT_OF_MEMORY", MemoryError, "or free what else runs on the GPU"),
    ("cuEventSynchronize", "CUDA_ERROR_ILLEGAL_ADDRESS", DeviceError, "the GPU answers this process no more: load the bundle in a"),
    ("cuGraphLaunch", "CUDA_ERROR_UNKNOWN", DeviceError, "Ask again. If that fails too, the GPU answers this process no more"),
)


@pytest.fixture(autouse=True)
def small(monkeypatch, collector_off) -> None:
    """A ring of four tokens comes round in a short test; caches grow."""
    monkeypatch.setattr(DeviceModel, "ring", 4)
    monkeypatch.setattr(DeviceModel, "least_capacity", 16)


class Elsewhere:
    """An array in the GPU's memory, as pycuda's, CuPy's and PyTorch's say where they lie."""

    def __init__(self, driver: cuda.CudaDriver, array: np.ndarray) -> None:
        self.memory = driver.allocate("fp32", array.shape)
        driver.upload(self.memory, array)
        place = {"data": (self.memory.address, False), "strides": None, "stream": 1, "version": 3}
        self.__cuda_array_interface__: dict[str, Any] = place | {"shape": array.shape, "typestr": array.dtype.str}


@pytest.mark.parametrize(
    ("variant", "name"), [("cross-attention, four streams", "coarse"), ("prefix, two streams, heads of 20", "semantic")]
)
def test_a_batch(variant: str, name: str, stages, tmp_path: Path, monkeypatch) -> None:
    """Fault: a parameter at another place or of another width, an upload to another slot, a copy within the GPU that leaves something out
    or goes beyond its buffer; memory that a second request takes, or that a closed batch keeps."""
    stage = stages(variant, name)
    emulated, driver, batch = emulated_stage(stage, tmp_path, monkeypatch)
    free = emulated.free
    short, long = sequences_of(stage, 5, True, DRAWN), sequences_of(stage, 14, True, GUIDED)
    expected = alone(stage, [*short, *long])
    found: dict[Any, list[int]] = {sequence: [] for sequence in [*short, *long]}
    coming = [*found]
    for turn in range(40):
        if coming and turn % 2 == 0:
            batch.join(coming.pop(0))
        batch.advance(2, 6)
        for made in batch.collect():
            found[made.sequence] += made.tokens.tolist()
    assert [*found.values()] == expected and emulated.contexts == [OTHERS]
    assert together(batch, short) == expected[:3]
    allocated = emulated.allocated
    assert together(batch, short) == expected[:3]
    assert emulated.allocated == allocated, "a request of a size that was there before takes nothing"
    batch.close()
    driver.close()
    assert emulated.graphs == 0 and emulated.free == free


def test_a_call_that_is_refused(stages, tmp_path: Path, monkeypatch) -> None:
    """Fault: a code of CUDA's and no more; a thread that is left in another's context; a batch that a refused call has spoilt."""
    stage = stages("one stream, before 2.4, one layer, 64", "semantic")
    emulated, driver, batch = emulated_stage(stage, tmp_path, monkeypatch)
    sequences, free = sequences_of(stage, 5, True, DRAWN), emulated.free
    expected = alone(stage, sequences)
    for function, error, kind, message in REFUSED:
        emulated.refused = {function: error}
        with pytest.raises(kind, match=f"^{function}: .*{error}.*{message}"):
            together(batch, sequences)
        emulated.refused = {}
        batch.close()
        assert emulated.contexts == [OTHERS], function
    assert together(batch, sequences) == expected
    batch.close()
    driver.close()
    assert emulated.graphs == 0 and emulated.free == free


def test_kernels(patches_bundle: Path, music, tmp_path: Path, monkeypatch) -> None:
    """Fault: a parameter at another place or of another width, a graph of another list, a copy that comes too early; memory is kept."""
    shutil.copytree(patches_bundle, tmp_path / "bundle")
    emulated = with_kernels(tmp_path / "bundle", monkeypatch)
    free = emulated.free
    with md.load(tmp_path / "bundle", device="cuda", weights="fp32", threads=1) as model:
        driver = model.graphs.driver
        assert isinstance(driver, cuda.CudaDriver) and (driver.name, driver.capability) == ("Emulated GPU", 90)
        is_the_cpus(model.generate(**REQUEST), music.generate(**REQUEST))
        sound = np.random.default_rng(0).standard_normal(3000).astype(np.float32), 16_000
        np.testing.assert_allclose(model.embed_audio(sound), music.embed_audio(sound), rtol=0, atol=1e-5)  # fp32
        request, expected = that_ends(music)
        is_the_cpus(model.generate(**request), expected)
        allocated = emulated.allocated
        is_the_cpus(model.generate(**request), expected)
        np.testing.assert_allclose(model.embed_audio(sound), music.embed_audio(sound), rtol=0, atol=1e-5)
        assert emulated.allocated == allocated, "a request of a size that was there before takes nothing"
        there = Elsewhere(driver, sound[0])
        np.testing.assert_array_equal(model.embed_audio((there, 16_000)), model.embed_audio(sound))
        np.testing.assert_array_equal(model.encode_audio((there, 16_000)), model.encode_audio(sound))
        blend = on_host([md.Blend([("calm", 0.5), ((there, 16_000), 0.5)])], driver)
        np.testing.assert_array_equal(blend[0].parts[1][0][0], sound[0])
        with pytest.raises(BackendError, match="a sound lies in a GPU's memory, and this bundle runs on the CPU"):
            music.generate(audio=(there, 16_000), seconds=0.04)
        there.__cuda_array_interface__["strides"] = (8,)
        with pytest.raises(ValueError, match=r"must be contiguous, got strides \(8,\) of float32 \[3000\]"):
            model.generate(prime=(there, 16_000), seconds=0.04)
        elsewhere, emulated.free = emulated.free - 10, 10
        longer = np.random.default_rng(1).standard_normal(3500).astype(np.float32), 16_000
        np.testing.assert_allclose(model.embed_audio(longer), music.embed_audio(longer), rtol=0, atol=1e-5)  # where lanes were
        elsewhere, emulated.free = elsewhere + emulated.free, 0
        with pytest.raises(MemoryError, match=r"the spectrogram of 1 waves of 3600 samples: [\d.]+ MB .* are needed, [\d.]+ MB are free"):
            model.embed_audio((np.zeros(3600, np.float32), 16_000))
        emulated.free += elsewhere
        del there
        assert emulated.contexts == [OTHERS] and emulated.free < free and emulated.launched > emulated.replayed > 20
    assert emulated.free == free, "what a model has taken is given back when it is closed"


def test_a_gpu_that_refuses(tiny_bundle: Path, music, tmp_path: Path, monkeypatch) -> None:
    """Fault: a code of CUDA's and no more; a request that hangs, or is half done, where the GPU was lost; memory that it keeps, or a thread
    that it leaves in another's context; a model that a request has spoilt."""
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    emulated = with_kernels(tmp_path / "bundle", monkeypatch)
    driver, free = cuda.CudaDriver(tmp_path / "bundle"), emulated.free
    with MusicLM(on_device(Bundle.open(tmp_path / "bundle"), "cpu", 1, driver, "fp32")) as model:
        for function, error, kind, message in REFUSED:
            emulated.refused = {function: error}
            with pytest.raises(kind, match=f"^{function}: .*{error}.*{message}"):
                model.generate("calm", seconds=0.04)
            emulated.refused = {}
            assert emulated.contexts == [OTHERS], function
        is_the_cpus([model.generate("calm", seconds=0.04)], [music.generate("calm", seconds=0.04)])
    assert (emulated.graphs, emulated.free) == (0, free)
