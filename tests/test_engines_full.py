"""Engines of the full TensorRT, which is on no index, emulated: what `musiclm build` asks of it, what it refuses, and that they run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.emulated_cuda import EmulatedCuda
from support.emulated_tensorrt import EmulatedTensorRT, installed

import musiclm_deploy as md
from musiclm_deploy import cli
from musiclm_deploy.runtime.backend import BackendError
from musiclm_deploy.runtime.bundle import Bundle
from musiclm_deploy.runtime.engines.build import RECORD, TIMINGS, BuiltEngines, Target
from musiclm_deploy.runtime.engines.form import Form
from musiclm_deploy.runtime.engines.profiles import Limits, profiles_of
from musiclm_deploy.runtime.engines.run import find_engines

OPTIONS = ["--sequences", "4", "--seconds", "2", "--quiet"]


@pytest.fixture
def trt(monkeypatch) -> Iterator[EmulatedTensorRT]:
    """The full library, on an emulated GPU of capability 9.0."""
    emulated = EmulatedCuda([])
    emulated.install(monkeypatch)
    made = EmulatedTensorRT(emulated)
    with installed(made):
        yield made


@pytest.fixture
def bundle(static_bundle: Path, trt: EmulatedTensorRT, tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    shutil.copytree(static_bundle, path)
    trt.cuda.pack(path)
    return path


def test_every_graph_is_built(bundle: Path, trt: EmulatedTensorRT, capsys) -> None:
    """Fault: types that TensorRT chooses, TF32 in float32, sizes that are not the manifest's, seconds of timing every kernel again."""
    assert cli.main(["build", str(bundle), *OPTIONS]) == 0
    folder = bundle / "engines" / "tensorrt-10.15.1.29-emulated-gpu"
    assert "12 engines in fp32, 12 built, for TensorRT 10.15.1.29 on Emulated GPU" in capsys.readouterr().out
    opened, made = Bundle.open(bundle), BuiltEngines.open(folder)
    assert (made.library, made.capability, made.gpu) == ("TensorRT", 90, "Emulated GPU")
    wanted = profiles_of(opened.manifest, Form.open(opened), Limits(4, 2.0))
    assert [one.graph for one in trt.asked] == list(wanted)
    for number, one in enumerate(trt.asked):
        assert (one.network_flags, one.flags, one.capability) == (1 << 1, set(), None), "strongly typed, no TF32"
        assert json.loads(one.timings or "null") == list(wanted)[:number], "what was timed for the graphs before it"
        for got, profile in zip(one.profiles, wanted[one.graph], strict=True):
            assert got.keys() <= profile.keys()
            for name, shapes in got.items():
                ranges = [sizes for sizes in zip(*shapes, strict=True) if sizes in profile[name]]
                given = len(profile[name])  # sizes that are fixed may be the same
                assert ranges[:given] == profile[name] and all(least == most for least, _, most in ranges[given:]), (one.graph, name)
    coarse = trt.asked[list(wanted).index("coarse.onnx")].profiles
    assert [one["row_ids"] for one in coarse] == [((1, 128), (2, 128), (4, 128)), ((1, 1), (2, 1), (4, 1))]

    trt.asked.clear()
    assert cli.main(["build", str(bundle), *OPTIONS[:2], "--seconds", "3", "--quiet"]) == 0
    again = [one.graph for one in trt.asked]
    assert again == ["mulan_audio.onnx", "codec_encode.onnx", "wav2vec.onnx"]
    assert [json.loads(one.timings or "null") for one in trt.asked] == [[*wanted, *again[:number]] for number in range(3)]
    assert json.loads((folder / TIMINGS).read_bytes()) == [*wanted, *again]


def test_they_run(bundle: Path, music) -> None:
    """Fault: a context that the full library, which has no configuration of its own for it, does not make."""
    assert cli.main(["build", str(bundle), *OPTIONS]) == 0
    with md.load(bundle, device="tensorrt") as model:
        np.testing.assert_array_equal(model.embed_text(["calm", "loud"]), music.embed_text(["calm", "loud"]))


def test_version_11_types_networks_by_itself(bundle: Path, trt: EmulatedTensorRT) -> None:
    """Fault: a flag that is there no more is asked for."""
    with installed(EmulatedTensorRT(trt.cuda, "11.0.0.1")):
        target = Target.here()
        assert target.folder == "tensorrt-11.0.0.1-emulated-gpu"
        assert cli.main(["build", str(bundle), *OPTIONS]) == 0
        assert {one.network_flags for one in target.library.trt.asked} == {0}


def test_another_gpu_or_version_is_refused(bundle: Path, trt: EmulatedTensorRT, monkeypatch) -> None:
    """Fault: an engine of another card or version is run, or refused without saying which it is of and which is wanted."""
    assert cli.main(["build", str(bundle), *OPTIONS]) == 0
    (folder,) = (bundle / "engines").iterdir()
    with installed(EmulatedTensorRT(trt.cuda, "10.16.0.2")), pytest.raises(BackendError) as refused:
        md.load(bundle, device="tensorrt")
    assert "no engines for TensorRT 10.16.0.2 on Emulated GPU: it has engines for tensorrt-10.15.1.29-emulated-gpu. Build" in str(
        refused.value
    )
    monkeypatch.setattr(trt.cuda, "cuDeviceGetName", lambda *_: (0, b"NVIDIA H200\0"), raising=False)
    with pytest.raises(BackendError) as refused:
        md.load(bundle, device="tensorrt")
    assert "for TensorRT 10.15.1.29 on NVIDIA H200: it has engines for tensorrt-10.15.1.29-emulated-gpu. Build" in str(refused.value)
    folder.rename(folder.with_name("tensorrt-10.15.1.29-nvidia-h200"))  # as if someone thought the name alone decides
    with pytest.raises(BackendError) as refused:
        md.load(bundle, device="tensorrt")
    assert "'Emulated GPU'), this is ('TensorRT', '10.15.1.29', 90, 'NVIDIA H200'). Build them again: musiclm build" in str(refused.value)
    assert cli.main(["build", str(bundle), *OPTIONS]) == 0
    opened = Bundle.open(bundle)
    assert find_engines(opened, Form.open(opened), Target.here())[1].gpu == "NVIDIA H200"


def test_what_is_too_old(trt: EmulatedTensorRT, bundle: Path, capsys) -> None:
    """Fault: a library without caches that are updated in place builds for minutes and fails."""
    for version in ("10.14.1", "9.3"):
        with installed(EmulatedTensorRT(trt.cuda, version)):
            assert cli.main(["build", str(bundle), *OPTIONS]) == 1
        assert f"TensorRT {version} is installed, 10.15 is the least" in capsys.readouterr().err


def test_what_cannot_be_built(trt: EmulatedTensorRT, bundle: Path, capsys) -> None:
    """Fault: an error without TensorRT's reason or a next step; half of the engines are taken for all."""
    trt.refuses = "fine.onnx"
    assert cli.main(["build", str(bundle), *OPTIONS]) == 1
    said = capsys.readouterr().err
    assert "on Emulated GPU cannot build fine.onnx: Could not find any implementation for node." in said
    assert "Build it for fewer --sequences or --seconds, or with another version of TensorRT." in said
    assert not list((bundle / "engines").glob(f"*/{RECORD}"))
