"""`musiclm build`: engines of a whole bundle by TensorRT-RTX, with no GPU; what is built again and what is not; what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

import musiclm_deploy as md
from benchmarks.bundle import SIZES
from demo.checkpoints import TINY, build_models, save_checkpoints
from musiclm_deploy import cli
from musiclm_deploy.export.codec import export_codec
from musiclm_deploy.export.collect import collect, conditioner_tables
from musiclm_deploy.export.mixed_precision import save_mixed
from musiclm_deploy.export.mulan import build_mulan, export_conditioner, export_mulan_audio, export_mulan_text
from musiclm_deploy.runtime.backend import BackendError
from musiclm_deploy.runtime.bundle import Bundle, BundleError
from musiclm_deploy.runtime.engines import build as building
from musiclm_deploy.runtime.engines import context, library
from musiclm_deploy.runtime.engines.build import RECORD, BuiltEngines, Target, build, engine_of
from musiclm_deploy.runtime.engines.form import Form
from musiclm_deploy.runtime.engines.profiles import Limits, profiles_of
from musiclm_deploy.runtime.engines.run import find_engines

pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT-RTX is not installed: pip install '.[tensorrt-rtx]'")
GRAPHS = 12  # of the tiny bundle: MuLaN's two, conditioner, three transformers and their contexts, the codec's two, wav2vec
SMALL = Limits(sequences=4, seconds=2.0)


@pytest.fixture(scope="module")
def built(static_bundle: Path, tmp_path_factory) -> tuple[Path, Path]:
    """A bundle and its folder of engines for capability 8.6. Read only."""
    bundle = tmp_path_factory.mktemp("built") / "bundle"
    shutil.copytree(static_bundle, bundle)
    with heard(86) as said:
        folder, made, _ = build(Bundle.open(bundle), Target.here(86), SMALL, quiet=True)
    assert not said and len(made.engines) == GRAPHS
    return bundle, folder


@pytest.fixture
def copy(built, tmp_path: Path) -> tuple[Path, Path]:
    """The same, to be changed."""
    bundle, folder = built
    shutil.copytree(bundle, tmp_path / "bundle")
    return tmp_path / "bundle", tmp_path / "bundle" / folder.relative_to(bundle)


@contextmanager
def heard(capability: int) -> Iterator[list[str]]:
    """What TensorRT says meanwhile, all of which is a fault."""
    log = Target.here(capability).library.log
    said: list[str] = []
    clear, log.faults = log.faults.clear, type("Kept", (list,), {"clear": lambda self: said.extend(self)})()
    try:
        yield said
    finally:
        said.extend(log.faults)
        log.faults = []
        clear()


@pytest.mark.parametrize("capability", [89, 120])
def test_every_graph_is_built(capability: int, static_bundle: Path, tmp_path: Path, capsys) -> None:
    """Fault: a graph that TensorRT does not take, or warns of; a profile that is not legal; a folder that says nothing of what is in it."""
    shutil.copytree(static_bundle, tmp_path / "bundle")
    arguments = ["--compute-capability", str(capability), "--sequences", "4", "--seconds", "2", "--quiet"]
    with heard(capability) as said:
        assert cli.main(["build", str(tmp_path / "bundle"), *arguments]) == 0
    assert not said
    out = capsys.readouterr().out
    (folder,) = (tmp_path / "bundle" / "engines").iterdir()
    made = BuiltEngines.open(folder)
    assert folder.name == f"tensorrt-rtx-{made.version}-sm_{capability}" and made.capability == capability and made.gpu == ""
    assert len(made.engines) == GRAPHS and f"{GRAPHS} engines in fp32, {GRAPHS} built, for TensorRT-RTX" in out
    assert all(made.read(folder, graph) for graph in made.engines)
    assert cli.main(["inspect", str(tmp_path / "bundle")]) == 0
    assert f"  engines   {GRAPHS} in fp32: {folder.name}\n" in capsys.readouterr().out


@pytest.mark.parametrize("depth", [2, pytest.param(6, marks=pytest.mark.nightly)])
def test_mulan_and_the_codec_of_real_sizes_are_built(depth: int, tiny_bundle: Path, tmp_path: Path) -> None:
    """Fault: a graph beyond what TensorRT takes. Upstream's README sizes, in 16 bits, for the sizes of calls that the runtime asks for; for
    transformers see tests/test_tensorrt.py."""
    readme = SIZES["readme"]
    small = {name: getattr(TINY, name) for name in ("dim", "depth", "heads", "dim_head")}  # transformers are not built here
    preset = replace(readme, tower_arguments=readme.tower_arguments | {"depth": depth}, **small)
    collected, manifest = collect(save_checkpoints(build_models(preset), tmp_path), {}), Bundle.open(tiny_bundle).manifest
    mulan = build_mulan(collected.settings["mulan"], collected.checkpoints["mulan"].state)
    codec = export_codec(collected.settings["codec"], collected.checkpoints["codec"].state, tmp_path)
    export_mulan_text(mulan, tmp_path / manifest.mulan.text)
    export_mulan_audio(mulan, tmp_path / manifest.mulan.audio)
    export_conditioner(conditioner_tables(collected), tmp_path / manifest.conditioner.graph)
    sizes = {"max_tokens": collected.settings["mulan"]["text.max_seq_len"], "min_samples": mulan.audio.min_samples}
    manifest = replace(manifest, codec=codec, mulan=replace(manifest.mulan, sample_hz=codec.sample_hz, **sizes))
    profiles = profiles_of(manifest, Form("fp16", {}, 128, {}), Limits())
    (tmp_path / "fp16").mkdir()
    graphs = {name: tmp_path / "fp16" / name for name in (manifest.mulan.text, manifest.mulan.audio, codec.stream)}
    for name, path in graphs.items():
        save_mixed(tmp_path / name, path, "fp16")
    graphs |= {name: tmp_path / name for name in (str(codec.encode), manifest.conditioner.graph)}  # codes are made in float32
    for name, path in graphs.items():
        weights = path.with_name(f"{name}.data").stat().st_size
        for capability in (86, 89, 120):
            with heard(capability) as said:
                made = engine_of(Target.here(capability), path, profiles[name], "fp16", tmp_path / "timing.cache")
            assert not said and weights < len(made) < 1.4 * weights


def test_what_has_not_changed_is_not_built_again(copy, monkeypatch) -> None:
    """Fault: minutes for what is there; an engine of other sizes, of a graph that has changed, or one that is damaged."""
    bundle, folder = Bundle.open(copy[0]), copy[1]
    compiled: list[str] = []
    real = building.engine_of
    monkeypatch.setattr(building, "engine_of", lambda target, path, *rest: compiled.append(path.stem) or real(target, path, *rest))
    _, _, again = build(bundle, Target.here(86), SMALL, quiet=True)
    assert again == compiled == []
    (folder / "conditioner.engine").write_bytes(b"")
    _, made, again = build(bundle, Target.here(86), replace(SMALL, seconds=3.0), quiet=True)
    assert sorted(again) == ["codec_encode.onnx", "conditioner.onnx", "mulan_audio.onnx", "wav2vec.onnx"], again
    assert sorted(compiled) == ["codec_encode", "conditioner", "mulan_audio", "wav2vec"]
    assert find_engines(bundle, Form.open(bundle), Target.here(86)) == (folder, made)


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError])
def test_nothing_half_written(fault: type[BaseException], copy, monkeypatch) -> None:
    """Fault: an interrupt leaves a folder that is taken for whole, or takes away the engines that were there."""
    before = {path.name: path.read_bytes() for path in copy[1].iterdir()}

    def stop(target: Any, path: Path, *rest: Any) -> bytes:
        if path.stem == "codec_encode":
            raise fault
        return b"engine"

    monkeypatch.setattr(building, "engine_of", stop)
    with pytest.raises(fault):
        build(Bundle.open(copy[0]), Target.here(86), replace(SMALL, sequences=5, seconds=4.0), quiet=True)
    assert [path.name for path in copy[1].parent.iterdir()] == [copy[1].name]
    assert {path.name: path.read_bytes() for path in copy[1].iterdir()} == before


def _edit(folder: Path, **changes: Any) -> None:
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(record | changes))


def test_engines_that_are_for_something_else(copy) -> None:
    """Fault: an engine for another GPU, library or graph is run, or refused without saying what it is for."""
    path, folder = copy
    bundle = Bundle.open(path)
    form = Form.open(bundle)
    with pytest.raises(BackendError, match=rf"no engines for TensorRT-RTX .* 8\.9: it has engines for {folder.name}\. .*musiclm build"):
        find_engines(bundle, form, Target.here(89))
    with pytest.raises(BundleError, match="is in fp32, the bundle's form in fp16"):
        find_engines(bundle, replace(form, precision="fp16"), Target.here(86))
    _edit(folder, version="1.0")
    with pytest.raises(BackendError, match=r"was built by and for \('TensorRT-RTX', '1.0', 86, ''\), this is \('TensorRT-RTX', "):
        find_engines(bundle, form, Target.here(86))
    _edit(folder, version=Target.here(86).library.version, format=7)
    with pytest.raises(BundleError, match="format 7, this version reads 1"):
        find_engines(bundle, form, Target.here(86))
    (folder / RECORD).write_text("[]")
    with pytest.raises(BundleError, match="is not a record of engines"):
        find_engines(bundle, form, Target.here(86))
    shutil.rmtree(folder)
    with pytest.raises(BackendError, match=r"has no engines for TensorRT-RTX .*: it has none\. Build them here: musiclm build"):
        find_engines(bundle, form, Target.here(86))


def test_engines_of_another_graph(copy) -> None:
    """Fault: engines that were built before the bundle was exported again; one whose bytes have changed."""
    path, folder = copy
    bundle, made = Bundle.open(path), BuiltEngines.open(folder)
    files = dict(Form.open(bundle).files)
    files["coarse.onnx.data"] = replace(files["coarse.onnx.data"], sha256="0")
    with pytest.raises(BundleError, match=r"coarse\.engine was built of another coarse\.onnx\. Build it again"):
        find_engines(bundle, replace(Form.open(bundle), files=files), Target.here(86))
    (folder / "coarse.engine").write_bytes(b"x" * made.engines["coarse.onnx"].bytes)
    with pytest.raises(BundleError, match=r"coarse\.engine: its content was changed .*Build it again"):
        made.read(folder, "coarse.onnx")
    with pytest.raises(BundleError, match=r"no engine of other\.onnx"):
        made.read(folder, "other.onnx")


def test_without_what_it_takes(static_bundle: Path, tiny_bundle: Path, capsys, monkeypatch) -> None:
    """Fault: a traceback, or a code of CUDA's, where there is no GPU, no TensorRT, or no form of the graphs for it."""
    assert cli.main(["build", str(static_bundle), "--compute-capability", "90"]) == 1
    assert re.search(r"TensorRT-RTX [\d.]+ builds for 75, 80, 86, 89, 120, 121, not for 90", capsys.readouterr().err)
    assert cli.main(["build", str(tiny_bundle), "--compute-capability", "86"]) == 1
    assert "no form for TensorRT: export it with --target tensorrt" in capsys.readouterr().err
    try:
        Target.here()
    except BackendError as error:
        assert "TensorRT: no NVIDIA GPU can be used here: " in str(error)
        with pytest.raises(BackendError, match="no NVIDIA GPU can be used here"):
            md.load(static_bundle, device="tensorrt")
    monkeypatch.setattr(library, "import_module", lambda name: (_ for _ in ()).throw(ImportError(f"No module named {name!r}")))
    with pytest.raises(
        BackendError, match=r"No module named 'tensorrt'; No module named 'tensorrt_rtx_libs'\. Install one: for TensorRT pip"
    ):
        library.find_library()


def test_tensorrt_has_what_is_asked_of_it() -> None:
    """Fault: a misspelt method or constant, which only a machine with a GPU would find."""
    trt = library.find_library(portable=True).trt
    asked = {
        context: [("Runtime", "runtime"), ("IExecutionContext", "_context"), ("ICudaEngine", "_engine"), ("IRuntimeConfig", "how")],
        building: [("Builder", "builder"), ("IBuilderConfig", "config"), ("IOptimizationProfile", "profile")],
    }
    for module, objects in asked.items():
        source = Path(cast(str, module.__file__)).read_text()
        for kind, name in objects:
            called = set(re.findall(rf"\b{name}\.([a-z_]\w+)", source))
            assert called and not [one for one in called if not hasattr(getattr(trt, kind), one)], (kind, called)
        for kind, constant in re.findall(r"trt\.([A-Z]\w+)\.([A-Z_\d]+)", source):
            assert hasattr(getattr(trt, kind), constant), constant
