"""MuLaN's audio tower behind the kernel that makes its patches: the graph from them on, and `embed_audio` on a device.

fp32: latents are unit vectors, 1e-5 in each entry.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.drivers import HostDriver
from support.mulan import mel_mulan, pair, run

from musiclm_deploy.export.mulan import export_mulan_audio
from musiclm_deploy.export.patches import export_patches
from musiclm_deploy.kernels.spectrogram import reference
from musiclm_deploy.model import MuLaN
from musiclm_deploy.runtime.backends import on_device, open_backend
from musiclm_deploy.runtime.bundle import Bundle, BundleError, Spectrogram
from musiclm_deploy.runtime.device.patches import Patches, filters_of
from musiclm_deploy.runtime.musiclm import MusicLM


def exported(mulan: MuLaN, folder: Path) -> Spectrogram | None:
    export_mulan_audio(mulan, folder / "mulan_audio.onnx")
    return export_patches(mulan, folder / "mulan_audio.onnx")


@pytest.mark.parametrize("entrance", ["power", "log-mel"])
def test_the_graph_from_the_patches_on(entrance: str, tmp_path: Path) -> None:
    """Fault: a grid of patches of another height, sizes fixed by tracing, filters other than the trained ones; weights written twice."""
    mulan = mel_mulan() if entrance == "log-mel" else pair("default")[1]
    if mulan.audio.spec.mel is not None:
        mulan.audio.spec.mel.mul_(1.5)
    spectrogram = exported(mulan, tmp_path)
    assert spectrogram is not None and (spectrogram.filters is None) == (entrance == "power")
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"mulan_audio.onnx", "mulan_audio.onnx.data", spectrogram.graph} | ({spectrogram.filters} - {None})
    filters = filters_of(spectrogram, tmp_path)
    for batch, samples in ((3, 4321), (1, mulan.audio.min_samples)):
        wave = np.random.default_rng(samples).standard_normal((batch, samples)).astype(np.float32)
        expected = run(tmp_path / "mulan_audio.onnx", wave=torch.from_numpy(wave))["latent"]
        patches = reference.patches(wave, *spectrogram.layout, filters).astype(np.float32)
        np.testing.assert_allclose(
            run(tmp_path / spectrogram.graph, patches=torch.from_numpy(patches))["latent"], expected, rtol=0, atol=1e-5
        )
        made, shape = Patches(HostDriver(), spectrogram, tmp_path).make(wave)
        assert shape == patches.shape
        np.testing.assert_allclose(run(tmp_path / spectrogram.graph, patches=made)["latent"], expected, rtol=0, atol=1e-5)


def test_what_the_kernel_does_not_make_stays_with_the_graph(tmp_path: Path) -> None:
    """Fault: magnitudes are taken for powers, a window that is no Hann window for one."""
    assert export_patches(pair("magnitudes")[1], tmp_path / "mulan_audio.onnx") is None
    mulan = pair("default")[1]
    mulan.audio.spec.window[3] += 0.01
    assert export_patches(mulan, tmp_path / "mulan_audio.onnx") is None
    assert not list(tmp_path.iterdir())


def test_filters_that_are_none(tmp_path: Path) -> None:
    """Fault: a kernel that reads beyond the filters; a file of objects that is unpickled."""
    layout = Spectrogram("mulan_patches.onnx", 40, 24, 12, True, 8, 16, "filters.npy")
    saved = [
        (np.zeros((9, 20), np.float32), r"holds float32 \[9, 20\], expected float32 \[bands of at least 8, 21\]"),
        (np.zeros((7, 21), np.float32), r"holds float32 \[7, 21\]"),
        (np.zeros((9, 21)), r"holds float64 \[9, 21\]"),
        (np.array([{}]), "is not an array as numpy saves it: Object arrays cannot be loaded"),
    ]
    for array, message in saved:
        np.save(tmp_path / "filters.npy", array)
        with pytest.raises(BundleError, match=message):
            filters_of(layout, tmp_path)
    (tmp_path / "filters.npy").write_bytes(b"")
    with pytest.raises(BundleError, match="is not an array"):
        filters_of(layout, tmp_path)


def test_sounds_are_embedded_on_the_device(patches_bundle: Path, tmp_path: Path) -> None:
    """Fault: patches of the wave before, memory that is taken with every wave, the graph from the wave on in place of the kernel."""
    shutil.copytree(patches_bundle, tmp_path / "bundle")
    whole, opened, driver = Bundle.open(patches_bundle), Bundle.open(tmp_path / "bundle"), HostDriver()
    opened.path(opened.manifest.mulan.audio).unlink()  # the graph from the wave on, which is opened when it is first used
    hz = opened.manifest.mulan.sample_hz
    rng = np.random.default_rng(3)
    waves = [rng.standard_normal(shape).astype(np.float32) for shape in ((2, hz // 8), (2, hz // 8), (hz // 7,))]
    backend = on_device(opened, "cpu", 1, driver, "fp32")
    with MusicLM(open_backend(whole, "cpu", 1, "auto", "fp32")) as cpu, MusicLM(backend) as model:
        for index, wave in enumerate(waves):
            free = driver.memory
            np.testing.assert_allclose(model.embed_audio((wave, hz)), cpu.embed_audio((wave, hz)), rtol=0, atol=1e-5)
            assert driver.replayed == index + 1 and (driver.memory == free) == (index == 1)
